"""A packed weight in the place of a tensor: models read the weights of their layers in ways of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from ._tensors import warn

#: What is known of a tensor without its numbers.
_KNOWN = frozenset(
    "dim element_size is_complex is_contiguous is_floating_point is_quantized is_signed is_sparse itemsize layout ndim ndimension "
    "nelement numel size stride".split()
)
#: Attributes, not methods, that are made of the numbers.
_COMPUTED = frozenset(("T", "mT", "H", "mH", "real"))
#: What gives the tensor itself, unless it asks for another type or device. A module has methods of the same names.
_CONVERSIONS = ("to", "type", "float", "half", "bfloat16", "double", "cpu", "cuda", "contiguous", "detach")
_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv mod pow rpow matmul rmatmul neg abs lt le gt ge getitem array".split()
)
_CHANGES = "iadd isub imul itruediv ifloordiv imod ipow imatmul setitem".split()


class StandIn:
    """What code that expects a tensor ``[n, k]`` asks a packed weight for.

    What is known without the numbers is answered. ``torch.nn.functional.linear`` multiplies with the packed weight. What needs the
    numbers gets a dense copy, made anew each time, with a warning. What would change them is refused.
    """

    n: int
    k: int
    dtype: torch.dtype

    grad = None
    grad_fn = None
    is_cpu = True
    is_cuda = False
    is_leaf = True
    is_meta = False

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight with its zeros, ``[n, k]``."""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``"""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """``[n, k]``"""
        return torch.Size((self.n, self.k))

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        """False: it is frozen."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            refuse("requires_grad = True")

    @property
    def data(self) -> StandIn:
        """The weight itself."""
        return self

    @data.setter
    def data(self, value: Any) -> None:
        refuse("data = ...")

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._decoded("iteration"))

    def __eq__(self, other: object) -> Any:
        # Modules are compared by identity, tensors by element.
        if isinstance(other, (Tensor, int, float)):
            return self._decoded("==") == other
        return NotImplemented

    def __ne__(self, other: object) -> Any:
        if isinstance(other, (Tensor, int, float)):
            return self._decoded("!=") != other
        return NotImplemented

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
            if name in _KNOWN:
                return getattr(torch.empty((self.n, self.k), dtype=self.dtype, device="meta"), name)
            if name in _COMPUTED:
                return getattr(self._decoded(name), name)
            if not callable(getattr(Tensor, name)):
                raise
        if name.endswith("_"):
            return lambda *args, **kwargs: refuse(f"{name}()")
        return lambda *args, **kwargs: getattr(self._decoded(f"{name}()"), name)(*args, **kwargs)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        # A name ends so if it works in place.
        if (name.endswith("_") and not name.endswith("__")) or isinstance(kwargs.get("out"), StandIn):
            refuse(f"torch.{name}")
        args, kwargs = tree_map_only(StandIn, lambda weight: weight._decoded(f"torch.{name}"), (args, kwargs))
        return func(*args, **kwargs)

    def _decoded(self, what: str) -> Tensor:
        warn(
            f"{what} asks for the numbers of a packed weight [{self.n}, {self.k}]: each time it gets a new dense copy, which takes "
            "time and memory; changes to it are lost"
        )
        return self.to_dense(self.dtype)


def refuse(what: str) -> None:
    """Raises TypeError for a change."""
    raise TypeError(f"{what}: packed weights are read-only; to_dense() of the layer gives a dense one that can be changed")


def _linear(input: Any, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, StandIn):
        input = input._decoded("torch.linear")
    if isinstance(weight, StandIn):
        return weight.linear(input, bias)
    return functional.linear(input, weight, bias)


def _conversion(name: str) -> Callable:
    def convert(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        probe = getattr(torch.empty(0, dtype=self.dtype, device="cpu"), name)(*args, **kwargs)
        if not isinstance(probe, Tensor):
            return probe
        if (probe.dtype, probe.device) == (self.dtype, self.device):
            return self
        return getattr(self._decoded(f"{name}()"), name)(*args, **kwargs)

    return convert


def _operator(name: str) -> Callable:
    def operate(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._decoded(name), name)(*args, **kwargs)

    return operate


def _change(name: str) -> Callable:
    return lambda self, *args: refuse(name)


for _name in _CONVERSIONS:
    setattr(StandIn, _name, _conversion(_name))
for _name in _OPERATORS:
    setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _CHANGES:
    setattr(StandIn, f"__{_name}__", _change(f"__{_name}__"))
