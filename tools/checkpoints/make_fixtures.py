"""Writes the fixtures of crates/model/tests/checkpoints with the packages that such checkpoints come from, and reads
exports of sparamx back with them.

    make_fixtures.py --out DIR            write what the installed compressed-tensors (and gguf, if there) can write
    make_fixtures.py --check EXPORT DENSE compare an exported sparse-bitmask or dense folder with a dense one, bit for bit

compressed-tensors 0.8 writes the first generation of sparse-bitmask, 0.9 to 0.12 the second; README.md says how to install
both. Every fixture is one tiny Llama; `expected.json` beside it holds, for each tensor, the FNV-1a hash of its elements as
bf16, as the package itself takes them out of the form.
"""

import argparse
import json
import shutil
from pathlib import Path

import compressed_tensors
import torch
from compressed_tensors import ModelCompressor
from compressed_tensors.config import BitmaskConfig
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

VERSION = tuple(int(part) for part in compressed_tensors.__version__.split(".")[:2])
CONFIG = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=48,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)


def fnv1a(tensor):
    """The hash of a tensor's elements as bf16, little endian."""
    value = 0xCBF29CE484222325
    for byte in tensor.detach().to(torch.bfloat16).contiguous().view(torch.uint8).flatten().tolist():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def tiny_llama(sparse=True, step=None):
    """A model whose projections are half zeros; with `step`, weights are multiples of it, and no row has its largest
    magnitude below zero, so that int8 levels stay above -128."""
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
                continue
            parameter.copy_(0.2 * torch.randn_like(parameter))
            if sparse and "_proj" in name:
                parameter[torch.rand_like(parameter) < 0.5] = 0
            if step is not None:
                parameter.copy_((parameter / step).round() * step)
                parameter[:, 0] = parameter.abs().amax(dim=1)
    return model


def write(out, name, model, state, update=None, dense=None):
    """A checkpoint folder of a state dict; `dense` are the tensors as the package takes them out again."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **CONFIG, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    if update is not None:
        update(str(folder))
        text = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")
    expected = {k: fnv1a(v) for k, v in sorted(dense.items())}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def weights_of(model):
    return dict(model.state_dict())


def bitmask(out, name, pattern=None):
    """Bitmasks over bf16, through the package's whole path of saving a model; with `pattern` 2 of 4 weights are zero."""
    model = tiny_llama()
    kwargs = {"sparsity_config": BitmaskConfig(format="sparse-bitmask", global_sparsity=0.4)}
    if VERSION >= (0, 12):
        kwargs = {"sparsity_config_or_format": BitmaskConfig(
            format="sparse-bitmask", global_sparsity=0.4, targets=["Linear"], ignore=["lm_head"])}
    if pattern:
        from compressed_tensors.config import Sparse24BitMaskConfig
        kwargs = {"sparsity_config_or_format": Sparse24BitMaskConfig(
            global_sparsity=0.5, targets=["Linear"], ignore=["lm_head"])}
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                groups = module.weight.data.view(-1, 4)
                groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0)
    compressor = ModelCompressor.from_pretrained_model(model, **kwargs)
    dense = weights_of(model)
    state = compressor.compress(model)
    if VERSION < (0, 9):
        # Decompression is a generator over a file there.
        save_file({k: v.contiguous() for k, v in state.items()}, out / "tmp.safetensors")
        again = dict(compressor.sparsity_compressor.decompress(str(out / "tmp.safetensors")))
        (out / "tmp.safetensors").unlink()
    else:
        again = dict(compressor.sparsity_compressor.decompress_from_state_dict(state))
    assert all(torch.equal(again[k], dense[k]) for k in dense)
    write(out, name, model, state, compressor.update_config, dense)


