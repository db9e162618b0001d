"""A server to measure, and what it takes."""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPARAMX = os.environ.get("SPARAMX", str(ROOT / "target/release/sparamx"))
# A guard against hangs only.
START_SECONDS = 300
# Another program may take a port between the moment it is found free and the moment the server asks for it.
PORTS = 3
# What sparamx and llama.cpp say then.
TAKEN = ("cannot listen", "couldn't bind")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A server of any program that answers at /health. `command` gives its command line for a port."""

    def __init__(self, command, environment=()):
        self.command = command
        self.environment = {name: value for name, value in os.environ.items() if name != "SPARAMX_API_KEY"} | dict(environment)
        self.start()

    def start(self):
        self.port = free_port()
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.command(self.port),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=self.environment,
        )

    def __enter__(self):
        try:
            for attempt in range(PORTS):
                if attempt > 0:
                    self.start()
                if self.wait():
                    return self
            raise RuntimeError(f"{PORTS} ports were taken by others")
        except BaseException:
            self.__exit__()
            raise

    def wait(self):
        """Waits until it answers; false if another program has the port."""
        end = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                said = self.said()
                if not any(words in said for words in TAKEN):
                    raise RuntimeError(f"the server ended with {self.process.returncode}: {said[-2000:]}")
                return False
            if self.listens() and self.answers():
                return True
            if time.monotonic() > end:
                raise RuntimeError(f"the server does not get ready: {self.said()[-2000:]}")
            time.sleep(0.1)

    def answers(self):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10).close()
        except OSError:
            return False
        return True

    def listens(self):
        """Whether it is this program that has the port."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == self.port}
        try:
            return any(os.readlink(file) in sockets for file in Path(f"/proc/{self.process.pid}/fd").iterdir())
        except OSError:
            # A file was closed in between, or the program has ended: whoever asks looks again.
            return False

    def said(self):
        """What it wrote. The place in the file is that of the program, and stays."""
        file = self.output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()
        return False

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def resident_bytes(self):
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def metrics(self):
        """Values by name and labels as they are written."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def metric(self, name):
        """The sum of a metric over its labels."""
        values = [v for key, v in self.metrics().items() if key.split("{")[0] == name]
        if not values:
            raise KeyError(name)
        return sum(values)


def sparamx(model, *options, isa=None):
    """Our server on a free port."""
    environment = {"SPARAMX_ISA": isa} if isa else {}
    return Process(lambda port: [SPARAMX, "serve", "-q", str(model), "--port", str(port), *map(str, options)], environment)
