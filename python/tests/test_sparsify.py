"""Whole models: what is packed, what is left and why, and that the numbers are those of the dense model with the same zeros."""

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
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
    linears = {name for name, m in twin.named_modules() if isinstance(m, nn.Linear)}
    embeddings = {f"{name}.weight" for name, m in twin.named_modules() if isinstance(m, nn.Embedding)}
    assert {layer.name for layer in report.layers} == linears | embeddings
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
    with pytest.warns(UserWarning, match="[0-9]+% of the model's parameters belong to no torch.nn.Linear"):
        report = sparsify(gpt2(), progress=False)
    assert not report.packed
    conv = [layer for layer in report.left if "Conv1D" in layer.note]
    assert len(conv) == 8 and conv[0].name == "transformer.h.0.attn.c_attn"
    assert "2 x transformer.h.*.attn.c_attn [192, 64]: a Conv1D" in str(report)


SMALL = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, intermediate_size=96, num_local_experts=4))


def qwen3_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SMALL, **experts))


def gpt_oss():
    config = transformers.GptOssConfig(**SMALL, intermediate_size=96, num_local_experts=4, head_dim=16)
    return transformers.GptOssForCausalLM(config)


@pytest.mark.parametrize("make", [mixtral, qwen3_moe, gpt_oss])
def test_experts_that_stay_dense_are_reported(make):
    model = make().eval()
    with torch.no_grad():
        logits(model)
    experts = {name: p for name, p in model.named_parameters() if p.dim() == 3}
    assert len(experts) >= 6
    total = sum(p.numel() for p in model.parameters())
    with pytest.warns(UserWarning, match="stay dense"):
        report = sparsify(model, progress=False)
    left = {layer.name: layer for layer in report.left}
    assert all(left[name].shape == p.shape and "no torch.nn.Linear" in left[name].note for name, p in experts.items())
    # Nothing of two or more dimensions is missing, and the sizes add up.
    assert {n for n, p in model.named_parameters() if p.dim() > 1} <= set(left) | {f"{n}.weight" for n in left}
    assert report.parameters == total
    assert report.packed_parameters == sum(layer.shape[0] * layer.shape[1] for layer in report.packed)
    assert f"{report.packed_parameters / total:.1%} of the model's" in str(report)
    assert "3 x model.layers.*.mlp.experts.gate_up_proj" in str(report)
    logits(model)


@pytest.mark.parametrize("family", ["t5", "bloom", "whisper", "bert_head", "clip", "mpt"])
def test_models_that_read_the_weights_of_their_layers(family):
    """In the types that models come in: what they ask a weight for is what the dense weight said."""
    ids, t = {"input_ids": IDS}, transformers
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    if family == "t5":
        config = t.T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
        make, ids = (lambda: t.T5ForConditionalGeneration(config)), {**ids, "decoder_input_ids": IDS[:, :3]}
    elif family == "bloom":
        config = t.BloomConfig(vocab_size=128, hidden_size=64, n_layer=1, n_head=4, pretraining_tp=2, slow_but_exact=True)
        make = lambda: t.BloomForCausalLM(config)  # noqa: E731
    elif family == "whisper":
        config = t.WhisperConfig(
            vocab_size=128, d_model=64, max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
        for part in ("encoder", "decoder"):
            sizes = {"_layers": 1, "_attention_heads": 4, "_ffn_dim": 96}
            config.update({part + name: size for name, size in sizes.items()})
        config.decoder_start_token_id = 1
        make, ids = (lambda: t.WhisperForConditionalGeneration(config)), {"input_features": torch.randn(1, 80, 40)}
        ids["decoder_input_ids"] = IDS[:, :3]
    elif family == "bert_head":
        config = t.BertConfig(vocab_size=128, **sizes, intermediate_size=96)
        make = lambda: t.BertForSequenceClassification(config)  # noqa: E731
    elif family == "clip":
        config = t.CLIPVisionConfig(**sizes, intermediate_size=96, image_size=32, patch_size=8)
        make, ids = (lambda: t.CLIPVisionModel(config)), {"pixel_values": torch.randn(1, 3, 32, 32)}
    else:
        config = t.MptConfig(d_model=64, n_heads=4, n_layers=1, vocab_size=128, max_seq_len=64)
        make = lambda: t.MptForCausalLM(config)  # noqa: E731
    for dtype in (torch.float32, torch.bfloat16):
        model, twin = make().eval().to(dtype), make().eval().to(dtype)
        twin.load_state_dict(model.state_dict())
        sparsify(model, exclude=[name for name in ("lm_head", "classifier") if hasattr(model, name)], progress=False)
        dense_twin(model, twin)
        inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in ids.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("default" if family == "bloom" else "error", message=".*dense copy")
            got, want = (next(v for v in m(**inputs).values() if isinstance(v, torch.Tensor)) for m in (model, twin))
        assert got.dtype == want.dtype
        assert (got - want).norm() <= TOLERANCE["bf16" if dtype == torch.float32 else "int8"] * want.norm()


def test_adapters_of_peft_are_left_and_what_they_adapt_is_packed(tmp_path):
    peft = pytest.importorskip("peft")
    base = llama()
    twin = copy.deepcopy(base)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    report = sparsify(model, exclude=("lm_head", "k_proj"), progress=False)
    assert len(report.packed) == 12
    assert all(layer.note == "an adapter, which would be frozen" for layer in report.left if "lora_" in layer.name)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 9 and sum("lora_" in name for name in trained) == 8
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in trained)
    model.eval()
    want = logits(model)
    # Adapters alone are written, as ever, and fit the model that is sparse already.
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    with pytest.raises(TypeError, match="read-only"):
        model.merge_and_unload()
    again = peft.PeftModel.from_pretrained(twin, tmp_path).eval()
    sparsify(again, exclude=("lm_head", "k_proj"), progress=False)
    assert torch.equal(logits(again), want)


