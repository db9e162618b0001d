"""A server that answers as a real one might, in every way that the page must show: long answers, errors, a broken stream.

Only the page's test uses it, for what a healthy server does not do on demand.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "crates/server/page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

META = {
    "parameters": 134_515_008,
    "bytes": 171_966_464,
    "sparsity": 0.5,
    "weights": "sparse int8",
    "kernel": "linear_bf16_bmint8_f32_32x32_amx",
    "isa": "AMX",
    "threads": 32,
    "kv_cache": {"format": "int8, 50 % of keys zero", "tokens": 131_072, "bytes": 1_610_612_736},
    "chat_template": True,
    "reasoning": True,
    "defaults": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}

ANSWER = """Here is a short tour of **sparse weights**, with the parts that matter.

## Why zeros help

A decoder reads *every* weight once for each token. If half of them are zero, and a bitmap says which, it reads less:

1. the bitmap, one bit a weight;
2. the values that are left;
3. nothing else.

| Format | Bits a weight | Tokens/s |
|:-------|--------------:|---------:|
| bf16 | 16 | 21.4 |
| bitmap, 50 % | 9 | 34.9 |
| int8 bitmap | 5 | 52.7 |

```python
def expand(bitmap: int, values: list[float]) -> list[float]:
    \"\"\"A row of 64 weights from its bitmap and what is not zero.\"\"\"
    rest = iter(values)
    return [next(rest) if bitmap >> i & 1 else 0.0 for i in range(64)]
```

> The decoded block never leaves the cache.

See [the format](https://example.org/format) or `docs/weight-format.md`. <script>alert(1)</script> stays text.
"""
REASONING = "The user wants to know about sparsity. I should say what is read, show a table and a bit of code, and keep it short."


class Fake(ThreadingHTTPServer):
    """A fake on a port of its own. `plan` is a list of what the next requests get; then they get an answer.

    An answer by the plan "hold" has two words, and the others after `go` is set.
    """

    daemon_threads = True

    def __init__(self, meta=META, key=None, delay=0.004):
        super().__init__(("127.0.0.1", 0), Handler)
        self.meta, self.key, self.delay = meta, key, delay
        self.plan, self.bodies, self.gone = [], [], 0
        self.answer, self.reasoning = ANSWER, ""
        self.loading = 0
        self.go = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.go.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Clients go in the middle of answers: that is what the test is about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            return self.models()
        name = {"/": "index.html", "/favicon.svg": "favicon.svg"}.get(self.path, self.path.removeprefix("/page/"))
        file = PAGE / name
        if "/" in name or not file.is_file():
            return self.send(404, {"error": {"message": "nothing there"}})
        self.send_response(200)
        data = file.read_bytes()
        self.send_header("Content-Type", TYPES[file.suffix])
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        error = {"message": "Incorrect API key provided", "type": "authentication_error", "code": "invalid_api_key"}
        self.send(401, {"error": error})
        return False

    def models(self):
        if not self.allowed():
            return
        if self.server.loading > 0:
            self.server.loading -= 1
            return self.send(503, {"error": {"message": "the model is being loaded", "type": "unavailable_error"}})
        model = {"id": "org/SmolLM2-135M-Instruct", "object": "model", "max_model_len": 2048, "meta": self.server.meta}
        self.send(200, {"object": "list", "data": [model]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.bodies.append((self.path, body))
        plan = self.server.plan.pop(0) if self.server.plan else "answer"
        if isinstance(plan, tuple):
            status, error, headers = plan
            return self.send(status, {"error": error}, headers)
        self.stream(body, plan)

    def send(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body, plan):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.events(body, plan)
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone += 1

    def write(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, value):
        self.write(f"data: {json.dumps(value)}\n\n")

    def events(self, body, plan):
        chat = "messages" in body
        wrap = (lambda kind, text: {"delta": {kind: text}}) if chat else (lambda _, text: {"text": text})
        self.write(": keep-alive\n\n")
        for word in self.server.reasoning.split(" ") if chat and self.server.reasoning else []:
            self.event({"choices": [{"index": 0, **wrap("reasoning", word + " ")}]})
            time.sleep(self.server.delay)
        words = self.server.answer.split(" ")
        for i, word in enumerate(words):
            if plan == "break" and i == 12:
                return
            if plan == "error" and i == 12:
                self.event({"error": {"message": "a step of the engine failed", "type": "server_error", "code": 500}})
                self.write("data: [DONE]\n\n")
                return
            while plan == "hold" and i == 2 and not self.server.go.wait(0.05):
                # It fails once the client is gone.
                self.write(": keep-alive\n\n")
            text = word if i == len(words) - 1 else word + " "
            self.event({"choices": [{"index": 0, **wrap("content", text), "finish_reason": None}]})
            time.sleep(self.server.delay)
        finish = "length" if plan == "length" else "stop"
        self.event({"choices": [{"index": 0, **wrap("content", ""), "finish_reason": finish}]})
        usage = {"prompt_tokens": 41, "completion_tokens": len(words), "total_tokens": 41 + len(words)}
        usage["prompt_tokens_details"] = {"cached_tokens": 32}
        timings = {"predicted_n": len(words), "predicted_ms": 1000 * len(words) / 34.9, "draft_n": 24, "draft_n_accepted": 18}
        self.event({"choices": [], "usage": usage, "timings": timings})
        self.write("data: [DONE]\n\n")
