"""Makes the fixtures of crates/model/tests/golden_logits.rs: tiny random models and what Transformers computes with them.

A fixture is a checkpoint directory (config.json as real checkpoints write it, safetensors) with golden.json (tokens, runs,
spreads) and golden.safetensors (logits). Logits come from Hugging Face Transformers: eager attention, weights in float64.

The tolerance of the test is measured here, on the reference itself, and not on the code under test. Every place where
sparamx rounds is disturbed by the largest error that rounding can make, with random signs, TRIALS times. The change of the
logits, as the root mean square over all of them and as the largest one, each the largest of all trials, is the fixture's
spread. There are two: `f32` for kernels that keep activations in f32 (portable, AVX2) and `bf16` for kernels that round
them (AVX-512, AMX). See Disturbance.

A model that barely uses a feature proves nothing about it, so each fixture names ablations (the model without that feature,
or with it slightly wrong); each must move the logits (root mean square) by MARGIN times the bf16 tolerance or the script
fails.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TRIALS = 16
SAFETY = 2.0  # the same factor as in golden_logits.rs
MARGIN = 5.0
U_BF16 = 2.0**-9  # half the spacing of bf16 values, relative
U_F32 = 2.0**-24
U_VEC = 2.0**-20  # exp, rsqrt, sin and cos of the vector code: sixteen times U_F32 is generous


@dataclass
class Fixture:
    """One tiny model: `config` is written as config.json, word for word."""

    name: str
    config: dict
    length: int  # tokens
    ablations: dict[str, dict] = field(default_factory=dict)  # name -> fields of config to replace
    neutralized: dict[str, str] = field(default_factory=dict)  # name -> part of the names of tensors to neutralize
    dtype: torch.dtype = torch.bfloat16
    shards: int = 1


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 40,
    "intermediate_size": 72,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 67,
}


def llama(**changes) -> dict:
    """LLAMA with fields replaced; a field set to ... is left out."""
    merged = {**LLAMA, **changes}
    return {k: v for k, v in merged.items() if v is not ...}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
    "rope_type": "llama3",
}

FIXTURES = [
    # Grouped queries, heads that do not add up to hidden_size, nothing a multiple of 16.
    Fixture(
        "llama-gqa",
        llama(head_dim=12, rope_scaling=None, torch_dtype="bfloat16", attention_bias=False, mlp_bias=False),
        length=80,
        ablations={"rope theta": {"rope_theta": 5000.0}},
        neutralized={"norm weights": "norm"},
    ),
    # The fields of a first-generation config.json: no key-value heads, no rope theta.
    Fixture(
        "llama1-mha",
        llama(
            hidden_size=48,
            intermediate_size=50,
            num_key_value_heads=...,
            rope_theta=...,
            rms_norm_eps=1e-6,
            torch_dtype="float16",
        ),
        length=40,
        ablations={"rope theta": {"rope_theta": 5000.0}},
        dtype=torch.float16,
    ),
    # The fields as Transformers 5 writes them, in three files.
    Fixture(
        "llama3-rope",
        llama(head_dim=20, rope_theta=..., rope_parameters=LLAMA3, dtype="bfloat16"),
        length=100,
        ablations={
            "no scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "no smoothing": {"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0001}},
            "rope theta": {"rope_parameters": {**LLAMA3, "rope_theta": 100000.0}},
        },
        shards=3,
    ),
    # Linear scaling, and a bias on every projection.
    Fixture(
        "llama-linear",
        llama(
            head_dim=10,
            rope_scaling={"type": "linear", "factor": 4.0},
            attention_bias=True,
            mlp_bias=True,
            torch_dtype="float32",
        ),
        length=48,
        ablations={"no scaling": {"rope_scaling": None}},
        neutralized={"no qkv bias": "q_proj.bias", "no o bias": "o_proj.bias", "no down bias": "down_proj.bias"},
        dtype=torch.float32,
    ),
    # Dynamic scaling depends on how the tokens are fed: every run has its own logits.
    Fixture(
        "llama-dynamic",
        llama(max_position_embeddings=24, rope_scaling={"type": "dynamic", "factor": 2.0}, torch_dtype="bfloat16"),
        length=70,
        ablations={
            "no scaling": {"rope_scaling": None},
            "other factor": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        },
    ),
    Fixture(
        "llama-yarn",
        llama(head_dim=16, rope_scaling=YARN, max_position_embeddings=128, torch_dtype="bfloat16"),
        length=80,
        ablations={
            "no scaling": {"rope_scaling": None},
            "no attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.0}},
            "no ramp": {"rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0}},
        },
    ),
    # A window much shorter than the sequence; one token more or less is an ablation.
    Fixture(
        "mistral-window",
        llama(
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            head_dim=24,
            rope_theta=1000000.0,
            sliding_window=9,
            torch_dtype="bfloat16",
        ),
        length=80,
        ablations={
            "no window": {"sliding_window": None},
            "window one longer": {"sliding_window": 10},
            "window one shorter": {"sliding_window": 8},
        },
    ),
    # Bias on q, k and v without a field that says so, tied embeddings, a window that is switched off.
    Fixture(
        "qwen2-tied",
        llama(
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            bos_token_id=...,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            use_sliding_window=False,
            sliding_window=8,
            max_window_layers=1,
            tie_word_embeddings=True,
            torch_dtype="bfloat16",
        ),
        length=48,
        ablations={"window on": {"use_sliding_window": True}},
        neutralized={"no q bias": "q_proj.bias", "no v bias": "v_proj.bias"},
    ),
    # Norms on q and k, and a window on the second layer only.
    Fixture(
        "qwen3-window",
        llama(
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            bos_token_id=...,
            head_dim=28,
            attention_bias=False,
            rms_norm_eps=1e-6,
            rope_theta=1000000,
            use_sliding_window=True,
            sliding_window=11,
            max_window_layers=1,
            torch_dtype="bfloat16",
        ),
        length=80,
        ablations={
            "window off": {"use_sliding_window": False},
            "window on every layer": {"max_window_layers": 0},
            "window one longer": {"sliding_window": 12},
        },
        neutralized={"no q norm": "q_norm", "no k norm": "k_norm"},
    ),
]


def random_weights(fixture: Fixture, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that make attention sharp and logits spread: std gain / sqrt(fan in), random norms and biases.

    All are bf16 values, so that F32 and F16 files hold exactly what sparamx computes with.
    """
    gains = {"q_proj": 1.2, "k_proj": 1.2, "lm_head": 2.0}
    weights = {}
    for name, parameter in model.state_dict().items():
        if "norm" in name:
            w = 0.5 + torch.rand(parameter.shape)
        elif name.endswith("bias"):
            w = 0.5 * torch.randn(parameter.shape)
        else:
            gain = next((g for part, g in gains.items() if part in name), 1.0)
            w = gain / math.sqrt(parameter.shape[-1]) * torch.randn(parameter.shape)
        # Below the smallest normal F16 a bf16 value need not be an F16 value.
        w = torch.where(w.abs() < 2.0**-14, 0.0, w).to(torch.bfloat16)
        weights[name] = w.to(fixture.dtype)
    if fixture.config["tie_word_embeddings"]:
        weights.pop("lm_head.weight", None)
        # A tied embedding is also the head: its logits need the same spread.
        weights["model.embed_tokens.weight"] *= 2
    return weights


