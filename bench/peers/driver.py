"""Measures sparamx and its peers side by side, in interleaved rounds. See README.md."""

import argparse
import datetime
import json
import os
import pathlib
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import report
import work
from record import Record
from sparamx import PRECISIONS, Sparamx

REPOSITORY = work.HERE.parent.parent
PEERS = {"torch": "main", "llama": "main", "openvino": "main", "deepsparse": "deepsparse"}
OURS = "sparamx"
# What limits each peer to AVX2; llama.cpp has a build of its own for that.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "NM_ARCH": "avx2",
}
ANSWER_TIMEOUT_S = 300


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    minutes: float  # at most about so many, setting up left out
    rounds: int
    shapes: list
    batches: list  # of the linear layers
    decode_batches: list
    prompt_tokens: int
    new_tokens: int
    slice_s: float  # of a linear layer, for one batch in one round
    limit_s: float  # what takes longer in one go is cut short or left out


FULL = Effort(28, 5, work.LINEAR_SHAPES, work.LINEAR_BATCHES, [1, 8, 16, 32], 512, 16, 0.1, 20)
QUICK = Effort(7, 2, [(4096, 4096), (14336, 4096)], [1, 16], [1, 16], 128, 8, 0.05, 5)


@dataclass(frozen=True)
class Group:
    """What is measured together: all that is loaded at a time."""

    title: str
    section: str  # linear or model
    share: float  # of the time
    shape: tuple = ()
    precisions: tuple = ("32-bit", "16-bit", "8-bit", "4-bit")


# All linear layers of a kind of model get half of the time, large ones more than small ones.
MODEL_GROUPS = [
    Group("TinyLlama-1.1B, 32 and 16 bits", "model", 0.26, precisions=("32-bit", "16-bit")),
    Group("TinyLlama-1.1B, 8 bits", "model", 0.15, precisions=("8-bit",)),
    Group("TinyLlama-1.1B, 4 bits", "model", 0.09, precisions=("4-bit",)),
]
LINEAR_SHARE = 0.5
# A weight of more elements is measured a precision at a time, so that all peers fit in the memory.
LARGE_ELEMS = 1 << 28
LARGE_PRECISIONS = [("32-bit",), ("16-bit",), ("8-bit", "4-bit")]
# Our kernels are measured again for every shape while that takes no more of the time.
KERNELS_SHARE = 0.15


def groups(effort, sections):
    sizes = {shape: (shape[0] * shape[1]) ** 0.5 for shape in effort.shapes}
    linear = []
    for shape, size in sizes.items():
        share = LINEAR_SHARE * size / sum(sizes.values())
        title = f"linear {shape[1]}->{shape[0]}"
        if shape[0] * shape[1] <= LARGE_ELEMS:
            linear.append(Group(title, "linear", share, shape))
            continue
        for precisions in LARGE_PRECISIONS:
            part = f"{title}, {' and '.join(precisions)}"
            linear.append(Group(part, "linear", share / len(LARGE_PRECISIONS), shape, precisions))
    return [group for group in [*MODEL_GROUPS, *linear] if group.section in sections]


class PeerError(Exception):
    """The peer says that it cannot."""


class Died(Exception):
    """The worker is gone, and all that it had loaded."""


class Worker:
    """A peer's process. It is stopped between requests, so that nothing of it runs in another's turn."""

    def __init__(self, name, isa, threads):
        self.name = name
        self.command = [
            str(work.HERE / ".venv" / PEERS[name] / "bin" / "python"),
            str(work.HERE / "worker.py"),
            *(name, isa, str(threads)),
        ]
        count = str(threads)
        self.environment = {
            **os.environ,
            **{f"{library}_NUM_THREADS": count for library in ("OMP", "MKL", "OPENBLAS")},
            # Without it both threads of a pool have been seen on one CPU.
            "OMP_PROC_BIND": "true",
            "OMP_PLACES": "cores",
            "NM_DISABLE_ANALYTICS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **(AVX2 if isa == "avx2" else {}),
        }
        self.log = work.BUILD / "logs" / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.log.write_text("")
        self.process = None

    def start(self):
        self.stop()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        hello = self.ask({"do": "hello"})
        kinds = {section: [work.Kind(**kind) for kind in hello[section]] for section in ("linear", "model")}
        return hello["versions"], kinds

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, request):
        if self.process is None:
            raise Died("it is not running")
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self._line())
        except (OSError, ValueError) as error:
            self.stop()
            raise Died(str(error)) from None
        self.process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _line(self):
        line, deadline = b"", time.monotonic() + ANSWER_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise OSError(f"no answer in {ANSWER_TIMEOUT_S} s")
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    raise OSError(f"it ended with status {self.process.wait()}; see {self.log.relative_to(REPOSITORY)}")
                line += part
        return line


