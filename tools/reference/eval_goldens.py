"""Makes expected.json of crates/evaluate/tests/fixtures: what lm-evaluation-harness says of the questions there.

    eval_goldens.py MODEL FOLDER

Tasks, prompts, the division into tokens, choices and standard errors are the harness's own; the model is a forward pass in float64
(llama64.py). Fails if the two likeliest choices of a question are so close that rounding to bf16 could
swap them.
"""

import json
import pathlib
import sys

import lm_eval
import numpy as np
from llama64 import Llama
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers import Tokenizer

# File of questions: the harness's definition of the task.
TASKS = {
    "arc": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}
# A test allows a log likelihood to be off by this and this much a token; see crates/evaluate/tests/questions.rs.
TOLERANCE, TOLERANCE_A_TOKEN = 0.02, 0.01


class HarnessModel(TemplateLM):
    """What the harness asks of a model. All but the two methods at the end it does itself."""

    def __init__(self, folder):
        super().__init__()
        self.model = Llama(folder)
        self.tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.lengths = {}

    @property
    def eot_token_id(self):
        return self.model.config["eos_token_id"]

    @property
    def prefix_token_id(self):
        return self.model.config["bos_token_id"]

    def tok_encode(self, string, add_special_tokens=None, **_):
        return self.tokens.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(self, requests, **_):
        longest = self.model.config["max_position_embeddings"]
        results = []
        for text, context, continuation in requests:
            ids = (context + continuation)[-(longest + 1) :][:-1]
            logits = self.model.logits(np.array(ids))[-len(continuation) :]
            log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
            found = logits[np.arange(len(continuation)), continuation] - log_sums
            results.append((float(found.sum()), bool((logits.argmax(-1) == continuation).all())))
            self.lengths[text] = len(continuation)
        return results

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


def task(name, definition, folder):
    """The harness's task, with our file as its data."""
    root = pathlib.Path(lm_eval.__file__).parent / "tasks"
    config = load_yaml(root / definition)
    for field in ("tag", "test_split", "training_split", "dataset_name"):
        config.pop(field, None)
    questions = str(folder / f"{name}.jsonl")
    config |= {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": questions}}}
    return ConfigurableTask(config=config)


def main(folder, fixtures):
    model = HarnessModel(folder)
    expected = {}
    for name, definition in TASKS.items():
        questions = task(name, definition, fixtures)
        found = lm_eval.simple_evaluate(
            model=model, tasks=[questions], num_fewshot=0, task_manager=TaskManager(), verbosity="ERROR"
        )
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        figures = {key.split(",")[0]: value for key, value in found["results"][name].items() if key.startswith("acc")}
        expected[name] = figures | {"log_likelihoods": [likelihoods(model, sample) for sample in samples]}
    (fixtures / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def likelihoods(model, sample):
    """Log likelihoods of a question's choices; the two likeliest, by themselves and for each character, must be further apart
    than the test's tolerance."""
    found = [float(response[0][0]) for response in sample["resps"]]
    arguments = [tuple(argument.values()) if isinstance(argument, dict) else tuple(argument) for argument in arguments_of(sample)]
    choices = [text for _, text in arguments]
    slack = [TOLERANCE + TOLERANCE_A_TOKEN * model.lengths[pair] for pair in arguments]
    for lengths in ([1] * len(found), [len(choice) - len(" ") for choice in choices]):
        order = sorted(range(len(found)), key=lambda i: found[i] / lengths[i], reverse=True)
        first, second = order[:2]
        low = (found[first] - slack[first]) / lengths[first]
        high = (found[second] + slack[second]) / lengths[second]
        assert low > high, f"{sample['doc']}: {choices[first]!r} and {choices[second]!r} are too close: {found}"
    return found


def arguments_of(sample):
    """The pairs of context and continuation, in order; a list or an object by the version of the harness."""
    arguments = sample["arguments"]
    return [arguments[f"gen_args_{i}"] for i in range(len(arguments))] if isinstance(arguments, dict) else arguments


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
