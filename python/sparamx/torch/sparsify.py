"""Replaces the linear layers of a model by sparse ones."""

from __future__ import annotations

import ctypes
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import _native
from ._tensors import threads, warn
from .linear import PackedWeight, SparseLinear, check_linear, check_options, pack

#: Modules that multiply with the weights of their linear layers themselves.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

#: Layers that are left unless asked for.
EXCLUDE = ("lm_head",)

#: Where modules of PEFT keep the model that they adapt; all else of them are adapters.
_ADAPTED = ("base_layer", "base_model", "model", "original_module")

#: What a layer may add to torch.nn.Linear and still be packed: how it begins, and how it is printed.
_HARMLESS = ("reset_parameters", "extra_repr")

#: Bytes of second moments, at 8 a pair of inputs, that calibration keeps at a time.
CALIBRATION_BYTES = 2 << 30


@dataclass(frozen=True)
class Layer:
    """What became of a layer, or of a parameter of two or more dimensions that belongs to none."""

    name: str
    shape: tuple[int, ...]
    #: Whether it is sparse now.
    packed: bool
    #: Why not, or what a user should know.
    note: str = ""
    #: The share of zeros.
    sparsity: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    #: Relative error of the layer's outputs on the calibration data; of its weights without any.
    error: float = 0.0


@dataclass
class Report:
    """What became of a model."""

    layers: list[Layer] = field(default_factory=list)
    #: Numbers of the whole model, and how many of them are in packed weights now.
    parameters: int = 0
    packed_parameters: int = 0

    @property
    def packed(self) -> list[Layer]:
        """The layers that are sparse now."""
        return [layer for layer in self.layers if layer.packed]

    @property
    def left(self) -> list[Layer]:
        """The layers that stayed as they were."""
        return [layer for layer in self.layers if not layer.packed]

    def __str__(self) -> str:
        packed = self.packed
        before = sum(layer.bytes_before for layer in packed)
        after = sum(layer.bytes_after for layer in packed)
        weights = sum(layer.shape[0] * layer.shape[1] for layer in packed)
        zeros = sum(layer.sparsity * layer.shape[0] * layer.shape[1] for layer in packed)
        text = f"{len(packed)} layers packed"
        if packed:
            text += f": {before / 1e6:.1f} MB became {after / 1e6:.1f} MB, "
            text += f"{zeros / weights:.1%} of {weights / 1e6:.1f} M weights are zero"
        if self.parameters:
            share = self.packed_parameters / self.parameters
            text += f"; {share:.1%} of the model's {self.parameters / 1e6:.1f} M parameters are packed"
        # Those whose names differ in numbers only make one line.
        alike: dict[Any, list[str]] = {}
        for layer in self.left:
            alike.setdefault((re.sub(r"\b\d+\b", "*", layer.name), layer.shape, layer.note), []).append(layer.name)
        for (pattern, shape, note), names in alike.items():
            text += f"\n  left: {names[0] if len(names) == 1 else f'{len(names)} x {pattern}'} {list(shape)}: {note}"
        for layer in packed:
            if layer.note:
                text += f"\n  {layer.name}: {layer.note}"
        return text


def sparsify(
    model: nn.Module,
    sparsity: float | None = 0.5,
    method: str = "magnitude",
    weights: str = "bf16",
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = EXCLUDE,
    calibration: Iterable[Any] | None = None,
    group_size: int = 64,
    progress: bool = True,
) -> Report:
    """Prunes and packs every ``torch.nn.Linear`` of a model, in place, freeing each dense weight as it goes.

    Args:
        model: any tree of modules on the CPU. If it is a linear layer itself, use :meth:`SparseLinear.from_linear`.
        sparsity: the share of zeros in each layer; None keeps the zeros that are there, of a model pruned before.
        method: ``magnitude``, or ``wanda`` (arXiv 2306.11695) or ``sparsegpt`` (arXiv 2301.00774), which need ``calibration``.
        weights: ``bf16``, ``int8`` (a scale a row) or ``int4`` (a scale for ``group_size`` columns).
        include: names of the layers to pack, as the end of the module's name or as a pattern with ``*``; all if None.
        exclude: names of layers to leave, likewise.
        calibration: what the model is called with to see typical inputs: an iterable of tensors, tuples of arguments or mappings
            of keyword arguments, read once. A few dozen sequences are enough. Only for ``wanda`` and ``sparsegpt``.
        group_size: columns that share a scale of int4: 32, 64 or 128.
        progress: whether to show a bar.

    Layers become sparse themselves: their hooks, bias and attributes stay, and so does whatever holds them. Adapters of PEFT are
    left, the layers that they adapt are packed. Options that change nothing are warned about.

    Returns:
        What became of each layer, and which other parameters stay dense. Layers that share a weight share the packed one.

    Raises:
        TypeError, ValueError: naming the layer, for weights that cannot be packed and for options that do not exist. Layers before
            it are packed by then.
    """
    check_options(sparsity, method, weights, group_size)
    if isinstance(model, nn.Linear):
        raise TypeError("the model is a linear layer itself: use SparseLinear.from_linear")
    if method != "magnitude" and calibration is None:
        raise ValueError(f"method={method!r} needs calibration=: inputs to call the model with")
    if _same_as_magnitude(sparsity, method, weights):
        if calibration is not None:
            warn(f"calibration= is not used: method={method!r} has no use for it at sparsity={sparsity} and weights={weights!r}")
        method, calibration = "magnitude", None
    report = Report()
    targets = _targets(model, include, exclude, report)
    for target in targets:
        check_linear(target.linear, target.name)
    _warn_of_patterns(report, targets, include, exclude)
    batches = None
    if calibration is not None:
        batches = list(calibration)
        if not batches:
            raise ValueError("calibration= has nothing in it")
    bar = tqdm(total=sum(t.linear.weight.numel() for t in targets), unit=" weights", unit_scale=True, disable=not progress)
    with bar, torch.no_grad():
        for group in _groups(targets, batches):
            moments = {} if batches is None else _observe(model, group, batches)
            for target in group:
                bar.set_postfix_str(target.name, refresh=False)
                size = target.linear.weight.numel()
                _replace(target, moments.get(id(target.linear)), report, sparsity, method, weights, group_size)
                bar.update(size)
    _account(model, report)
    give_back()
    return report


