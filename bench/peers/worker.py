"""Runs one peer: reads requests on standard input and answers on standard output, a JSON object a line.

    worker.py PEER ISA THREADS

It does nothing between requests, so that one worker at a time computes. Everything is checked before it is timed.
"""

import gc
import importlib
import json
import os
import sys
import time
import traceback
from statistics import median

import numpy as np

import work

# A slice of time holds so many calls at least, unless they take too long for it.
MIN_CALLS = 3
LONG_CALL = 4
LONG_FIRST_S = 1
# From this batch on the time of a call grows with the batch; below it is that of reading the weights.
COMPUTE_BOUND = 8
# Prompts that are tried until one fits the time limit.
PROMPTS = [512, 256, 128, 64]


class Worker:
    """The peer, and what it has loaded."""

    def __init__(self, peer):
        self.peer = peer
        self.calls = {}  # (kind, m) -> (call, seconds of the last call)
        self.models = {}
        self.prompts = {}  # kind -> tokens of prompt that fit the time limit

    def do_hello(self, _):
        kinds = {
            "linear": [vars(kind) for kind in self.peer.linear_kinds],
            "model": [vars(kind) for kind in self.peer.model_kinds],
        }
        return {"versions": self.peer.versions(), **kinds}

    def do_drop(self, _):
        self.calls.clear()
        self.models.clear()
        gc.collect()
        return {}

    def do_linear(self, request):
        """Loads a weight and checks it with every batch; batches of which a call would take too long are named as slow."""
        kind = self._kind(self.peer.linear_kinds, request["kind"])
        n, k = request["n"], request["k"]
        w = work.pruned(work.weight(f"linear.{n}.{k}", (n, k)), kind.sparsity)
        rows = np.random.default_rng(3).choice(n, work.CHECKED_ROWS, replace=False)
        checked_rows = w[rows]
        copies = work.copies(n, k, kind.bytes_per_weight)
        at_batch = self.peer.linear(kind.name, w, copies)
        del w
        slow, errors, last = {}, {}, None
        for m in getattr(self.peer, "linear_batches", request["batches"]):
            if m not in request["batches"]:
                continue
            if last and last[0] >= COMPUTE_BOUND and last[1] * m / last[0] > request["limit_s"]:
                slow[m] = last[1] * m / last[0]
                continue
            x = work.activations(m, k)
            call = at_batch(x)
            # The first call may compile; the second tells what a call takes, unless the first was long in any case.
            seconds = self._seconds(call.run, 0)
            if seconds < LONG_FIRST_S:
                seconds = self._seconds(call.run, 0)
            error = work.relative_error(call.result()[:, rows], x @ checked_rows.T)
            if not error <= kind.tolerance:
                raise ArithmeticError(f"batch {m}: relative error {error:.2g}, {kind.tolerance:.2g} is allowed")
            self.calls[kind.name, m] = [call, seconds]
            errors[m], last = error, (m, seconds)
        return {"errors": errors, "slow": slow, "copies": copies}

    def do_time_linear(self, request):
        """Median microseconds of a multiplication, over calls that fill a slice of time."""
        entry = self.calls[request["kind"], request["m"]]
        call, last = entry
        budget = request["seconds"]
        if last < LONG_CALL * budget:
            call.run(0)
        times, begin = [], time.perf_counter()
        while True:
            start = time.perf_counter()
            call.run(len(times) + 1)
            end = time.perf_counter()
            times.append(end - start)
            if end - begin >= (budget if len(times) >= MIN_CALLS else LONG_CALL * budget):
                break
        entry[1] = median(times)
        return {"us": median(times) / call.multiplications * 1e6, "calls": len(times)}

    def do_model(self, request):
        """Loads a model and checks its logits."""
        kind = self._kind(self.peer.model_kinds, request["kind"])
        model = self.peer.model(kind.name)
        error = work.relative_error(model.logits(work.PROMPT), work.reference_logits())
        allowed = min(kind.tolerance * work.MODEL_GROWTH, work.MODEL_CAP)
        if not error <= allowed:
            raise ArithmeticError(f"relative error of the logits {error:.2g}, {allowed:.2g} is allowed")
        self.models[kind.name] = model
        return {"errors": {"logits": error}}

    def do_prefill(self, request):
        """Seconds of one prompt; a shorter one where 512 tokens would take too long."""
        kind = request["kind"]
        model = self.models[kind]
        tokens = self.prompts.get(kind)
        warm = self._seconds(model.prefill, PROMPTS[-1])
        if tokens is None:
            fit = [n for n in PROMPTS if warm * n / PROMPTS[-1] <= request["limit_s"]]
            tokens = self.prompts[kind] = min(fit[0] if fit else PROMPTS[-1], request["tokens"])
        return {"seconds": self._seconds(model.prefill, tokens), "tokens": tokens}

    def do_decode(self, request):
        """Seconds of the steps that fit the time limit, two at least; sequences start empty."""
        steps = 0
        step = self.models[request["kind"]].decode(request["batch"], request["steps"] + 1)
        step()
        start = time.perf_counter()
        while steps < request["steps"]:
            step()
            steps += 1
            if steps >= 2 and time.perf_counter() - start > request["limit_s"]:
                break
        return {"seconds": time.perf_counter() - start, "steps": steps}

    @staticmethod
    def _seconds(function, *arguments):
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start

    @staticmethod
    def _kind(kinds, name):
        return next(kind for kind in kinds if kind.name == name)


def main():
    # Libraries print to standard output; only answers may go there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply):
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    name, isa, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    try:
        worker = Worker(importlib.import_module(f"peer_{name}").Peer(isa, threads))
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(getattr(worker, "do_" + request["do"])(request))
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
