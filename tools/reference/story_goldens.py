"""Prints what crates/engine/tests/stories.rs and crates/evaluate/tests/perplexity.rs expect of a trained model, in float64.

    story_goldens.py MODEL TOKENS PROMPT      the greedy text
    story_goldens.py MODEL FILE               the negative log likelihood of a text, in nats, and its tokens

A greedy text comes with the least distance between the two best logits of a step: what rounds to bf16 must not bridge it.
"""

import pathlib
import sys

import numpy as np
from llama64 import Llama
from tokenizers import Tokenizer


def greedy(model, tokens, prompt, count):
    ids, margin = tokens.encode(prompt).ids, np.inf
    start = len(ids)
    for _ in range(count):
        logits = model.logits(np.array(ids))[-1]
        second, first = np.argsort(logits)[-2:]
        margin = min(margin, logits[first] - logits[second])
        ids.append(int(first))
    print(tokens.decode(ids[start:]))
    print(f"least distance: {margin:.3f}")


def likelihood(model, tokens, text):
    ids = tokens.encode(text).ids
    logits = model.logits(np.array(ids[:-1]))
    log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nats = log_sums - logits[np.arange(len(ids) - 1), ids[1:]]
    print(f"{nats.sum():.4f} nats over {len(nats)} tokens, perplexity {np.exp(nats.mean()):.4f}")


def main(folder, *rest):
    model = Llama(folder := pathlib.Path(folder))
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if len(rest) == 2:
        greedy(model, tokens, rest[1], int(rest[0]))
    else:
        likelihood(model, tokens, pathlib.Path(rest[0]).read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