def _same_as_magnitude(sparsity: float | None, method: str, weights: str) -> bool:
    """Whether a method looks at no inputs: it prunes nothing, and rounds nothing by them either."""
    return method == "magnitude" or (not sparsity and (method == "wanda" or weights == "bf16"))


def _warn_of_patterns(report: Report, targets: list[_Target], include: Sequence[str] | None, exclude: Sequence[str]) -> None:
    names = [layer.name for layer in report.layers] + [place[0] for target in targets for place in target.places]
    for option, patterns in (("include", include or ()), ("exclude", () if exclude == EXCLUDE else exclude)):
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            if not any(_named(name, pattern) for name in names):
                warn(f"{option}: no linear layer is called {pattern!r}")


def _account(model: nn.Module, report: Report) -> None:
    """Adds the parameters that stay dense and belong to no layer that was looked at, and sums up."""
    known = {layer.name for layer in report.layers}
    foreign = 0
    for name, parameter in model.named_parameters():
        report.parameters += parameter.numel()
        owner, _, attribute = name.rpartition(".")
        kind = type(model.get_submodule(owner))
        if parameter.dim() < 2 or issubclass(kind, nn.Linear):
            continue
        note = f"a parameter of a {kind.__name__}, which is no torch.nn.Linear"
        if issubclass(kind, nn.Embedding):
            note = "an embedding, which is looked up and not multiplied"
        else:
            foreign += parameter.numel()
        if attribute != "weight" or owner not in known:
            report.layers.append(Layer(name, tuple(parameter.shape), False, note))
    report.packed_parameters = sum(m.n * m.k for m in model.modules() if isinstance(m, PackedWeight))
    report.parameters += report.packed_parameters
    if foreign > report.packed_parameters:
        warn(
            f"{foreign / report.parameters:.0%} of the model's parameters belong to no torch.nn.Linear and stay dense: the report "
            "has their names"
        )


def give_back() -> None:
    """Gives memory that dense weights and packing have left behind back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass
class _Target:
    """A layer to pack, and all places where it, or another with the same weight, stands."""

    name: str
    linear: nn.Linear
    #: Names, and the layer that is there.
    places: list[tuple[str, nn.Linear]]


def _targets(model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str], report: Report) -> list[_Target]:
    targets: dict[int, _Target] = {}
    tied = {
        id(parameter): f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear)
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    adapters: tuple[str, ...] = ()
    for prefix, parent, attribute, child in _children(model):
        name = f"{prefix}.{attribute}" if prefix else attribute
        if _is_adapter(parent, attribute):
            adapters += (f"{name}.",)
        if isinstance(child, SparseLinear):
            continue
        if type(child).__name__ == "Conv1D" and hasattr(child, "nf"):
            weight: Any = child.weight
            k, n = weight.shape
            note = "a Conv1D, whose weight is transposed, is not packed"
            report.layers.append(Layer(name, (n, k), False, note))
            continue
        if not isinstance(child, nn.Linear):
            if type(child).__name__.endswith("Linear") and not hasattr(child, "base_layer"):
                sizes = (getattr(child, "out_features", 0), getattr(child, "in_features", 0))
                note = f"a {type(child).__module__}.{type(child).__name__} is no torch.nn.Linear"
                report.layers.append(Layer(name, sizes, False, note))
            continue
        shape = (child.out_features, child.in_features)
        if isinstance(parent, _READERS):
            note = f"its parent, a {type(parent).__name__}, multiplies with the weight itself"
        elif f"{name}.".startswith(adapters):
            note = "an adapter, which would be frozen"
        elif own := _own(child):
            note = own
        elif include is not None and not _named(name, include):
            note = "not in include"
        elif _named(name, exclude):
            note = "in exclude"
        else:
            found = targets.setdefault(id(child.weight), _Target(name, child, []))
            if id(child.weight) in tied and not found.places:
                note = f"its weight is also {tied[id(child.weight)]}, which stays dense: memory grows"
                report.layers.append(Layer(name, shape, False, note))
                del targets[id(child.weight)]
                continue
            found.places.append((name, child))
            continue
        report.layers.append(Layer(name, shape, False, note))
    return list(targets.values())


def _is_adapter(parent: nn.Module, attribute: str) -> bool:
    """Whether a module's child is what PEFT, or another library that calls it so, trains beside frozen weights."""
    return attribute.startswith(("lora_", "adapter_")) or (
        type(parent).__module__.startswith("peft.") and attribute not in _ADAPTED
    )