class Driver:
    """The whole measurement."""

    def __init__(self, options, effort, record):
        self.options, self.effort, self.record = options, effort, record
        self.deadline = time.monotonic() + effort.minutes * 60
        self.workers, self.kinds = {}, {}
        self.ours = self.kernels = None

    def run(self):
        try:
            self._start()
            todo = groups(self.effort, self.options.work)
            for at, group in enumerate(todo):
                if self.record.is_done(group.title):
                    self.say(f"{group.title}: in {self.record.folder.name} already")
                    continue
                if time.monotonic() > self.deadline:
                    self.say(f"{group.title}: no time; go on with --resume --output {self.record.folder}")
                    continue
                remaining = sum(later.share for later in todo[at:])
                budget = (self.deadline - time.monotonic()) * group.share / remaining
                self._group(f"[{at + 1}/{len(todo)}] {group.title}", group, time.monotonic() + budget)
                self.record.done(group.title)
        finally:
            for worker in self.workers.values():
                worker.stop()

    def say(self, text):
        left = max(0, self.deadline - time.monotonic()) / 60
        print(f"{text}  ({left:.1f} min left at most)", file=sys.stderr, flush=True)

    def _start(self):
        for name in self.options.only:
            try:
                if name == OURS:
                    self.ours = Sparamx(self.options.sparamx, self.options.isa, self.options.threads)
                    self.kernels = OurKernels(self.ours, self.effort)
                    self.record.version(OURS, {"sparamx": self.ours.version()})
                    continue
                worker = Worker(name, self.options.isa, self.options.threads)
                versions, self.kinds[name] = worker.start()
                self.workers[name] = worker
                self.record.version(name, versions)
            except (OSError, RuntimeError, PeerError, Died) as error:
                self._failed(name, "", "start", error)

    def _failed(self, peer, kind, what, error):
        self.record.failed(peer, kind, what, str(error))
        self.say(f"    {peer} {kind}: {what}: {error}")

    def _group(self, title, group, end):
        begin = time.monotonic()
        entries = []
        for worker in self.workers.values():
            entries += self._load(worker, group, title)
        if self.ours:
            entries += self._our_entries(group)
        loaded = time.monotonic()
        slowest = 0
        for at in range(self.effort.rounds if entries else 0):
            # However late it is: rounds that took less time than the loading are worth it.
            now = time.monotonic()
            if at and now + slowest > end and now - loaded > loaded - begin:
                self.say(f"{title}: no time for round {at + 1}")
                break
            start = time.monotonic()
            # Every other round goes backwards: a drift of the machine meets all alike.
            for entry in list(entries if at % 2 == 0 else reversed(entries)):
                self.say(f"{title}: round {at + 1}/{self.effort.rounds}: {entry.title}")
                if not self._measure(entry, group, at):
                    entries = [other for other in entries if not other.lost_with(entry)]
            slowest = max(slowest, time.monotonic() - start)
            self.record.save()
        for worker in self.workers.values():
            try:
                worker.ask({"do": "drop"})
            except (Died, PeerError):
                self._restart(worker)

    def _restart(self, worker):
        try:
            worker.start()
        except (Died, PeerError, OSError) as error:
            self._failed(worker.name, "", "start again", error)

    def _load(self, worker, group, title):
        """Entries for what the worker could load; what kills it is left out and the rest loaded again."""
        kinds = [kind for kind in self.kinds[worker.name][group.section] if kind.precision in group.precisions]
        while True:
            entries = []
            for kind in kinds:
                self.say(f"{title}: loading {worker.name} {kind.name}")
                try:
                    entries.append(self._load_kind(worker, kind, group))
                except PeerError as error:
                    self._failed(worker.name, kind.name, group.title, error)
                except Died as error:
                    self._failed(worker.name, kind.name, group.title, error)
                    self._restart(worker)
                    kinds.remove(kind)
                    break
            else:
                return entries

    def _load_kind(self, worker, kind, group):
        if group.section == "model":
            worker.ask({"do": "model", "kind": kind.name})
            return ModelEntry(worker, kind, self.effort)
        n, k = group.shape
        request = {"n": n, "k": k, "batches": self.effort.batches, "limit_s": self.effort.limit_s}
        answer = worker.ask({"do": "linear", "kind": kind.name, **request})
        for m, seconds in answer["slow"].items():
            reason = f"left out: one call would take about {seconds:.0f} s"
            self._failed(worker.name, kind.name, f"{group.title}, batch {m}", reason)
        return LinearEntry(worker, kind, group.shape, [int(m) for m in answer["errors"]], self.effort)

    def _our_entries(self, group):
        if group.section == "model":
            weights = [name for name, precision in PRECISIONS.items() if precision in group.precisions]
            return [OurModels(self.ours, name, self.effort) for name in weights if name in self.ours.weights]
        if not self.ours.has_kernels:
            self._failed(OURS, "", group.section, "this version has no `bench-kernels`")
            return []
        if self.kernels.seconds > KERNELS_SHARE * self.effort.minutes * 60:
            return []
        return [self.kernels]

    def _measure(self, entry, group, at):
        """Whether the entry can be measured again."""
        try:
            entry.measure(self.record, at)
            return True
        except (Died, PeerError, RuntimeError, ValueError, KeyError) as error:
            self._failed(entry.peer, entry.kind, group.title, error)
            if isinstance(error, Died):
                self._restart(entry.worker)
            return False


