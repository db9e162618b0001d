"""Sparse language models on CPUs: text from a model, and sparse linear layers and a sparse KV cache for PyTorch.

:class:`LLM` generates. ``sparamx.torch`` is the part for PyTorch; importing ``sparamx`` alone needs no PyTorch.
"""

from ._native import __version__, isa
from .llm import LLM, CompletionOutput, RequestOutput, SamplingParams, TokenLogprob

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "TokenLogprob", "__version__", "isa"]
