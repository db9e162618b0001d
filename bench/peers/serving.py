"""`sparamx serve` beside llama.cpp's server: the same random weights, int8 beside Q8_0, and the same requests.

    python3 -m venv V && V/bin/pip install -r bench/peers/requirements-serving.txt
    V/bin/python bench/peers/serving.py [--streams 1,8,32] [--rounds 5] [--isa avx2] [--output FILE]

The model is TinyLlama-1.1B's shape. It is written once, to bench/peers/.build/serving (2.5 GB): a GGUF whose matrices are all Q8_0, and
what `sparamx compress --weights int8` makes of it. Both programs run all the time, and the one that is not measured is stopped with
SIGSTOP. A round asks each for all numbers of streams, the order turns round after round, and a figure is the median over the rounds.
The engine alone is `cargo build --release -p sparamx-engine --example streams`, without HTTP, text and clients.

llama.cpp comes built in the package xllamacpp, for AVX2 (`features` in the result says it): --isa avx2 limits sparamx to that, too.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "server"))

from client import Target, ask, together  # noqa: E402
from process import SPARAMX, Process, sparamx  # noqa: E402

BUILD = HERE / ".build" / "serving"
GGUF = BUILD / "tinyllama-q8_0.gguf"
INT8 = BUILD / "tinyllama-int8"
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 22, 2048, 5632, 32, 4, 32000
PROMPT_TOKENS = 32


def write_vocabulary(writer):
    """Bytes, and words that nothing merges to: both programs read it."""
    import gguf

    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(f"▁w{index}", kinds.NORMAL) for index in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(VOCAB)])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write_gguf(path):
    """A Llama of random weights."""
    import gguf
    import numpy as np
    from gguf.quants import quantize

    q8_0 = gguf.GGMLQuantizationType.Q8_0
    head_dim = HIDDEN // HEADS
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name("random TinyLlama")
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(VOCAB)
    write_vocabulary(writer)
    draw = np.random.default_rng(5)

    def matrix(name, n, k):
        values = draw.standard_normal((n, k), dtype=np.float32) * np.float32(0.02)
        writer.add_tensor(name, quantize(values, q8_0), raw_dtype=q8_0)

    def ones(name):
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    matrix("token_embd.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        ones(at + "attn_norm.weight")
        matrix(at + "attn_q.weight", HIDDEN, HIDDEN)
        matrix(at + "attn_k.weight", KV_HEADS * head_dim, HIDDEN)
        matrix(at + "attn_v.weight", KV_HEADS * head_dim, HIDDEN)
        matrix(at + "attn_output.weight", HIDDEN, HIDDEN)
        ones(at + "ffn_norm.weight")
        matrix(at + "ffn_gate.weight", INTERMEDIATE, HIDDEN)
        matrix(at + "ffn_up.weight", INTERMEDIATE, HIDDEN)
        matrix(at + "ffn_down.weight", HIDDEN, INTERMEDIATE)
    ones("output_norm.weight")
    matrix("output.weight", VOCAB, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def models():
    if not GGUF.exists():
        write_gguf(GGUF)
    if not INT8.exists():
        part = INT8.with_suffix(".part")
        subprocess.run(["rm", "-rf", part], check=True)
        subprocess.run([SPARAMX, "compress", GGUF, "-o", part, "--weights", "int8", "--sparsity", "0"], check=True)
        part.rename(INT8)


def llama_server(threads, port, streams):
    """Runs llama.cpp's server in this process, until it is told to end."""
    import signal

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(GGUF)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = streams
    # Each stream has its share of the context.
    params.n_ctx = 512 * streams
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        signal.pause()


async def measure(port, streams, tokens, seed):
    """Tokens a second of so many streams that start together."""
    draw = random.Random(seed)
    target = Target(port)

    def body():
        prompt = [1, *(draw.randrange(300, VOCAB) for _ in range(PROMPT_TOKENS - 1))]
        return {
            "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }

    answers = await together(ask(target, "POST", "/v1/completions", body()) for _ in range(streams))
    for answer in answers:
        assert answer.status == 200, answer.body[:500]
        usage = [event["usage"] for event in answer.events() if event.get("usage")][-1]
        assert usage["completion_tokens"] == tokens, usage
    start = min(answer.start for answer in answers)
    end = max(answer.start + answer.seconds for answer in answers)
    return {"tokens_per_s": streams * tokens / (end - start)}


class Engine:
    """The engine alone, in a process that does what it is told by lines."""

    def __init__(self, threads, isa):
        environment = os.environ | ({"SPARAMX_ISA": isa} if isa else {})
        program = Path(SPARAMX).parent / "examples" / "streams"
        self.process = subprocess.Popen(
            [program, INT8, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        return False

    def pause(self):
        """It waits for a line by itself."""

    resume = pause

    def measure(self, streams, tokens, seed):
        print(streams, tokens, PROMPT_TOKENS, seed, file=self.process.stdin, flush=True)
        return {"tokens_per_s": float(self.process.stdout.readline())}


def llama_process(threads, streams):
    options = ["--threads", str(threads), "--streams", str(streams)]
    return Process(lambda port: [sys.executable, __file__, "--llama-server", str(port), *options])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="limit sparamx to an instruction set")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--llama-server", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.llama_server:
        llama_server(args.threads, args.llama_server, int(args.streams))
        return
    models()
    streams = [int(count) for count in args.streams.split(",")]
    ours = sparamx(INT8, "-t", args.threads, "--no-speculation", isa=args.isa)
    with ours, llama_process(args.threads, max(streams)) as theirs, Engine(args.threads, args.isa) as engine:
        report(args, streams, rounds(args, streams, {"sparamx": ours, "engine alone": engine, "llama-server": theirs}))


def rounds(args, streams, servers):
    """The results by server and number of streams."""
    found = {name: {count: [] for count in streams} for name in servers}
    for server in servers.values():
        server.pause()
    for round_ in range(args.rounds):
        for name in list(servers)[:: 1 if round_ % 2 == 0 else -1]:
            server = servers[name]
            server.resume()
            for count in streams:
                seed = 100 * round_ + count
                if isinstance(server, Engine):
                    result = server.measure(count, args.tokens, seed)
                else:
                    result = asyncio.run(measure(server.port, count, args.tokens, seed))
                found[name][count].append(result)
                print(round_, name, count, round(result["tokens_per_s"], 1), file=sys.stderr)
            server.pause()
    for server in servers.values():
        server.resume()
    return found


def report(args, streams, found):
    import xllamacpp

    rows = []
    for count in streams:
        rates = {name: statistics.median(result["tokens_per_s"] for result in by[count]) for name, by in found.items()}
        row = {"streams": count, **{name: round(rate, 2) for name, rate in rates.items()}}
        row["over engine alone"] = round(rates["sparamx"] / rates["engine alone"], 3)
        row["over llama-server"] = round(rates["sparamx"] / rates["llama-server"], 3)
        rows.append(row)
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    result = {
        "cpu": cpu, "threads": args.threads, "isa": args.isa or "all", "tokens": args.tokens, "prompt_tokens": PROMPT_TOKENS,
        "rounds": args.rounds, "load": os.getloadavg(), "llama.cpp features": xllamacpp.get_system_info(), "rows": rows, "all": found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.output:
        args.output.write_text(text)
    print(text if not args.output else json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