class Entry:
    """Something that is measured once a round."""

    worker, kind = None, ""

    @property
    def title(self):
        return f"{self.peer} {self.kind}"

    def lost_with(self, other):
        """Whether it cannot go on when the other has failed: it is that, or was in a worker that is gone."""
        return self is other or (self.worker is not None and self.worker is other.worker)


class LinearEntry(Entry):
    def __init__(self, worker, kind, shape, batches, effort):
        self.worker, self.peer, self.kind = worker, worker.name, kind.name
        self.precision, self.shape, self.batches, self.effort = kind.precision, shape, batches, effort
        self.read_bytes = kind.read_bytes(*shape)

    def measure(self, record, _):
        n, k = self.shape
        for m in self.batches:
            request = {"kind": self.kind, "m": m, "seconds": self.effort.slice_s}
            answer = self.worker.ask({"do": "time_linear", **request})
            key = {"peer": self.peer, "kind": self.kind, "precision": self.precision, "n": n, "k": k, "m": m}
            record.sample("linear", key, "us", answer["us"], read_bytes=self.read_bytes)


class ModelEntry(Entry):
    def __init__(self, worker, kind, effort):
        self.worker, self.peer, self.kind = worker, worker.name, kind.name
        self.precision, self.effort = kind.precision, effort

    def measure(self, record, _):
        limit = {"kind": self.kind, "limit_s": self.effort.limit_s}
        answer = self.worker.ask({"do": "prefill", "tokens": self.effort.prompt_tokens, **limit})
        self._sample(record, "prefill", 1, answer["tokens"], answer["seconds"])
        for batch in self.effort.decode_batches:
            answer = self.worker.ask({"do": "decode", "batch": batch, "steps": self.effort.new_tokens, **limit})
            self._sample(record, "decode", batch, answer["steps"], answer["seconds"])

    def _sample(self, record, test, batch, tokens, seconds):
        key = {"peer": self.peer, "kind": self.kind, "precision": self.precision, "test": test, "batch": batch}
        record.sample("model", key, "tokens_per_s", batch * tokens / seconds, tokens=tokens)


class OurModels(Entry):
    peer = OURS

    def __init__(self, ours, weights, effort):
        self.ours, self.kind, self.effort = ours, weights, effort

    def measure(self, record, _):
        effort = self.effort
        samples, bandwidths = self.ours.model(
            self.kind, effort.decode_batches, effort.prompt_tokens, effort.new_tokens
        )
        for sample in samples:
            speed, tokens = sample.pop("tokens_per_s"), sample.pop("tokens")
            record.sample("model", {"peer": OURS, **sample}, "tokens_per_s", speed, tokens=tokens)
        for bandwidth in bandwidths:
            record.bandwidth(bandwidth)


