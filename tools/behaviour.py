#!/usr/bin/env python3
"""Writes down what a build of sparamx does, to prove that a change of structure changes nothing.

    tools/behaviour.py record target/release/sparamx before.json [MODEL ...]
    tools/behaviour.py compare before.json after.json

Recorded are, for the shipped models, those that `compress` makes of them, and any other MODEL: token ids, perplexity to the last
digit (a sum of logits of the whole text), at each level of vector instructions and with one to three threads, dense and sparse
KV cache; the bytes that `compress` and `export` write; `inspect --json`; exit status and text of wrong usage and bad files.
It takes about ten minutes on two cores. What depends on time (rates, which weights are expanded) is left out.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
TEXT = ROOT / "LICENSE-APACHE"
EVAL = next(ROOT.glob("crates/*/tests/fixtures/**/piqa.jsonl")).parent
LEVELS = ["portable", "avx2", "avx512", "amx"]
# A key with one of these in its name holds a time, or what was decided by times.
TIMES = re.compile(r"per_s|_us|_ms|seconds|time|reason|expanded|resident|drafted|accepted")

# How many draft tokens run beside a token depends on time, and with AMX the bits of a row depend on the number of rows.
ALONE = ["--no-speculation"]

COMPRESSED = {
    "magnitude-bf16": ["--sparsity", "0.5"],
    "magnitude-int8": ["--sparsity", "0.5", "--weights", "int8"],
    "magnitude-int4": ["--sparsity", "0.6", "--weights", "int4", "--group", "32", "--reconstruct", "on"],
    "dense-int8": ["--weights", "int8"],
    "dense-int4": ["--weights", "int4"],
    "pattern": ["--pattern", "2:4"],
    "wanda-owl": ["--method", "wanda", "--sparsity", "0.5", "--allocate", "owl"],
    "sparsegpt-int4": ["--method", "sparsegpt", "--sparsity", "0.5", "--weights", "int4"],
    "sparsegpt-int8": ["--method", "sparsegpt", "--sparsity", "0.5", "--weights", "int8", "--skip", "model.layers.0.self_attn.q_proj"],
}
CALIBRATED = ["--calibration", str(TEXT), "--calibration-windows", "4", "--calibration-tokens", "128"]

WRONG = [
    [],
    ["run", "/no/such/model", "x y"],
    ["run", "{model}", "x y", "--temperature", "-1"],
    ["run", "{model}", "x y", "--top-p", "2"],
    ["run", "{model}", "x y", "--kv-sparsity", "1.5"],
    ["run", "{model}", "x y", "--kv-sparsity", "0.3,0.4,0.5"],
    ["run", "{model}", "x y", "--kv-type", "int3"],
    ["run", "{model}", "x y", "-n", "0"],
    ["run", "{model}", "x y", "-n", "100000", "--temperature", "0"],
    ["run", "{model}", "x y", "-t", "0"],
    ["run", "{model}", "x y", "--kv-memory", "1K"],
    ["run", "{model}", "x y", "--kv-memory", "much"],
    ["run", "{model}", "x y", "--chat-template", "/no/such/file"],
    ["run", "{model}", "x y", "--no-such-flag"],
    ["run", "{torn}", "x y"],
    ["run", "{noconfig}", "x y"],
    ["run", "{unknown}", "x y"],
    ["run", "{badshape}", "x y"],
    ["run", "{tornpacked}", "x y"],
    ["run", "{badpacked}", "x y", "--temperature", "0"],
    ["perplexity", "{model}", "/no/such/text"],
    ["perplexity", "{model}", "{text}", "--ctx", "1"],
    ["perplexity", "{model}", "{text}", "--ctx", "100000"],
    ["eval", "{model}", "{text}"],
    ["eval", "{model}", "{eval}/arc.jsonl", "--task", "no"],
    ["compress", "{model}", "-o", "{tmp}/new", "--sparsity", "1.5"],
    ["compress", "{model}", "-o", "{tmp}/new", "--pattern", "5:4"],
    ["compress", "{model}", "-o", "{tmp}/new", "--weights", "int3"],
    ["compress", "{model}", "-o", "{tmp}/new", "--weights", "int4", "--group", "33"],
    ["compress", "{model}", "-o", "{tmp}/new", "--method", "none"],
    ["compress", "{model}", "-o", "{tmp}/new", "--skip", "q_prj"],
    ["compress", "{packed}", "-o", "{tmp}/new", "--sparsity", "0.5"],
    ["compress", "{model}", "-o", "{model}", "--sparsity", "0.5"],
    ["compress", "{model}", "-o", "{tmp}/new", "--method", "wanda", "--sparsity", "0.5", "--calibration", "/no/such"],
    ["export", "{model}", "-o", "{model}", "--format", "dense"],
    ["export", "{model}", "-o", "{tmp}/new", "--format", "gguf"],
    ["inspect", "{torn}"],
    ["inspect"],
    ["bench", "{model}", "--shape", "llama3-8b"],
    ["bench", "--shape", "no-such-shape"],
    ["report", "{packed}", "--text", "{text}", "-o", "{tmp}/new"],
    ["kv-report", "{model}", "--text", "{text}", "-o", "{tmp}/new", "--kv-sparsities", "2"],
]


def bad_models(tmp):
    """Folders that cannot be used, by the name that WRONG calls them."""
    plain, packed = MODELS / "stories-5m", MODELS / "stories-5m-50"
    made = {}
    for name, source in [("torn", plain), ("noconfig", plain), ("unknown", plain), ("badshape", plain),
                         ("tornpacked", packed), ("badpacked", packed)]:
        made[name] = shutil.copytree(source, tmp / name)
    for name in ["torn", "tornpacked"]:
        file = made[name] / "model.safetensors"
        os.truncate(file, file.stat().st_size - 1000)
    (made["noconfig"] / "config.json").unlink()
    for name, key, value in [("unknown", "model_type", "mamba"), ("badshape", "hidden_size", 264)]:
        file = made[name] / "config.json"
        config = json.loads(file.read_text())
        config[key] = value
        if key == "model_type":
            config["architectures"] = ["MambaForCausalLM"]
        file.write_text(json.dumps(config))
    file = made["badpacked"] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    return made


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if not TIMES.search(key)}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


class Recorder:
    def __init__(self, binary, tmp):
        self.binary, self.tmp, self.found = binary, tmp, {}
        self.levels = LEVELS[: LEVELS.index(json.loads(self.call(["doctor", "--json"]).stdout)["isa"]) + 1]

    def call(self, args, **env):
        unset = {"SPARAMX_ISA", "SPARAMX_KERNEL", "HF_TOKEN"}
        base = {key: value for key, value in os.environ.items() if key not in unset}
        return subprocess.run([str(self.binary), *map(str, args)], env=base | env | {"HF_HUB_OFFLINE": "1"},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.tmp)

    def plain(self, text):
        return text.replace(str(self.tmp), "TMP").replace(str(EVAL), "EVAL").replace(str(ROOT.parent), "PARENT")

    def json(self, name, args, **env):
        done = self.call([*args, "--json"], **env)
        out = without_times(json.loads(self.plain(done.stdout))) if done.returncode == 0 else self.plain(done.stderr)
        self.found[name] = {"status": done.returncode, "out": out}
        print(name, flush=True)

    def texts(self, model, name, long):
        prompt = "Once upon a time, a little dog"
        for level in self.levels:
            for threads in ["1", "2", "3"] if long else ["2"]:
                where, same = f"{name} {level} {threads}", ["-t", threads]
                self.json(f"{where} greedy", ["run", model, prompt, "-n", "60", "--temperature", "0", *ALONE, *same], SPARAMX_ISA=level)
                self.json(f"{where} perplexity", ["perplexity", model, TEXT, "--ctx", "256", *same], SPARAMX_ISA=level)
            self.json(f"{name} {level} sampled", ["run", model, prompt, "-n", "120", "--seed", "7", "--repetition-penalty",
                                                  "1.1", "--min-p", "0.02", *ALONE], SPARAMX_ISA=level)
            for kind, rule in [("bf16", "query"), ("int8", "token"), ("int8", "magnitude")] if long else [("int8", "query")]:
                kv = ["--kv-sparsity", "0.3,0.5", "--kv-type", kind, "--kv-rule", rule, "--kv-sinks", "64"]
                self.json(f"{name} {level} kv {kind} {rule}", ["perplexity", model, TEXT, "--ctx", "256", *kv], SPARAMX_ISA=level)
        self.json(f"{name} inspect", ["inspect", model], SPARAMX_ISA="portable")

    def files(self, name, args, output):
        done = self.call(args)
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(output.glob("*"))}
        self.found[f"files {name}"] = {"status": done.returncode, "files": hashes}
        print(name, flush=True)

    def wrong(self, names):
        for args in WRONG:
            done = self.call([arg.format(**names) for arg in args])
            out = {"status": done.returncode, "stdout": self.plain(done.stdout), "stderr": self.plain(done.stderr)}
            self.found["wrong " + " ".join(args)] = out


def record(binary, target, models):
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        recorder = Recorder(Path(binary).resolve(), tmp)
        names = bad_models(tmp) | {"tmp": tmp, "text": TEXT, "eval": EVAL, "model": MODELS / "stories-5m",
                                   "packed": MODELS / "stories-5m-50"}
        recorder.wrong(names)
        for model in [MODELS / "stories-5m", MODELS / "stories-5m-50", *map(Path, models)]:
            recorder.texts(model.resolve(), model.name, long=True)
        for name, options in COMPRESSED.items():
            output = tmp / name
            calibrated = CALIBRATED if "--method" in options else []
            recorder.files(name, ["compress", MODELS / "stories-5m", "-o", output, *options, *calibrated], output)
            recorder.texts(output, name, long=False)
            for form in ["dense", "sparse-bitmask"]:
                exported = tmp / f"{name}-{form}"
                recorder.files(exported.name, ["export", output, "-o", exported, "--format", form], exported)
        recorder.json("eval", ["eval", MODELS / "stories-5m", *sorted(EVAL.glob("*.jsonl"))])
        recorder.json("kernels", ["inspect", "--kernels"])
        Path(target).write_text(json.dumps(recorder.found, indent=1) + "\n")


def compare(before, after):
    before, after = (json.loads(Path(file).read_text()) for file in (before, after))
    different = [name for name in before | after if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}\n  before {json.dumps(before.get(name))[:2000]}\n  after  {json.dumps(after.get(name))[:2000]}")
    print(f"{len(before | after) - len(different)} equal, {len(different)} different")
    return 1 if different else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", binary, target, *models]:
            record(binary, target, models)
        case ["compare", before, after]:
            sys.exit(compare(before, after))
        case _:
            sys.exit(__doc__)
