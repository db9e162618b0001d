"""Whole models: what is packed, what is left and why, and that the numbers are those of the dense model with the same zeros."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparamx.torch
from sparamx.torch import SparseLinear, sparsify

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 17, 3, 90, 41, 7, 7, 60]])


SIZES = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**more):
    config = transformers.LlamaConfig(**SIZES, intermediate_size=160, num_key_value_heads=2, max_position_embeddings=256, **more)
    return transformers.LlamaForCausalLM(config).eval()


def qwen2():
    config = transformers.Qwen2Config(**SIZES, intermediate_size=160, num_key_value_heads=2)
    return transformers.Qwen2ForCausalLM(config).eval()


def opt():
    config = transformers.OPTConfig(**SIZES, ffn_dim=160, word_embed_proj_dim=32, max_position_embeddings=256)
    return transformers.OPTForCausalLM(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    return transformers.GPT2LMHeadModel(config).eval()


def bert():
    return transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=160)).eval()


def dense_twin(model, twin):
    """``twin`` with the weights that the sparse layers of ``model`` have."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            layer = twin.get_submodule(name)
            layer.weight.data = module.weight.to_dense(layer.weight.dtype)
    return twin


def logits(model):
    with torch.no_grad():
        out = model(IDS)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


#: Relative error of the outputs of a few layers: f32 sums in another order, bf16 or int8 activations.
TOLERANCE = {"bf16": 5e-2 if sparamx.isa() in ("avx512", "amx") else 1e-4, "int8": 1e-1, "int4": 1e-1}


@pytest.mark.parametrize("weights", TOLERANCE)
@pytest.mark.parametrize("make", [llama, qwen2, opt, bert])
def test_models_agree_with_their_dense_twins(make, weights):
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    report = sparsify(model, 0.5, weights=weights, progress=False)
    linears = [m for m in twin.modules() if isinstance(m, nn.Linear)]
    assert len(report.packed) + len(report.left) == len(linears)
    assert not any(isinstance(m, nn.Linear) for n, m in model.named_modules() if n != "lm_head" and "lm_head" not in n)
    dense_twin(model, twin)
    want, got = logits(twin), logits(model)
    assert (got - want).norm() <= TOLERANCE[weights] * want.norm()


@pytest.mark.parametrize("make", [llama, qwen2, opt])
def test_greedy_generation_is_that_of_the_dense_twin(make):
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    # Far apart, so that no rounding turns one token into another.
    for m in (model, twin):
        m.get_output_embeddings().weight.data *= 20
    sparsify(model, progress=False)
    dense_twin(model, twin)
    ask = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert model.generate(IDS, **ask).tolist() == twin.generate(IDS, **ask).tolist()


def test_a_whole_model_compiles_to_one_graph():
    model = llama()
    sparsify(model, progress=False)
    with torch.no_grad():
        want = model(IDS, use_cache=False).logits
        got = torch.compile(model, fullgraph=True)(IDS, use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_conv1d_is_reported():
    report = sparsify(gpt2(), progress=False)
    assert not report.packed
    conv = [layer for layer in report.left if "Conv1D" in layer.note]
    assert len(conv) == 8 and conv[0].name == "transformer.h.0.attn.c_attn"
    assert "Conv1D" in str(report)


def test_layers_of_other_libraries_are_reported():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), torch.ao.nn.quantized.dynamic.Linear(64, 32))
    report = sparsify(model, progress=False)
    assert [layer.name for layer in report.packed] == ["0"]
    assert report.left[0].shape == (32, 64) and "quantized" in report.left[0].note


def test_weights_that_are_not_there_are_refused_by_name():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, device="meta"))
    with pytest.raises(ValueError, match="of 1 is on device meta"):
        sparsify(model, progress=False)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(ValueError, match="0 has no weight yet"):
        sparsify(nn.Sequential(nn.LazyLinear(64)), progress=False)


