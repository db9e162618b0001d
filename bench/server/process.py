"""A server to measure, and what it takes."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPARAMX = os.environ.get("SPARAMX", str(ROOT / "target/release/sparamx"))
START_SECONDS = 300


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A server of any program that answers at /health."""

    def __init__(self, command, port, environment=(), log=None):
        self.port, self.log = port, log
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment),
        )

    def __enter__(self):
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10).close()
                return self
            except OSError as error:
                loading = isinstance(error, urllib.error.HTTPError) and error.code == 503
                if not loading and self.process.poll() is not None:
                    raise RuntimeError(f"the server ended with {self.process.returncode}") from error
                if time.monotonic() > end:
                    self.__exit__()
                    raise
                time.sleep(0.1)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
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


def sparamx(model, *options, isa=None, log=None):
    """Our server on a free port."""
    port = free_port()
    environment = {"SPARAMX_ISA": isa} if isa else {}
    command = [SPARAMX, "serve", "-q", str(model), "--port", str(port), *map(str, options)]
    return Process(command, port, environment, log)
