"""The servers that the tests talk to: the model that ships, behind a key, and SmolLM2, without one."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPARAMX = os.environ.get("SPARAMX", str(ROOT / "target/release/sparamx"))
SMOLLM2 = Path(os.environ.get("SPARAMX_SMOLLM2", "/nonexistent"))
KEY = "sk-of-the-tests"
# Guards against hangs only: machines that test are busy.
START_SECONDS = STOP_SECONDS = 120
REST_SECONDS = 60
# Another program may take a port between the moment it is found free and the moment the server asks for it.
PORTS = 3


class Server:
    """A `sparamx serve` of its own, on a free port of the loopback."""

    def __init__(self, folder, model, *options, key=None):
        self.key = key
        self.model = options[options.index("--served-model-name") + 1]
        for _ in range(PORTS):
            self._start(folder, model, options)
            try:
                if self._wait():
                    return
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
        raise AssertionError(f"{PORTS} ports were taken by others:\n{self.said()}")

    def _start(self, folder, model, options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(folder) / f"server-{self.port}.log"
        command = [SPARAMX, "serve", str(model), "--port", str(self.port), *options]
        environment = {name: value for name, value in os.environ.items() if name != "SPARAMX_API_KEY"}
        if self.key:
            environment["SPARAMX_API_KEY"] = self.key
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def _wait(self):
        """Waits until it is ready; false if another program has the port."""
        end = time.monotonic() + START_SECONDS
        while True:
            # Only the log tells that it is not the other program that answers.
            if f"at {self.url}," in self.said() and self._answers():
                return True
            if self.process.poll() is not None:
                assert "cannot listen" in self.said(), f"the server has ended:\n{self.said()}"
                return False
            assert time.monotonic() < end, f"the server does not get ready:\n{self.said()}"
            time.sleep(0.05)

    def _answers(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=10):
                return True
        except urllib.error.HTTPError as error:
            assert error.code == 503, error
        except OSError:
            pass
        return False

    def said(self):
        """What is in its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def get(self, path):
        """The text at a path."""
        request = urllib.request.Request(self.url + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def samples(self):
        """All metrics at one time."""
        from prometheus_client.parser import text_string_to_metric_families

        return [sample for family in text_string_to_metric_families(self.get("/metrics")) for sample in family.samples]

    def metric(self, name, **labels):
        """The sum of a metric over the labels that are not given."""
        return total(self.samples(), name, **labels)

    def aborts(self):
        """How many texts ended because nobody wanted them any more."""
        return self.metric("vllm:request_success_total", finished_reason="abort")

    def rest(self, aborts=-1):
        """Waits until nothing runs or waits, and more texts than so many were aborted. The step in progress ends first."""
        end = time.monotonic() + REST_SECONDS
        while True:
            samples = self.samples()
            running, waiting = total(samples, "vllm:num_requests_running"), total(samples, "vllm:num_requests_waiting")
            aborted = total(samples, "vllm:request_success_total", finished_reason="abort")
            if running == waiting == 0 and aborted > aborts:
                return
            left = f"{running} requests run, {waiting} wait, {aborted} texts were aborted, {aborts} before"
            assert time.monotonic() < end, left
            time.sleep(0.05)

    def stop(self):
        """Ends it as a service manager does, and says how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


def total(samples, name, **labels):
    """The sum of a metric over the labels that are not given."""
    values = [
        sample.value
        for sample in samples
        if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
    ]
    assert values, f"no metric {name} {labels}"
    return sum(values)


def serve(factory, model, *options, key=None):
    server = Server(factory.mktemp("server"), model, *options, key=key)
    yield server
    code = server.stop()
    assert code == 0, f"exit code {code}:\n{server.said()[-4000:]}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The model that ships, which tells stories and has no chat template."""
    names = ("--served-model-name", "org/stories", "stories")
    yield from serve(tmp_path_factory, ROOT / "models/stories-5m-50", *names, key=KEY)


@pytest.fixture(scope="session")
def smol(tmp_path_factory):
    """SmolLM2-135M-Instruct, whose answers make sense."""
    if not SMOLLM2.is_file():
        pytest.skip("SmolLM2 could not be fetched")
    yield from serve(tmp_path_factory, SMOLLM2, "--served-model-name", "smollm2")


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """The model that ships, for one request at a time and one in the queue."""
    options = ("--served-model-name", "narrow", "--max-num-seqs", "1", "--max-requests", "2")
    yield from serve(tmp_path_factory, ROOT / "models/stories-5m-50", *options)