def test_layers_called_as_adapters_are_left():
    model = nn.ModuleDict({"fc": nn.Linear(64, 64), "lora_A": nn.Linear(64, 8), "lora_down": nn.Sequential(nn.Linear(64, 8))})
    report = sparsify(model, weights="int8", progress=False)
    assert [layer.name for layer in report.packed] == ["fc"] and len(report.left) == 2


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
    with pytest.warns(UserWarning, match="stay dense"):
        report = sparsify(model, progress=False)
    assert not report.packed
    assert [layer.name.removeprefix("layers.0.") for layer in report.left] == [
        "linear1",
        "linear2",
        "self_attn.out_proj",
        "self_attn.in_proj_weight",
    ]
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
    assert [layer.name for layer in report.left] == ["lm_head", "model.embed_tokens.weight"]
    assert "embed_tokens" in report.left[0].note


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


def test_generation_settings_come_back(tmp_path):
    model = llama()
    settings = {"eos_token_id": [2, 7], "pad_token_id": 0, "repetition_penalty": 1.3, "do_sample": True, "top_k": 7}
    model.generation_config.update(**settings)
    sparsify(model, progress=False)
    sparamx.torch.save(model, tmp_path)
    got = sparamx.torch.from_pretrained(tmp_path).generation_config
    assert {name: getattr(got, name) for name in settings} == settings
    # Also those that were written by others, and none.
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert sparamx.torch.from_pretrained(tmp_path).generation_config.eos_token_id == 5
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises((OSError, ValueError), match="generation_config"):
        sparamx.torch.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert torch.equal(logits(sparamx.torch.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_has_the_type_that_was_asked_for(tmp_path, dtype):
    model = llama()
    sparsify(model, progress=False)
    sparamx.torch.save(model, tmp_path)
    again = sparamx.torch.from_pretrained(tmp_path, dtype=dtype)
    assert again.dtype == again.model.layers[0].mlp.up_proj.weight.dtype == dtype
    # bf16 has 8 bits, too few for rotary frequencies of thousands of positions.
    assert again.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not hasattr(again.config, "quantization_config") and not hasattr(again.config, "transformers_weights")


def test_transformers_is_kept_from_random_weights(tmp_path):
    model = llama()
    before = copy.deepcopy(model.config)
    sparsify(model, progress=False)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has packed weights.*sparamx\.torch\.save"):
        model.save_pretrained(tmp_path / "refused")
    for part in (copy.deepcopy(model), model.model):
        with pytest.raises(ValueError, match="sparamx.torch.save"):
            part.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    sparamx.torch.save(model, tmp_path / "packed")
    assert model.config.to_dict() == before.to_dict()
    for folder in (tmp_path / "packed", SHIPPED):
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoModel, transformers.LlamaForCausalLM):
            with pytest.raises(ValueError, match="packed by sparamx: load it with sparamx.torch.from_pretrained"):
                kind.from_pretrained(folder)
    # Dense models are as ever, those that were sparse too.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SparseLinear):
            model.set_submodule(name, layer.to_dense())
    model.save_pretrained(tmp_path / "dense")
    sparamx.torch.save(model, tmp_path / "ours")
    for folder in ("dense", "ours"):
        assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder)), logits(model))


def test_a_trainer_saves_no_checkpoint_that_transformers_cannot_read(tmp_path):
    pytest.importorskip("accelerate")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, intermediate_size=160))
    sparsify(model, exclude=("classifier",), progress=False)
    before = model.classifier.weight.detach().clone()
    data = [{"input_ids": IDS[0], "labels": torch.tensor(1)}] * 4

    def train(strategy):
        options = {"max_steps": 2, "save_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True}
        arguments = transformers.TrainingArguments(str(tmp_path / "run"), save_strategy=strategy, **options)
        transformers.Trainer(model, arguments, train_dataset=data).train()

    with pytest.raises(ValueError, match="save_strategy='no'"):
        train("steps")
    train("no")
    assert not torch.equal(model.classifier.weight, before)


def test_an_index_of_files_that_were_there_before_does_not_count(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    sparsify(model, progress=False)
    sparamx.torch.save(model, tmp_path)
    assert torch.equal(logits(sparamx.torch.from_pretrained(tmp_path)), logits(model))


def test_names_on_the_hub_are_refused():
    with pytest.raises(OSError, match="snapshot_download"):
        sparamx.torch.from_pretrained("someone/some-model")


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
