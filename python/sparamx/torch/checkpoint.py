"""Packed models as files: those of the command line."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from ._tensors import describe, threads, view
from .linear import PackedWeight, SparseLinear

#: The file of weights in a model's folder.
WEIGHTS = "model.safetensors"

#: What ``config.json`` of a packed folder names as the file of weights. Transformers finds no weights in packed tensors, and would
#: go on with random ones after a warning; so it says this in an error.
NOT_FOR_TRANSFORMERS = {"transformers_weights": "packed by sparamx: load it with sparamx.torch.from_pretrained"}


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a model's tensors to a safetensors file, sparse layers packed.

    If ``path`` does not end in ``.safetensors`` it is a folder, which is made, and a Transformers model's configuration is written
    there too: with the tokenizer's files beside them, ``sparamx run`` runs it. No partial file is left after an error.

    Raises:
        OSError: if the files cannot be written.
        TypeError, ValueError: for tensors that cannot be stored, naming them; for a folder, of layers packed in different ways.
    """
    path = Path(path)
    packed: dict[str, PackedWeight] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedWeight):
            packed[name] = module
    if path.suffix != ".safetensors":
        _save_configs(model, path, _quantization(packed))
        path = path / WEIGHTS
    inside = tuple(f"{name}." for name in packed)
    plain: list[tuple[str, str, list[int], int]] = []
    keep: list[Tensor] = []
    seen: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(inside) or not isinstance(tensor, Tensor):
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on device {tensor.device}; move the model to the CPU first")
        # As other programs do: of tied tensors the first is written.
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() > 0 and seen.setdefault(place, name) != name:
            continue
        tensor = tensor.detach().contiguous()
        keep.append(tensor)
        plain.append((name, *describe(tensor)))
    weights = [(name, module.native) for name, module in packed.items()]
    _native.write_checkpoint(str(path), plain, weights, {"format": "pt"})


def _save_configs(model: Any, path: Path, quantization: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    config = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config = copy.deepcopy(config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(path)
        file = path / "config.json"
        fields = json.loads(file.read_text())
        for field in (*NOT_FOR_TRANSFORMERS, "quantization_config"):
            fields.pop(field, None)
        file.write_text(json.dumps({**fields, **quantization}, indent=2) + "\n")
    generation = getattr(model, "generation_config", None)
    if hasattr(generation, "save_pretrained"):
        generation.save_pretrained(path)


def _quantization(packed: dict[str, PackedWeight]) -> dict[str, Any]:
    """What ``config.json`` says about packed weights, if there are any."""
    if not packed:
        return {}
    formats = {(weight.format.split()[1], weight.group_size) for weight in packed.values()}
    if len(formats) > 1:
        raise ValueError(
            "the layers are packed in different ways ("
            + ", ".join(sorted(f"{kind}{f' in groups of {group}' if group else ''}" for kind, group in formats))
            + "), and a model's folder has one: write a .safetensors file, or pack all layers alike"
        )
    config: dict[str, Any] = {"quant_method": "sparamx", "layout": "strip16", "version": 1}
    for kind, group in formats:
        config["weights"] = kind
        if group is not None:
            config["group_size"] = group
        weights = sum(w.n * w.k for w in packed.values())
        config["sparsity"] = 1 - sum(w.nnz for w in packed.values()) / weights
    return {"quantization_config": config, **NOT_FOR_TRANSFORMERS}


def from_pretrained(path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of Transformers from a packed folder, of :func:`save` or of ``sparamx compress``.

    No dense weight of a packed layer is ever made. ``dtype`` is that of everything else. What ``generation_config.json`` says
    about the end of a text and the choice of tokens holds.

    Raises:
        OSError, ValueError: as :func:`load`, and as Transformers for the configuration.
    """
    import transformers

    if not Path(path).is_dir():
        raise OSError(f"{path} is no folder: for a model on the hub, give what huggingface_hub.snapshot_download returns")
    config = transformers.AutoConfig.from_pretrained(path)
    for field in (*NOT_FOR_TRANSFORMERS, "quantization_config"):
        # They describe the files. What is packed in the model, its layers know.
        vars(config).pop(field, None)
    with _parameters_on_meta():
        model = transformers.AutoModelForCausalLM.from_config(config)
    load(model, path)
    if (Path(path) / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(path)
    for module in model.modules():
        # Not buffers: rotary frequencies stay float32, as those of Transformers do.
        if isinstance(module, PackedWeight):
            module.dtype = dtype
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model.eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that are made meanwhile have no memory; buffers do."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def load(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True) -> None:
    """Fills a model from a packed file or folder, of :func:`save` or of ``sparamx compress``.

    Linear layers whose weight the file has packed become sparse ones, in place; everything else is copied. The dense model may be
    on the ``meta`` device as far as the file has its tensors.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if it is damaged, or, with ``strict``, its tensors are not exactly those of the model.
    """
    unused: list[str] = []
    missing = {name for name, _ in model.named_parameters()}
    for file in _files(Path(path)):
        checkpoint = _native.Checkpoint(str(file))
        for name, n, k in checkpoint.packed():
            if _load_packed(model, checkpoint, name, (n, k)):
                missing.discard(name)
            else:
                unused.append(name)
        for name, dtype, shape, address in checkpoint.plain():
            tensor = view(dtype, shape, address, keep=checkpoint)
            if _load_plain(model, name, tensor):
                missing.discard(name)
            else:
                unused.append(name)
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
    if strict:
        # Tied ones are in the file once.
        left = {name for name, p in model.named_parameters() if name in missing and p.is_meta}
        if left or unused:
            raise ValueError(
                f"{path} does not fit the model: "
                + "; ".join(
                    f"{what}: {', '.join(sorted(names)[:5])}{' and more' if len(names) > 5 else ''}"
                    for what, names in (("it lacks", left), ("it has besides", unused))
                    if names
                )
            )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / f"{WEIGHTS}.index.json"
    if (path / WEIGHTS).exists() or not index.exists():
        # As everywhere: an index beside it is of files that were there before.
        return [path / WEIGHTS]
    try:
        files = json.loads(index.read_text())["weight_map"].values()
        return [path / name for name in sorted(set(files))]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{index} has no weight_map: {error}") from error


def _find(model: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    parent, _, attribute = name.rpartition(".")
    try:
        return model.get_submodule(parent), attribute
    except AttributeError:
        return None


def _load_packed(model: nn.Module, checkpoint: _native.Checkpoint, name: str, shape: tuple[int, int]) -> bool:
    found = _find(model, name)
    if found is None or found[1] != "weight" or not isinstance(found[0], (nn.Linear, SparseLinear)):
        return False
    linear = found[0]
    expected = (linear.out_features, linear.in_features)
    if expected != shape:
        raise ValueError(f"{name} is {list(shape)} in the file and {list(expected)} in the model")
    weight = PackedWeight(checkpoint.weight(name, threads()), linear.weight.dtype)
    if isinstance(linear, SparseLinear):
        linear.weight = weight
    else:
        SparseLinear.in_place(linear, weight)
    return True


def _load_plain(model: nn.Module, name: str, tensor: Tensor) -> bool:
    found = _find(model, name)
    if found is None:
        return False
    module, attribute = found
    kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for kind in kinds:
        old = kind.get(attribute)
        if old is None:
            continue
        if old.shape != tensor.shape:
            raise ValueError(f"{name} is {list(tensor.shape)} in the file and {list(old.shape)} in the model")
        new: Tensor = tensor.clone() if old.is_meta else tensor.to(old.dtype, copy=True)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())
        kind[attribute] = new
        return True
    return False
