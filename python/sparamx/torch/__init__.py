"""Sparse linear layers for any PyTorch model.

    >>> import sparamx.torch
    >>> report = sparamx.torch.sparsify(model, sparsity=0.5)
    >>> print(report)

See ``docs/python.md`` of the project for a tutorial.
"""

from .checkpoint import from_pretrained, load, save
from .linear import PackedWeight, SparseLinear
from .sparsify import Layer, Report, sparsify

__all__ = [
    "Layer",
    "PackedWeight",
    "Report",
    "SparseLinear",
    "from_pretrained",
    "load",
    "save",
    "sparsify",
]
