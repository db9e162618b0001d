"""Sparse linear layers and a sparse KV cache for PyTorch models on CPUs.

``sparamx.torch`` is the part for PyTorch; importing ``sparamx`` alone needs no PyTorch.
"""

from ._native import __version__, isa

__all__ = ["__version__", "isa"]