def quantized(out, name, fmt, step=None, sparsity=None, **args):
    """Levels and scales, made by the package from absolute maxima."""
    model = tiny_llama(step=step)
    weights = QuantizationArgs(type="int", dynamic=False, **args)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=fmt,
                                quantization_status="initialized")
    apply_quantization_config(model, config)
    from compressed_tensors.quantization.utils import calculate_qparams
    for module in model.modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        w = module.weight.data
        groups = 1 if weights.group_size in (None, -1) else w.shape[1] // weights.group_size
        cut = w.view(w.shape[0], groups, -1)
        scale, zero = calculate_qparams(cut.amin(dim=-1), cut.amax(dim=-1), weights)
        if step is not None:
            scale = torch.full_like(scale, step)
        if args.get("actorder"):
            index = torch.arange(w.shape[1]).flip(0) % groups
            module.weight_g_idx.data.copy_(index.to(torch.int32))
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero)
        module.quantization_status = "frozen"
    kwargs = dict(quantization_format=fmt)
    if sparsity:
        kwargs["sparsity_config_or_format"] = BitmaskConfig(
            format="sparse-bitmask", global_sparsity=0.4, targets=["Linear"], ignore=["lm_head"])
    compressor = ModelCompressor.from_pretrained_model(model, **kwargs)
    dense = {k: v for k, v in weights_of(model).items() if ".weight_" not in k}
    state = compressor.compress(model)
    state = {k: v for k, v in state.items() if v is not None}
    unpacker = next(iter(compressor.quantization_compressor.values()))
    for path, module in model.named_modules():
        if not hasattr(module, "quantization_scheme"):
            continue
        data = {k[len(path) + 1:]: v for k, v in state.items() if k.startswith(path + ".weight")}
        if sparsity:
            parts = {k: state[f"{path}.{k}"] for k in ("shape", "compressed", "bitmask", "row_offsets")}
            data["weight"] = compressor.sparsity_compressor.decompress_weight(parts)
        if "weight_zero_point" in data and "weight_packed" in data:
            # The package packs zero points and does not take them out again: the formula of its dequantize.
            from compressed_tensors.compressors.quantized_compressors.pack_quantized import unpack_from_int32
            shape, scale = data["weight_shape"], data["weight_scale"]
            levels = unpack_from_int32(data["weight_packed"], weights.num_bits, shape)
            zero = unpack_from_int32(data["weight_zero_point"], weights.num_bits, scale.shape, packed_dim=0)
            group = shape[1] // scale.shape[1]
            spread = lambda t, scale=scale, group=int(group): t.to(scale.dtype).repeat_interleave(group, dim=1)
            dense[path + ".weight"] = (levels.to(scale.dtype) - spread(zero)) * spread(scale)
        else:
            dense[path + ".weight"] = unpacker.decompress_weight(data, quantization_args=weights)
    write(out, name, model, state, compressor.update_config, dense)


def fixtures(out):
    out.mkdir(parents=True, exist_ok=True)
    if VERSION < (0, 9):
        return bitmask(out, "bitmask-gen1")
    dense = tiny_llama()
    write(out, "dense", dense, weights_of(dense), None, weights_of(dense))
    bitmask(out, "bitmask-gen2")
    bitmask(out, "bitmask-24", pattern="2:4")
    channel, group = dict(strategy="channel"), dict(strategy="group", group_size=32)
    quantized(out, "int8", "int-quantized", num_bits=8, symmetric=True, **channel)
    quantized(out, "int8-exact", "int-quantized", step=2**-7, num_bits=8, symmetric=True, **channel)
    quantized(out, "int8-bitmask", "int-quantized", step=2**-7, sparsity=True, num_bits=8, symmetric=True, **channel)
    quantized(out, "int4", "pack-quantized", num_bits=4, symmetric=True, **group)
    quantized(out, "int4-asymmetric", "pack-quantized", num_bits=4, symmetric=False, **group)
    quantized(out, "int4-index", "pack-quantized", num_bits=4, symmetric=True, actorder="group", **group)
    quantized(out, "int8-packed", "pack-quantized", step=2**-7, num_bits=8, symmetric=True, **channel)


def check(export, dense):
    """Reads an export the way the package does."""
    config = json.loads((export / "config.json").read_text())
    compressor = ModelCompressor.from_compression_config(config.get("quantization_config"))

    def tensors(folder):
        found = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as f:
                found |= {k: f.get_tensor(k) for k in f.keys()}
        return found

    if compressor is None:
        found = tensors(export)
    else:
        print("format", compressor.sparsity_config.format, "global sparsity", compressor.sparsity_config.global_sparsity)
        found = dict(compressor.sparsity_compressor.decompress(str(export)))
    expected = tensors(dense)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    for name, tensor in expected.items():
        # A negative zero is written as a zero.
        assert torch.equal(found[name].to(torch.bfloat16) + 0, tensor.to(torch.bfloat16) + 0), name
    print(f"{len(found)} tensors of {export} are those of {dense}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", nargs=2, type=Path, metavar=("EXPORT", "DENSE"))
    args = parser.parse_args()
    if args.out:
        fixtures(args.out)
    if args.check:
        check(*args.check)