def _own(linear: nn.Linear) -> str:
    """What a layer has that a sparse one would lack, as the reason to leave it; nothing if nothing."""
    if isinstance(linear._parameters.get("weight"), (type(None), nn.parameter.UninitializedParameter)):
        # Computed from others, or not there yet: an error, later.
        return ""
    kind = type(linear)
    if kind.forward is not nn.Linear.forward:
        return f"{kind.__name__} has a forward of its own"
    if "forward" in vars(linear):
        return "its forward was replaced by another function"
    if any(hooks for name, hooks in vars(linear).items() if "state_dict" in name and name.endswith("hooks")):
        return "it has hooks on its state dict, which has no dense weight once it is packed"
    added = {name for base in kind.__mro__[: kind.__mro__.index(nn.Linear)] for name in vars(base) if not name.startswith("__")}
    added.difference_update(_HARMLESS)
    return f"{kind.__name__} adds {', '.join(sorted(added))} to torch.nn.Linear" if added else ""


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Every place of a module in the tree, also of one that stands in several."""
    for prefix, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if child is not None:
                yield prefix, parent, attribute, child


def _named(name: str, patterns: Sequence[str]) -> bool:
    if isinstance(patterns, str):
        patterns = (patterns,)
    # As PEFT puts layers into others.
    name = name.removesuffix(".base_layer").removesuffix(".original_module")
    return any(
        fnmatch.fnmatchcase(name, p) or f".{name}".endswith(f".{p}") or fnmatch.fnmatchcase(name, f"*.{p}") for p in patterns
    )


def _groups(targets: list[_Target], batches: list[Any] | None) -> Iterator[list[_Target]]:
    """Layers whose inputs are observed in one pass: as many as memory allows."""
    if batches is None:
        yield from ([target] for target in targets)
        return
    group: list[_Target] = []
    used = 0
    for target in targets:
        need = 8 * target.linear.in_features**2
        if group and used + need > CALIBRATION_BYTES:
            yield group
            group, used = [], 0
        group.append(target)
        used += need
    if group:
        yield group


def _observe(model: nn.Module, group: list[_Target], batches: list[Any]) -> dict[int, _native.Moments]:
    """Second moments of the inputs of some layers, by the id of the layer."""
    moments: dict[int, _native.Moments] = {}
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def watch(target: _Target, linear: nn.Linear) -> None:
        seen = moments[id(target.linear)] = _native.Moments(linear.in_features)

        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            x = (args[0] if args else kwargs["input"]).detach().reshape(-1, linear.in_features).to(torch.float32).contiguous()
            if not torch.isfinite(x).all():
                raise ValueError(f"the inputs of {target.name} on the calibration data are not finite")
            seen.add(x.data_ptr(), x.shape[0], threads())

        layers = {id(place[1]): place[1] for place in target.places}
        hooks.extend(layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers.values())

    modes = [(module, module.training) for module in model.modules()]
    try:
        for target in group:
            watch(target, target.linear)
        model.eval()
        for batch in batches:
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, (tuple, list)):
                model(*batch)
            else:
                model(batch)
    finally:
        for module, training in modes:
            module.training = training
        for handle in hooks:
            handle.remove()
    for target in group:
        if moments[id(target.linear)].tokens == 0:
            raise ValueError(f"the calibration data does not reach {target.name}: exclude it, or use method='magnitude'")
    return moments


def _replace(
    target: _Target,
    moments: _native.Moments | None,
    report: Report,
    sparsity: float | None,
    method: str,
    weights: str,
    group_size: int,
) -> None:
    weight = target.linear.weight
    shape = (target.linear.out_features, target.linear.in_features)
    try:
        packed, result = pack(weight, sparsity, method=method, weights=weights, group_size=group_size, moments=moments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{target.name}: {error}") from error
    before = weight.numel() * weight.element_size()
    for i, (name, linear) in enumerate(target.places):
        if packed is None:
            note = "too few zeros: packed as bf16 it would be larger"
            report.layers.append(Layer(name, shape, False, note, result["sparsity"]))
            continue
        if isinstance(linear, nn.Linear):
            SparseLinear.in_place(linear, packed)
        note = result["note"] or (f"shares the weight of {target.name}" if i > 0 else "")
        sizes = (before, packed.nbytes) if i == 0 else (0, 0)
        report.layers.append(Layer(name, shape, True, note, result["sparsity"], *sizes, result["error"]))
