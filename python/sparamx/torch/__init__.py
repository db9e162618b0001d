"""Sparse linear layers for any PyTorch model, and a sparse KV cache for those of Transformers.

    >>> import sparamx.torch
    >>> report = sparamx.torch.sparsify(model, sparsity=0.5)
    >>> print(report)

See ``docs/python.md`` of the project for a tutorial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint import from_pretrained, load, save
from .linear import PackedWeight, SparseLinear
from .sparsify import Layer, Report, sparsify

if TYPE_CHECKING:
    from .cache import SparseCache as SparseCache

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


def __getattr__(name: str) -> Any:
    # Not before it is asked for: everything else does without Transformers.
    if name != "SparseCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError('SparseCache needs Transformers: pip install "sparamx[transformers]"') from error
    from .cache import SparseCache

    return SparseCache


def __dir__() -> list[str]:
    return sorted([*globals(), "SparseCache"])
