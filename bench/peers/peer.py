"""What a peer's file gives to the worker.

A file `peer_NAME.py` has a class `Peer(isa, threads)` with

- `linear_kinds`, `model_kinds`: lists of `work.Kind`;
- optionally `linear_batches`: the only batches it measures;
- `versions()`: a dict of what a reader must know to repeat the measurement;
- `linear(kind, w, copies)`: takes the weight [N, K], f32, stores it `copies` times, and returns a function from
  activations [M, K], f32, to a `Call`;
- `model(kind)`: an object with `logits(tokens)` -> [tokens, vocab], `prefill(tokens)` for that many tokens, and
  `decode(batch, steps)` -> a function that makes one step of `batch` sequences, to be called at most `steps` times.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from work import SHAPE


@dataclass
class Call:
    """One batch through a linear layer."""

    run: Callable[[int], object]  # multiplies with copy i modulo the number of copies
    result: Callable[[], np.ndarray]  # [M, N] of copy 0, after run(0)
    multiplications: int = 1  # done by one run


def token_ids(count):
    """The tokens that `sparamx bench` uses: all over the vocabulary."""
    return [index * 7919 % SHAPE.vocab for index in range(count)]
