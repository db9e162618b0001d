"""Memory of tensors, for the Rust part and back."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

#: Codes of the dtypes of activations.
FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def name(dtype: torch.dtype) -> str:
    """The name of a dtype, without the module."""
    return str(dtype).removeprefix("torch.")


def describe(tensor: torch.Tensor) -> tuple[str, list[int], int]:
    """Dtype, shape and address of a contiguous tensor in this computer's memory."""
    return name(tensor.dtype), list(tensor.shape), tensor.data_ptr()


def view(dtype: str, shape: Sequence[int], address: int, keep: Any) -> torch.Tensor:
    """The tensor at an address, without a copy. ``keep``, which owns the memory, lives as long as the tensor."""
    kind: torch.dtype = getattr(torch, dtype)
    count = math.prod(shape)
    # Not under inference mode: its tensors do not count changes, and nobody could tell that one was made.
    with torch.inference_mode(False), torch.no_grad():
        if count == 0:
            return torch.empty(tuple(shape), dtype=kind)
        memory = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
        memory.keep = keep  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=kind).view(tuple(shape))


def threads() -> int:
    """As many as PyTorch was told to use."""
    return torch.get_num_threads()


#: Where the code of this package and of PyTorch is.
_INSIDE = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))


def warn(message: str) -> None:
    """Warns about the line of the user's code that led here."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=depth)