class OurKernels(Entry):
    """All shapes are measured in one run of the program: it has one in the first round of every group."""

    peer, kind = OURS, "kernels"

    def __init__(self, ours, effort):
        self.ours, self.effort, self.seconds = ours, effort, 0

    def measure(self, record, at):
        if at > 0:
            return
        start = time.monotonic()
        samples, bandwidth = self.ours.kernels(self.effort.shapes, self.effort.batches)
        self.seconds += time.monotonic() - start
        for sample in samples:
            us, notes = sample.pop("us"), {name: sample.pop(name) for name in ("kernel", "read_bytes")}
            record.sample("linear", {"peer": OURS, **sample}, "us", us, **notes)
        if bandwidth:
            record.bandwidth(bandwidth)


def default_threads():
    """Physical cores that this process may use."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else cpu)
    return len(cores)


def cpu():
    """What /proc/cpuinfo says of the first CPU: name, family and model, and the features that matter here."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = re.compile(r"avx|amx|fma$|f16c|bmi2")
    flags = [flag for flag in fields.get("flags", "").split() if wanted.match(flag)]
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    return {"name": fields.get("model name", "unknown"), "family": family, "model": model, "flags": flags}


def folder(options, machine):
    """A new folder for the results: what is committed goes to bench/results, a quick look elsewhere."""
    if options.output:
        return pathlib.Path(options.output)
    name = re.sub(r"\(r\)|\(tm\)|\bcpu\b|@.*", "", machine["name"].lower())
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    name = f"{datetime.date.today()}-{name}-f{machine['family']}m{machine['model']}"
    if options.isa != "native":
        name += f"-{options.isa}"
    parent = work.BUILD / "results" if options.quick else REPOSITORY / "bench" / "results"
    names = [name, *(f"{name}-{count}" for count in range(2, 1000))]
    return parent / next(name for name in names if not (parent / name).exists())


def comma_list(known):
    def parse(text):
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def options():
    parser = argparse.ArgumentParser(prog="bench/peers/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes, batches and rounds, into a scratch folder")
    parser.add_argument("--isa", choices=["native", "avx2"], default="native", help="avx2 limits everybody to it")
    names = [OURS, *PEERS]
    parser.add_argument("--only", type=comma_list(names), default=names, metavar="LIST", help=",".join(names))
    sections = ["model", "linear"]
    parser.add_argument("--work", type=comma_list(sections), default=sections, metavar="LIST", help=",".join(sections))
    parser.add_argument("--threads", type=int, default=default_threads(), help="[default: physical cores]")
    parser.add_argument("--rounds", type=int, help=f"[default: {FULL.rounds}, or {QUICK.rounds} with --quick]")
    parser.add_argument("--minutes", type=float, help=f"[default: {FULL.minutes}, or {QUICK.minutes} with --quick]")
    parser.add_argument("--sparamx", default=str(REPOSITORY / "target/release/sparamx"), help="the program to measure")
    parser.add_argument("--output", metavar="DIR", help="[default: bench/results/DATE-CPU]")
    parser.add_argument("--resume", action="store_true", help="go on in the folder given by --output")
    parsed = parser.parse_args()
    if parsed.threads < 1 or parsed.rounds is not None and parsed.rounds < 1:
        parser.error("threads and rounds are 1 at least")
    if parsed.resume and not parsed.output:
        parser.error("--resume needs the folder: --output DIR")
    return parsed


def main():
    chosen = options()
    machine = cpu()
    effort = QUICK if chosen.quick else FULL
    changes = {name: getattr(chosen, name) for name in ("rounds", "minutes") if getattr(chosen, name)}
    effort = Effort(**{**vars(effort), **changes})
    out = folder(chosen, machine)
    command = shlex.join(["bench/peers/run", *sys.argv[1:]])
    settings = {"isa": chosen.isa, "threads": chosen.threads, "quick": chosen.quick}
    record = Record(out, chosen.resume, {"cpu": machine, "command": command, **settings})
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): the figures will be noisy", file=sys.stderr)
    try:
        Driver(chosen, effort, record).run()
    except KeyboardInterrupt:
        print(f"stopped; go on with --resume --output {out}", file=sys.stderr)
    record.save()
    report.write(out)
    print(out)


if __name__ == "__main__":
    main()
