"""Layers with packed weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from . import _ops
from ._stand_in import StandIn
from ._tensors import describe, name, threads, view
from ._transformers import guard

#: Suffixes of the tensors of a packed weight, in files and in a state dict.
PARTS = ("mask", "values", "offsets", "scale")


class PackedWeight(StandIn, nn.Module):
    """A packed weight ``[n, k]``: a bitmap and the numbers that are not zero, or quantized numbers without a bitmap.

    Its tensors are buffers, named as in packed files: ``mask``, ``values``, ``offsets``, ``scale``, of which some formats lack
    some. They are read-only, stay on the CPU, and keep their types when a model's dtype is changed.

    Code that takes the weight of a layer for a tensor gets what it asks for: shape and type, products by
    ``torch.nn.functional.linear``, and a dense copy with a warning where nothing else will do.
    """

    mask: Tensor | None
    values: Tensor | None
    offsets: Tensor | None
    scale: Tensor | None

    def __init__(self, weight: _native.Weight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        #: That of the dense weight that it stands for, whatever the packed numbers are.
        self.dtype = dtype
        self.n, self.k = weight.n, weight.k
        self._take(weight)
        guard()

    def _take(self, weight: _native.Weight) -> None:
        tensors = {part[1:]: view(dtype, shape, at, weight) for part, dtype, shape, at in weight.parts()}
        for part in PARTS:
            # Not register_buffer: tensors have methods of these names.
            self._buffers[part] = tensors.get(part)
        others = (tensors.get("mask"), tensors.get("offsets"), tensors.get("scale"))
        _ops.remember(tensors["values"], others, weight, shared=True)
        self.format = weight.format
        self.group_size = weight.group_size
        self.nbytes = weight.nbytes
        self.nnz = weight.nnz

    @property
    def native(self) -> _native.Weight:
        """The weight as the Rust part has it."""
        return _ops.weight_of(*self.tensors(), self.n, self.k)

    def tensors(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """The tensors as the operator takes them."""
        assert self.values is not None
        return self.mask, self.values, self.offsets, self.scale

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1.0 - self.nnz / (self.n * self.k)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight with its zeros, ``[n, k]``; quantized numbers times their scales."""
        if dtype not in _ops.FLOATS:
            raise TypeError(f"a weight unpacks to float32, bfloat16 and float16, not {name(dtype)}")
        return _ops.unpack(self.native, dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``, of the type of ``x``, or under autocast of its type."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        return _ops.linear(x, self.tensors(), bias, self.n, self.k)

    def extra_repr(self) -> str:
        return f"{self.n} x {self.k}, {self.format}, sparsity={self.sparsity:.3f}, {self.nbytes} bytes"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedWeight:
        # On the CPU, even where new tensors are made elsewhere.
        probe = fn(torch.zeros(1, dtype=self.dtype, device="cpu"))
        if probe.device.type != "cpu":
            raise ValueError(f"packed weights are on the CPU and cannot move to {probe.device}; to_dense() gives one that can")
        if probe.dtype in _ops.FLOATS:
            self.dtype = probe.dtype
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        found = {part: state_dict.get(prefix + part) for part in PARTS}
        if found["values"] is None:
            missing_keys.append(f"{prefix}values")
            return
        present = {part: tensor.contiguous() for part, tensor in found.items() if tensor is not None}
        described = [(f".{part}", *describe(tensor)) for part, tensor in present.items()]
        try:
            if any(tensor.device.type != "cpu" for tensor in present.values()):
                raise ValueError("its tensors must be on the CPU")
            self._take(_native.Weight.from_parts(self.n, self.k, described, threads()))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        # It never changes, so a copy of a layer shares it.
        return PackedWeight(self.native, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes: pickle, other than torch.save, knows no tensors of unsigned numbers.
        tensors = {part: tensor for part, tensor in zip(PARTS, self.tensors(), strict=True) if tensor is not None}
        parts = {part: (name(t.dtype), list(t.shape), t.reshape(-1).view(torch.uint8)) for part, t in tensors.items()}
        return _unpickle, (self.n, self.k, parts, self.dtype)


def _unpickle(n: int, k: int, tensors: dict[str, Any], dtype: torch.dtype) -> PackedWeight:
    parts = [(f".{part}", kind, shape, memory.data_ptr()) for part, (kind, shape, memory) in tensors.items()]
    return PackedWeight(_native.Weight.from_parts(n, k, parts, threads()), dtype)


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with a packed weight, for inference and for training what lies before it.

    Takes and gives float32, bfloat16 and float16. The weight is frozen; gradients flow to the input and the bias.
    """

    in_features: int
    out_features: int
    weight: PackedWeight

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.n, weight.k
        self.weight = weight
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        sparsity: float | None = 0.5,
        *,
        method: str = "magnitude",
        weights: str = "bf16",
        group_size: int = 64,
    ) -> SparseLinear:
        """A layer like ``linear``, pruned and packed. ``sparsity=None`` keeps the zeros that are there. Hooks stay with ``linear``.

        Raises:
            TypeError: if it is no linear layer, or its weight no float32, bfloat16 or float16.
            ValueError: if its weight is not on the CPU, not finite, or computed from other tensors; for a sparsity, method or
                weights that do not exist; and if bf16 weights have too few zeros for a bitmap to pay.
        """
        check_linear(linear, "the layer")
        packed, _ = pack(linear.weight, sparsity, method=method, weights=weights, group_size=group_size)
        if packed is None:
            raise ValueError("the weight has too few zeros: packed as bf16 it would be larger than it is")
        return cls(packed, linear.bias).train(linear.training)

    @classmethod
    def in_place(cls, linear: nn.Linear, weight: PackedWeight) -> SparseLinear:
        """Turns a layer itself into a sparse one: hooks, bias, mode and attributes stay, and whoever holds the layer has it."""
        del linear.weight
        linear.__class__ = cls  # type: ignore[assignment]
        sparse: Any = linear
        sparse.weight = weight
        return sparse

    def to_dense(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The dense layer with the same zeros."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        dense.weight = nn.Parameter(self.weight.to_dense(dtype))
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().to(dtype))  # type: ignore[operator]
        dense.train(self.training)  # type: ignore[operator]
        return dense

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.linear(input, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def check_linear(linear: nn.Module, what: str) -> None:
    """Whether a layer can be packed.

    Raises:
        TypeError, ValueError: as :meth:`SparseLinear.from_linear`.
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{what} is a {type(linear).__name__}, not a torch.nn.Linear")
    weight = linear.weight
    if "weight" not in linear._parameters:
        raise ValueError(f"the weight of {what} is computed from other tensors; remove its parametrization or pruning first")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{what} has no weight yet: call the model once first")
    if type(weight) not in (Tensor, nn.Parameter):
        raise TypeError(f"the weight of {what} is a {type(weight).__name__}: that of another library cannot be packed")
    if weight.device.type != "cpu":
        raise ValueError(f"the weight of {what} is on device {weight.device}; move the model to the CPU first")
    if weight.dtype not in _ops.FLOATS:
        raise TypeError(f"the weight of {what} is {name(weight.dtype)}; float32, bfloat16 and float16 can be packed")
    if weight.numel() == 0:
        raise ValueError(f"the weight of {what} has shape {list(weight.shape)}: there is nothing to pack")
    if not torch.isfinite(weight).all():
        raise ValueError(f"the weight of {what} has numbers that are not finite")


def check_options(sparsity: float | None, method: str, weights: str, group_size: int) -> None:
    """Raises ValueError for options that do not exist."""
    if sparsity is not None and not (isinstance(sparsity, (int, float)) and 0 <= sparsity < 1):
        raise ValueError(f"sparsity={sparsity!r}: a share of at least 0 and below 1, or None to keep the zeros that are there")
    for option, value, known in (
        ("method", method, ("magnitude", "wanda", "sparsegpt")),
        ("weights", weights, _native.WEIGHTS),
        ("group_size", group_size, _native.GROUP_SIZES),
    ):
        if value not in known:
            raise ValueError(f"{option}={value!r}: one of {', '.join(map(repr, known))}")


def pack(
    weight: Tensor,
    sparsity: float | None,
    *,
    method: str,
    weights: str,
    group_size: int,
    moments: _native.Moments | None = None,
) -> tuple[PackedWeight | None, dict[str, Any]]:
    """A weight pruned and packed, or None where bf16 would not become smaller; and what came of it."""
    check_options(sparsity, method, weights, group_size)
    if method != "magnitude" and moments is None:
        raise ValueError(f"method={method!r} needs calibration data: use sparsify(model, calibration=...)")
    rows = weight.detach().to(torch.float32).contiguous()
    n, k = rows.shape
    native, share, error, note = _native.Weight.solve(
        rows.data_ptr(),
        n,
        k,
        method=method,
        sparsity=float(sparsity or 0.0),
        numbers=weights,
        group=group_size,
        reconstruct=False,
        moments=moments,
        num_threads=threads(),
    )
    result = {"sparsity": share, "error": error, "note": note}
    if not math.isfinite(error):
        raise ValueError("the weight has numbers that are not finite")
    return (None if native.format == "dense bf16" else PackedWeight(native, weight.dtype)), result
