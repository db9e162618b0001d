"""Our own figures: short runs of `sparamx bench`, one a round."""

import json
import os
import re
import subprocess

SHAPE = "tinyllama-1.1b"
SPARSITIES = "0,0.5"
PRECISIONS = {"bf16": "16-bit", "int8": "8-bit", "int4": "4-bit"}
TIMEOUT_S = 600


class Sparamx:
    """The program, at a level of the instruction set."""

    def __init__(self, program, isa, threads):
        self.program, self.threads = program, threads
        self.environment = dict(os.environ)
        if isa != "native":
            self.environment["SPARAMX_ISA"] = isa
        help_text = self._output("bench", "--help")
        listed = r"- {0}:|possible values: .*\b{0}\b"
        self.weights = [weights for weights in PRECISIONS if re.search(listed.format(weights), help_text)]
        self.has_kernels = "-kernels" in help_text

    def version(self):
        return self._output("--version").split()[-1]

    def model(self, weights, batches, prompt_tokens, new_tokens):
        """Samples of prefill (one sequence) and of decode (all batches), and the read bandwidths of the two runs in GB/s."""
        samples, bandwidths = [], []
        prefill = ["-p", str(prompt_tokens), "-n", "0", "-b", "1"]
        decode = ["-p", "0", "-n", str(new_tokens), "-b", _list(batches)]
        for arguments in (prefill, decode):
            report = self._bench("--shape", SHAPE, "--weights", weights, "--sparsity", SPARSITIES, *arguments)
            bandwidths.append(report["read_bandwidth_gb_s"])
            for row in report["rows"]:
                samples.append(
                    {
                        "kind": _kind(row),
                        "precision": PRECISIONS[weights],
                        "test": "prefill" if row["test"].startswith("pp") else "decode",
                        "batch": row["batch"],
                        "tokens_per_s": row["tokens_per_s"],
                        "tokens": prompt_tokens if row["test"].startswith("pp") else new_tokens,
                    }
                )
        return samples, bandwidths

    def kernels(self, shapes, batches):
        """Samples of linear layers, (N, K). Of several kernels for one case the fastest counts: the plan would choose it."""
        shapes = ";".join(_list(shape) for shape in shapes)
        what = ["--shapes", shapes, "--weights", _list(self.weights), "--sparsity", SPARSITIES, "-b", _list(batches)]
        report = self._bench("--kernels", *what)
        best = {}
        for row in report["kernels"]:
            key = row["weights"], row["sparsity"], row["n"], row["k"], row["m"]
            if key not in best or row["us"] < best[key]["us"]:
                best[key] = {
                    "kind": _kind(row),
                    "precision": PRECISIONS[row["weights"]],
                    "kernel": row["kernel"],
                    "read_bytes": row["packed_gb_s"] * row["us"] * 1e3,
                    **{name: row[name] for name in ("n", "k", "m", "us")},
                }
        return list(best.values()), report.get("read_bandwidth_gb_s")

    def _bench(self, *arguments):
        return json.loads(self._output("bench", *arguments, "-t", str(self.threads), "-r", "1", "--json"))

    def _output(self, *arguments):
        try:
            done = subprocess.run(
                [self.program, *arguments],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(str(error)) from None
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(reason[-1])
        return done.stdout


def _kind(row):
    return row["weights"] + (f" {row['sparsity'] * 100:.0f} %" if row["sparsity"] else "")


def _list(values):
    return ",".join(str(value) for value in values)
