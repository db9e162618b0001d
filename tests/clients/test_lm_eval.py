"""lm-evaluation-harness through the server, and `sparamx eval` on the same questions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import questions
from conftest import ROOT, SMOLLM2, SPARAMX

HERE = Path(__file__).resolve().parent
# As many digits as `sparamx eval` and the harness print, and more.
DIGITS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm-eval")
    questions.write(folder / "questions.jsonl")
    for file in (HERE / "lm_eval_tasks").iterdir():
        shutil.copy(file, folder)
    return folder


def harness(folder, server, kind, path, task, limit, begin="", **arguments):
    """The harness's results and samples. It runs from the command line, as its users run it."""
    arguments = {
        "model": server.model, "base_url": server.url + path, "num_concurrent": 8, "max_retries": 1, "timeout": 300, **arguments,
    }
    if server.key:
        arguments["auth_token"] = server.key
    out = folder / f"{server.model.replace('/', '-')}-{task}"
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", kind, "--tasks", task, "--include_path", str(folder),
        "--limit", str(limit), "--output_path", str(out), "--log_samples", "--batch_size", "1",
        "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()),
    ]
    if kind == "local-chat-completions":
        command.append("--apply_chat_template")
    environment = os.environ | {
        "OPENAI_API_KEY": server.key or "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
        "SPARAMX_TEST_BEGIN": begin, "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text())["results"][task], sorted(lines, key=lambda line: line["doc_id"])


def own(folder, model, limit):
    command = [SPARAMX, "eval", str(model), str(folder / "questions.jsonl"), "--limit", str(limit), "--json", "--samples"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    return json.loads(done.stdout)["results"][0]


def compare(folder, server, model, limit, context, begin):
    expected = own(folder, model, limit)
    results, samples = harness(
        folder, server, "local-completions", "/v1/completions", "stories", limit, begin,
        tokenizer_backend="auto", max_length=context,
    )
    assert len(samples) == limit == expected["questions"]
    for sample, likelihoods in zip(samples, expected["log_likelihoods"]):
        found = [float(answer[0][0]) for answer in sample["resps"]]
        shown = [[f"{value:.{DIGITS}f}" for value in values] for values in (found, likelihoods)]
        assert shown[0] == shown[1], sample["doc"]
    for metric in ("acc", "acc_norm"):
        assert results[f"{metric},none"] == pytest.approx(expected[metric], abs=1e-12), metric
    return expected


def test_log_likelihoods_are_those_of_sparamx_eval(folder, tiny):
    model = ROOT / "models/stories-5m-50"
    expected = compare(folder, tiny, model, questions.COUNT, 512, begin="<s>")
    # A model of stories for children knows a little of how sentences go on.
    assert expected["acc"] > 0.27


def test_they_are_on_a_model_with_another_tokenizer(folder, smol):
    compare(folder, smol, SMOLLM2, 12, 2048, begin="")


def test_chat(folder, smol):
    results, samples = harness(folder, smol, "local-chat-completions", "/v1/chat/completions", "chat", 4)
    assert len(samples) == 4 and all(sample["resps"][0][0].strip() for sample in samples)
