"""A client that costs little beside the server it measures: a connection for each request, an answer that is taken apart at its end."""

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Target:
    """Where a server is."""

    port: int
    key: str | None = None
    host: str = "127.0.0.1"

    def request(self, method, path, body=None, headers=()):
        """The bytes of a request."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Connection: close", *headers]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass
class Answer:
    """What came back, and when."""

    status: int
    body: bytes
    start: float
    # (seconds since the start, bytes so far) of each read.
    reads: list = field(default_factory=list)

    @property
    def seconds(self):
        return self.reads[-1][0]

    def json(self):
        return json.loads(self.body)

    def events(self):
        """The objects of a stream, without [DONE]."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]

    @property
    def ended(self):
        """Whether a stream is whole."""
        return self.body.rstrip().endswith(b"data: [DONE]")

    def text(self):
        """The text of a stream of /v1/completions or /v1/chat/completions."""
        choices = [choice for event in self.events() for choice in event["choices"]]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


@dataclass
class Habits:
    """How a client reads. `pause`: seconds before each read of few bytes; `leave_after`: bytes after which it is gone."""

    pause: float = 0.0
    leave_after: int | None = None


async def connect(target, small):
    sock = socket.socket()
    sock.setblocking(False)
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
    return await asyncio.open_connection(sock=sock, limit=1024 if small else 65536)


async def ask(target, method, path, body=None, habits=None):
    """Sends a request; the answer, or nothing if the client left early."""
    return await send(target, target.request(method, path, body), habits)


async def send(target, request, habits=None):
    """Sends bytes as a request; the answer, or nothing if the client left early or got none."""
    habits = habits or Habits()
    reader, writer = await connect(target, habits.pause > 0)
    start = time.monotonic()
    reads, data = [], bytearray()
    try:
        writer.write(request)
        await writer.drain()
        while True:
            if habits.pause:
                await asyncio.sleep(habits.pause)
            piece = await reader.read(512 if habits.pause else 65536)
            if not piece:
                break
            data += piece
            reads.append((time.monotonic() - start, len(data)))
            if habits.leave_after is not None and len(data) >= habits.leave_after:
                return None
    finally:
        writer.transport.abort()
    return parse(bytes(data), start, reads) if data else None


def parse(data, start, reads):
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(chunks(body))
    return Answer(int(lines[0].split()[1]), body, start, reads)


def chunks(body):
    """What chunks hold; a body that ends early gives those that are whole."""
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        if size == 0:
            return
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


async def together(tasks):
    """Results in order; the first exception ends all."""
    return await asyncio.gather(*tasks)