def test_half_precision_models():
    for dtype in (torch.bfloat16, torch.float16):
        model, twin = llama().to(dtype), llama().to(dtype)
        twin.load_state_dict(model.state_dict())
        sparsify(model, progress=False)
        dense_twin(model, twin)
        want, got = logits(twin), logits(model)
        assert got.dtype == dtype
        assert (got - want).norm() <= 5e-2 * want.norm()


def test_include_exclude_and_what_is_left():
    model = llama()
    report = sparsify(model, include=("q_proj", "model.layers.1.mlp.*"), exclude=("layers.0.self_attn.q_proj",), progress=False)
    names = [layer.name for layer in report.packed]
    assert names == ["model.layers.1.self_attn.q_proj"] + [f"model.layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")]
    why = {layer.name: layer.note for layer in report.left}
    assert why["model.layers.0.self_attn.q_proj"] == "in exclude"
    assert why["model.layers.0.self_attn.k_proj"] == "not in include"
    # The rest can be packed later.
    assert len(sparsify(model, progress=False).packed) == 10


def test_layers_that_their_parents_read_are_left():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 32)
    want = model(x)
    report = sparsify(model, progress=False)
    assert not report.packed and len(report.left) == 3
    assert torch.equal(model(x), want)


def test_shared_weights_stay_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 64)
            self.b = self.a
            self.c = nn.Linear(64, 64)
            self.c.weight = self.a.weight

    model = Shared()
    report = sparsify(model, progress=False)
    assert len(report.packed) == 3
    assert model.a.weight is model.b.weight is model.c.weight
    assert model.c.bias is not model.a.bias
    assert sum(layer.bytes_after for layer in report.packed) == model.a.weight.nbytes
    tied = llama(tie_word_embeddings=True)
    report = sparsify(tied, exclude=(), progress=False)
    assert [layer.name for layer in report.left] == ["lm_head"] and "embed_tokens" in report.left[0].note


def test_a_plain_mlp_and_a_layer_with_too_few_zeros():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10, bias=False))
    report = sparsify(model, None, progress=False)
    assert [layer.note[:13] for layer in report.left] == ["too few zeros"] * 2
    assert len(sparsify(model, None, weights="int8", progress=False).packed) == 2
    assert model(torch.randn(3, 64)).shape == (3, 10)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_calibration_lowers_the_error(method):
    torch.manual_seed(1)
    data = [torch.randint(0, 128, (2, 24)) for _ in range(4)]

    def error(**options):
        model = llama()
        twin = llama()
        twin.load_state_dict(model.state_dict())
        # Inputs of very different size, as in trained models.
        for m in (model, twin):
            m.load_state_dict(model.state_dict())
            for layer in m.model.layers:
                layer.input_layernorm.weight.data = torch.linspace(0.01, 3, 64) ** 2
                layer.post_attention_layernorm.weight.data = torch.linspace(0.01, 3, 64) ** 2
        report = sparsify(model, 0.6, progress=False, **options)
        assert len(report.packed) == 14
        with torch.no_grad():
            return sum((model(x).logits - twin(x).logits).norm().item() for x in data)

    torch.manual_seed(0)
    plain = error()
    torch.manual_seed(0)
    calibrated = error(method=method, calibration=[{"input_ids": x} for x in data])
    assert calibrated < plain


def test_bad_arguments():
    with pytest.raises(ValueError, match="calibration"):
        sparsify(llama(), method="wanda", progress=False)
    with pytest.raises(ValueError, match="nothing in it"):
        sparsify(llama(), method="wanda", calibration=[], progress=False)
    with pytest.raises(TypeError, match="from_linear"):
        sparsify(nn.Linear(4, 4))
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.*not finite"):
        sparsify(model, progress=False)
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


def test_calibration_that_does_not_reach_a_layer():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.used(x)

    data = [torch.randn(4, 64)]
    with pytest.raises(ValueError, match="does not reach unused"):
        sparsify(Half(), method="wanda", calibration=data, progress=False)
    report = sparsify(Half(), method="wanda", calibration=data, exclude=("unused",), progress=False)
    assert [layer.name for layer in report.packed] == ["used"]


