"""The operator ``sparamx::linear``.

Its weight is the tensors that files have too, so programs that are compiled or exported carry it like any other. What Rust
needs beside them, a checked weight, is looked up by the tensor of values; tensors not known yet are checked and copied first.
"""

from __future__ import annotations

import os
import weakref

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, register_autograd, register_fake

from .. import _native
from ._tensors import FLOATS, describe, name, threads

os.register_at_fork(after_in_child=_native.after_fork)

_WEIGHT = "Tensor? mask, Tensor values, Tensor? offsets, Tensor? scale"

_library = Library("sparamx", "DEF")
_library.define(
    f"linear(Tensor x, {_WEIGHT}, Tensor? bias, int n, int k) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"linear_grad(Tensor grad, {_WEIGHT}, int n, int k) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


#: Mask, values, offsets and scale.
_Weight = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]
#: Mask, offsets and scale.
_Others = tuple[Tensor | None, Tensor | None, Tensor | None]
#: By the id of the tensor of values: that tensor, the others, the weight, the version of values and mask, and whether they are
#: its memory.
_known: dict[int, tuple[weakref.ref[Tensor], _Others, _native.Weight, int, bool]] = {}


def remember(values: Tensor, others: _Others, weight: _native.Weight, shared: bool) -> None:
    """Makes a weight that of its tensors, values and mask, offsets, scale, whose memory is the weight's own if ``shared``."""
    key = id(values)
    gone = weakref.ref(values, lambda _: _known.pop(key, None))
    _known[key] = (gone, others, weight, _version(values, others[0]), shared)


def _version(values: Tensor, mask: Tensor | None) -> int:
    if values.is_inference():
        return 0
    return values._version + (0 if mask is None else mask._version)


def weight_of(
    mask: Tensor | None,
    values: Tensor,
    offsets: Tensor | None,
    scale: Tensor | None,
    n: int,
    k: int,
) -> _native.Weight:
    """The weight of these tensors.

    Raises:
        ValueError: if they are none of that shape, or were changed, or require grad.
    """
    if values.requires_grad:
        raise ValueError("a packed weight is frozen: its values cannot require grad")
    found = _known.get(id(values))
    if found is not None and found[0]() is values:
        _, others, weight, version, shared = found
        same = others[0] is mask and others[1] is offsets and others[2] is scale
        if same and (weight.n, weight.k) != (n, k):
            raise ValueError(f"the packed weight is {weight.n} x {weight.k}, not {n} x {k}")
        if same and version == _version(values, mask):
            return weight
        if shared and version != _version(values, others[0]):
            raise ValueError("the tensors of a packed weight were changed in place; they are read-only")
    parts = {".mask": mask, ".values": values, ".offsets": offsets, ".scale": scale}
    present = {suffix: tensor.contiguous() for suffix, tensor in parts.items() if tensor is not None}
    for suffix, tensor in present.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"tensor {suffix} of a packed weight is on {tensor.device}, and must be on the CPU")
    described = [(suffix, *describe(tensor)) for suffix, tensor in present.items()]
    weight = _native.Weight.from_parts(n, k, described, threads())
    remember(values, (mask, offsets, scale), weight, shared=False)
    return weight


def _check(x: Tensor, features: int, what: str) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"{what} is {name(x.dtype)}; a sparse linear layer takes float32, bfloat16 and float16")
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(f"{what} has shape {list(x.shape)}; its last dimension should be {features}")


def multiply(x: Tensor, weight: _native.Weight, bias: Tensor | None) -> Tensor:
    """``x W^T + bias`` on the CPU."""
    n, k = weight.n, weight.k
    _check(x, k, "the input")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"the bias has shape {list(bias.shape)} and should have [{n}]")
    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    rows = y.numel() // n
    if rows == 0:
        return y
    flat = x.resolve_neg().reshape(rows, k)
    if flat.stride(1) != 1 or (rows > 1 and flat.stride(0) < k):
        flat = flat.contiguous()
    address, bias_dtype = 0, 0
    if bias is not None:
        if bias.dtype not in FLOATS or not bias.is_contiguous():
            bias = bias.to(torch.float32).contiguous()
        address, bias_dtype = bias.data_ptr(), FLOATS[bias.dtype]
    stride = flat.stride(0) if rows > 1 else k
    weight.multiply(flat.data_ptr(), rows, stride, address, bias_dtype, y.data_ptr(), FLOATS[x.dtype], threads())
    return y


def _linear(x, mask, values, offsets, scale, bias, n, k):
    return multiply(x, weight_of(mask, values, offsets, scale, n, k), bias)


def _linear_grad(grad, mask, values, offsets, scale, n, k):
    weight = weight_of(mask, values, offsets, scale, n, k)
    return grad @ unpack(weight, grad.dtype)


def unpack(weight: _native.Weight, dtype: torch.dtype) -> Tensor:
    """The weight with its zeros, ``[n, k]``."""
    dense = torch.empty((weight.n, weight.k), dtype=dtype)
    weight.unpack(dense.data_ptr(), FLOATS[dtype])
    return dense


def linear(x: Tensor, weight: _Weight, bias: Tensor | None, n: int, k: int) -> Tensor:
    """``x W^T + bias`` with everything that PyTorch may ask of it."""
    if torch.compiler.is_compiling() or not (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()):
        return torch.ops.sparamx.linear(x, *weight, bias, n, k)
    # Operators of a library have no derivatives in forward mode (they would be zero), nor under torch.func.
    y = _Map.apply(
        x,
        lambda x: torch.ops.sparamx.linear(x, *weight, None, n, k),
        lambda grad: torch.ops.sparamx.linear_grad(grad, *weight, n, k),
    )
    return y if bias is None else y + bias.to(y.dtype)


class _Map(torch.autograd.Function):
    """A linear map of the last dimension; its transpose comes along."""

    @staticmethod
    def forward(x, there, back):
        return there(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx, grad):
        return _Map.apply(grad, ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return _Map.apply(tangent, ctx.there, ctx.back)

    @staticmethod
    def vmap(info, in_dims, x, there, back):
        return _Map.apply(x.movedim(in_dims[0], 0), there, back), 0


_library.impl("linear", _linear, "CPU")
_library.impl("linear_grad", _linear_grad, "CPU")


@register_fake("sparamx::linear")
def _(x, mask, values, offsets, scale, bias, n, k):
    _check(x, k, "the input")
    return x.new_empty((*x.shape[:-1], n))


@register_fake("sparamx::linear_grad")
def _(grad, mask, values, offsets, scale, n, k):
    return grad.new_empty((*grad.shape[:-1], k))


def _setup_context(ctx, inputs, output):
    _, mask, values, offsets, scale, _, n, k = inputs
    ctx.weight = (mask, values, offsets, scale)
    ctx.sizes = (n, k)


def _backward(ctx, grad):
    n, k = ctx.sizes
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.sparamx.linear_grad(grad, *ctx.weight, n, k)
    if ctx.needs_input_grad[5]:
        grad_bias = grad.reshape(-1, n).sum(0)
    return grad_x, None, None, None, None, grad_bias, None, None


register_autograd("sparamx::linear", _backward, setup_context=_setup_context)


def _setup_context_grad(ctx, inputs, output):
    _, *ctx.weight = inputs


def _backward_grad(ctx, grad):
    *weight, n, k = ctx.weight
    return torch.ops.sparamx.linear(grad, *weight, None, n, k), *[None] * 6


register_autograd("sparamx::linear_grad", _backward_grad, setup_context=_setup_context_grad)