def write_weights(weights: dict[str, torch.Tensor], path: Path, shards: int) -> None:
    """One file, or several with an index."""
    if shards == 1:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    names = sorted(weights)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({n: weights[n] for n in part}, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load(path: Path, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def run(model: torch.nn.Module, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits `[tokens, vocab]` of feeding the tokens in chunks, with a cache in between."""
    cache = DynamicCache(config=model.config)
    logits, start = [], 0
    for chunk in chunks:
        ids = torch.tensor([tokens[start : start + chunk]])
        logits.append(model(ids, past_key_values=cache, use_cache=True).logits[0])
        start += chunk
    assert start == len(tokens)
    return torch.cat(logits)


class Disturbance:
    """Adds to a model's activations the largest errors that the roundings of sparamx can make, with random signs.

    Always: keys and values, which the cache holds in bf16 (U_BF16); norms, activation function and probabilities (U_VEC);
    sums over K terms (K * U_F32 of the sum of magnitudes, the first-order bound for any order of adding).
    With `bf16`, also what the kernels round before they multiply: the input of every projection, the queries and the
    probabilities (U_BF16).
    """

    def __init__(self, model: torch.nn.Module, bf16: bool):
        self.u_act = U_BF16 if bf16 else 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self.linear)
            elif type(module).__name__.endswith(("RMSNorm", "SiLUActivation")):
                module.register_forward_hook(lambda _m, _i, out: self.relative(out, U_VEC))
        ALL_ATTENTION_FUNCTIONS.register("disturbed", self.attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register("disturbed", eager_mask)
        model.set_attn_implementation("disturbed")

    @staticmethod
    def signs(x: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 2, x.shape, dtype=x.dtype) * 2 - 1

    def relative(self, x: torch.Tensor, u: float) -> torch.Tensor:
        return x * (1 + u * self.signs(x))

    def linear(self, module, inputs, _out):
        x = self.relative(inputs[0], self.u_act)
        y = torch.nn.functional.linear(x, module.weight, module.bias)
        magnitudes = torch.nn.functional.linear(x.abs(), module.weight.abs())
        return y + self.signs(y) * magnitudes * (x.shape[-1] * U_F32)

    def attention(self, module, q, k, v, mask, scaling, **_):
        groups = q.shape[1] // k.shape[1]
        q = self.relative(q, self.u_act)
        k = self.relative(k, U_BF16).repeat_interleave(groups, dim=1)
        v = self.relative(v, U_BF16).repeat_interleave(groups, dim=1)
        scores = q @ k.transpose(2, 3) * scaling
        scores = scores + self.signs(scores) * (q.abs() @ k.abs().transpose(2, 3) * scaling * q.shape[-1] * U_F32)
        p = torch.softmax(scores + mask, dim=-1)
        p = self.relative(p, self.u_act + U_VEC)
        return (p @ v).transpose(1, 2).contiguous(), p


def distance(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Root mean square and largest magnitude of the difference."""
    d = a - b
    return {"rms": d.pow(2).mean().sqrt().item(), "max": d.abs().max().item()}


def spread(path: Path, tokens: list[int], expected: torch.Tensor, bf16: bool) -> dict[str, float]:
    """The largest distances over TRIALS disturbed runs."""
    model = load(path)
    Disturbance(model, bf16)
    found = [distance(run(model, tokens, [len(tokens)]), expected) for _ in range(TRIALS)]
    return {kind: float(f"{max(d[kind] for d in found):.4g}") for kind in ("rms", "max")}


def check_ablations(fixture: Fixture, path: Path, tokens: list[int], expected: torch.Tensor, tolerance: float) -> dict:
    """How far each ablation moves the logits, in tolerances."""
    moved = {}
    for name, changes in fixture.ablations.items():
        other = path.with_name(path.name + "-ablated")
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(path, other)
        (other / "config.json").write_text(json.dumps({**fixture.config, **changes}))
        moved[name] = run(load(other), tokens, [len(tokens)])
        shutil.rmtree(other)
    for name, part in fixture.neutralized.items():
        model = load(path)
        for tensor, parameter in model.named_parameters():
            if part in tensor:
                parameter.data = torch.ones_like(parameter) if "norm" in tensor else torch.zeros_like(parameter)
        moved[name] = run(model, tokens, [len(tokens)])
    moved = {name: float(f"{distance(m, expected)['rms'] / tolerance:.3g}") for name, m in moved.items()}
    for name, far in moved.items():
        assert far > MARGIN, f"{fixture.name}: '{name}' moves logits by only {far} tolerances"
    return moved


def schedules(length: int) -> list[list[int]]:
    """All at once; most at once and then single tokens; uneven chunks; single tokens."""
    return [[length], [length - 8] + [1] * 8, [5, 1, 17, length - 23], [1] * length]


def make(fixture: Fixture, out: Path, seed: int) -> None:
    torch.manual_seed(seed)
    path = out / fixture.name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(fixture.config, indent=2) + "\n")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    write_weights(random_weights(fixture, model), path, fixture.shards)

    tokens = torch.randint(0, fixture.config["vocab_size"], (fixture.length,)).tolist()
    logits, runs = {}, []
    for chunks in schedules(fixture.length):
        r = run(load(path), tokens, chunks)
        same = next((name for name, other in logits.items() if (r - other).abs().max() < 1e-4), None)
        name = same or f"logits.{len(logits)}"
        logits.setdefault(name, r)
        runs.append({"chunks": chunks, "logits": name})
    assert (len(logits) > 1) == (fixture.name == "llama-dynamic"), f"{fixture.name}: {len(logits)} different runs"

    expected = logits["logits.0"]
    f32 = distance(run(load(path, torch.float32), tokens, [len(tokens)]), expected)["max"]
    spreads = {kind: spread(path, tokens, expected, kind == "bf16") for kind in ("f32", "bf16")}
    moved = check_ablations(fixture, path, tokens, expected, SAFETY * spreads["bf16"]["rms"])
    save_file({n: t.to(torch.float32) for n, t in logits.items()}, path / "golden.safetensors")
    golden = {
        "tokens": tokens,
        "runs": runs,
        "spread": spreads,
        "ablations_in_tolerances": moved,
    }
    (path / "golden.json").write_text(json.dumps(golden) + "\n")
    for file in path.iterdir():
        file.chmod(0o644)
    size = sum(f.stat().st_size for f in path.iterdir())
    print(
        f"{fixture.name}: {size} bytes, max |logit| {expected.abs().max():.2f}, float32 off by {f32:.1e},"
        f" spread {spreads}, ablations {moved}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the fixtures; those in it are replaced")
    parser.add_argument("--only", help="one fixture's name")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for seed, fixture in enumerate(FIXTURES):
        if args.only in (None, fixture.name):
            shutil.rmtree(args.out / fixture.name, ignore_errors=True)
            make(fixture, args.out, seed)


if __name__ == "__main__":
    main()