def test_files_round_trip(tmp_path):
    for weights in ("bf16", "int8", "int4"):
        model = llama()
        sparsify(model, weights=weights, progress=False)
        sparamx.torch.save(model, tmp_path / weights)
        assert json.loads((tmp_path / weights / "config.json").read_text())["model_type"] == "llama"
        other = llama()
        sparamx.torch.load(other, tmp_path / weights)
        assert torch.equal(logits(other), logits(model))
        # Once more, from sparse to sparse.
        sparamx.torch.save(other, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / weights / "model.safetensors").read_bytes()


def test_a_folder_has_one_format(tmp_path):
    model = llama()
    sparsify(model, include=("q_proj",), progress=False)
    sparsify(model, weights="int8", progress=False)
    with pytest.raises(ValueError, match="bf16, int8"):
        sparamx.torch.save(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    sparamx.torch.save(model, tmp_path / "file.safetensors")
    other = llama()
    sparamx.torch.load(other, tmp_path / "file.safetensors")
    assert torch.equal(logits(other), logits(model))


#: The model that comes with the repository, and the program of the command line if it was built.
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "stories-5m-50"
PROGRAM = Path(os.environ.get("SPARAMX", Path(__file__).resolve().parents[2] / "target" / "release" / "sparamx"))
STORY = "Once upon a time"


def tell(model):
    """Greedily, what follows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    ids = tokenizer(STORY, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :])


def test_the_shipped_model_tells_a_story():
    model = sparamx.torch.from_pretrained(SHIPPED)
    assert sum(isinstance(m, SparseLinear) for m in model.modules()) == 42
    assert not any(p.is_meta for p in model.parameters())
    assert model.model.embed_tokens.weight is model.lm_head.weight
    assert tell(model).startswith(", there was a little girl named")


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_the_command_line_runs_what_is_written_here(tmp_path, weights):
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not there: cargo build --release")
    model = sparamx.torch.from_pretrained(SHIPPED)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SparseLinear):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.to_dense())
    sparsify(model, None, weights=weights, progress=False)
    sparamx.torch.save(model, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / file, tmp_path)
    command = [PROGRAM, "run", tmp_path, STORY, "--temperature", "0", "-n", "24", "-q"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip().removeprefix(STORY) == tell(model)


def test_damaged_and_foreign_files(tmp_path):
    model = llama()
    sparsify(model, progress=False)
    path = tmp_path / "model.safetensors"
    sparamx.torch.save(model, path)
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for keep in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="damaged"):
            sparamx.torch.load(llama(), damaged)
    header = int.from_bytes(whole[:8], "little") + 8
    name = b'"model.layers.0.self_attn.q_proj.weight.mask"'
    assert name in whole[:header]
    start = json.loads(whole[8:header])["model.layers.0.self_attn.q_proj.weight.mask"]["data_offsets"][0] + header
    damaged.write_bytes(whole[:start] + bytes(64 * [255]) + whole[start + 64 :])
    with pytest.raises(ValueError, match="q_proj"):
        sparamx.torch.load(llama(), damaged)
    with pytest.raises(OSError):
        sparamx.torch.load(llama(), tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="is .* in the file and"):
        sparamx.torch.load(
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=128, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
                )
            ),
            path,
        )
    with pytest.raises(ValueError, match="besides"):
        sparamx.torch.load(nn.Sequential(nn.Linear(4, 4)), path)
    with pytest.raises(OSError):
        sparamx.torch.save(model, tmp_path / "no" / "such" / "folder.safetensors")


RSS = """
import gc, sys, torch
from torch import nn
import sparamx.torch
def rss():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
before = rss()
model = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(12)])
dense = rss() - before
report = sparamx.torch.sparsify(model, 0.5, progress=False)
sparse = rss() - before
print(dense, sparse, sum(l.bytes_after for l in report.packed))
"""


def test_memory_really_drops():
    out = subprocess.run([sys.executable, "-c", RSS], capture_output=True, text=True, check=True).stdout
    dense, sparse, packed = map(int, out.split())
    assert dense > 190e6
    # What is beside the weights: code, the buffers of a layer that was being packed, what the allocator keeps.
    assert sparse < packed + 70e6 < 0.65 * dense
