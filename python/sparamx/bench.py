"""Speed of sparse layers over stock PyTorch: ``python -m sparamx.bench``.

First single linear layers of a model's shapes, by the number of rows: stock PyTorch in float32 and bfloat16, and sparse layers.
Then ``generate`` of a whole model with random weights. Rounds take turns, figures are medians; each call multiplies with another
copy of a weight, so that it comes from memory and not from the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

import sparamx
from sparamx.torch import SparseLinear, sparsify

#: Hidden size, of the MLP, layers, heads, key and value heads, vocabulary.
SHAPES = {
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 32000),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256),
}
#: Bytes of weights that are gone through in turn: several times a large last-level cache.
WORKING_SET = 256 << 20


def main() -> None:
    """Runs the benchmark and prints tables."""
    parser = argparse.ArgumentParser(prog="python -m sparamx.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--layers", type=int, help="only so many of its layers, end to end")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--weights", default="bf16,int8", help="formats of sparse weights, with commas")
    parser.add_argument("--batch", default="1,4,8,16,32", help="rows of activations, or sequences")
    parser.add_argument("--new-tokens", type=int, default=16, help="end to end; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="as PyTorch would take if not given")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    batches = [int(b) for b in args.batch.split(",")]
    formats = args.weights.split(",")
    about = {
        "sparamx": sparamx.__version__,
        "isa": sparamx.isa(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "sparsity": args.sparsity,
    }
    results: dict[str, Any] = {**about, "layers": [], "generate": []}
    say = (lambda *_: None) if args.json else print
    say(", ".join(f"{key} {value}" for key, value in about.items()))
    with torch.inference_mode():
        say("\nOne call of a linear layer, microseconds, and times the speed of stock PyTorch's faster dtype\n")
        heads = ["torch f32", "torch bf16", *(f"sparse {f}" for f in formats)]
        say("| layer | rows | " + " | ".join(heads) + " | " + " | ".join(f"{f} over torch" for f in formats) + " |")
        say("|---|---:|" + "---:|" * (len(heads) + len(formats)))
        for name, n, k in layer_shapes(args.shape):
            for row in layers(name, n, k, batches, formats, args.sparsity, args.rounds):
                results["layers"].append(row)
                times = [row["us"][head] for head in heads]
                best = min(times[:2])
                say(
                    f"| {name} {n} x {k} | {row['rows']} | "
                    + " | ".join(f"{t:.0f}" for t in times)
                    + " | "
                    + " | ".join(f"{best / t:.2f}" for t in times[2:])
                    + " |"
                )
        say(f"\nOverhead of a call beside the kernel: {overhead():.1f} microseconds (a layer of 16 x 32)")
        if args.new_tokens:
            say("\ngenerate, tokens a second, and times the speed of stock PyTorch\n")
            say("| batch | model | tokens/s | over f32 | over bf16 |\n|---:|---|---:|---:|---:|")
            for row in end_to_end(args.shape, args.layers, batches, formats, args.sparsity, args.new_tokens, args.rounds):
                results["generate"].append(row)
                say(
                    f"| {row['batch']} | {row['model']} | {row['tokens_per_second']:.2f} | "
                    f"{row['over_f32']:.2f} | {row['over_bf16']:.2f} |"
                )
    if args.json:
        print(json.dumps(results))


def layer_shapes(shape: str) -> list[tuple[str, int, int]]:
    """Name, outputs and inputs of the linear layers of a model."""
    hidden, mlp, _, heads, kv_heads, _ = SHAPES[shape]
    return [
        ("q_proj", hidden, hidden),
        ("k_proj", hidden // heads * kv_heads, hidden),
        ("up_proj", mlp, hidden),
        ("down_proj", hidden, mlp),
    ]


def layers(name: str, n: int, k: int, batches: list[int], formats: list[str], sparsity: float, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a call, by number of rows."""
    copies = max(2, WORKING_SET // (2 * n * k))
    first = nn.Linear(k, n, bias=False)
    variants: dict[str, tuple[torch.dtype, Sequence[nn.Module]]] = {
        "torch f32": (torch.float32, [_linear(first.weight.clone()) for _ in range((copies + 1) // 2)]),
        "torch bf16": (torch.bfloat16, [_linear(first.weight.bfloat16().clone()) for _ in range(copies)]),
    }
    for weights in formats:
        made = [SparseLinear.from_linear(first, sparsity, weights=weights) for _ in range(copies)]
        variants[f"sparse {weights}"] = (torch.float32, made)
    rows = []
    for batch in batches:
        x = torch.randn(batch, k)
        inputs = {dtype: x.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, (dtype, modules) in variants.items():
                times[variant].append(_seconds(_call_all, modules, inputs[dtype]) / len(modules))
        us = {variant: statistics.median(seconds) * 1e6 for variant, seconds in times.items()}
        rows.append({"layer": name, "n": n, "k": k, "rows": batch, "us": us})
    return rows


def overhead() -> float:
    """Microseconds of a call whose kernel has next to nothing to do."""
    layer = SparseLinear.from_linear(nn.Linear(64, 32, bias=False))
    x = torch.randn(1, 64)
    calls = 2000
    return statistics.median(_seconds(_call_all, [layer] * calls, x) / calls for _ in range(5)) * 1e6


def end_to_end(
    shape: str, layer_count: int | None, batches: list[int], formats: list[str], sparsity: float, new: int, rounds: int
) -> list[dict[str, Any]]:
    """Tokens a second of ``generate``."""
    import transformers

    hidden, mlp, count, heads, kv_heads, vocabulary = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layer_count or count,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )

    def make(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            return transformers.LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)

    models = {"torch f32": make(torch.float32), "torch bf16": make(torch.bfloat16)}
    for weights in formats:
        # The head too: at batch 1 it is a good part of what is read.
        models[f"sparse {weights}"] = model = make(torch.float32)
        sparsify(model, sparsity, weights=weights, exclude=(), progress=False)
    rows = []
    for batch in batches:
        prompt = torch.randint(0, vocabulary, (batch, 8))
        ask = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        times: dict[str, list[float]] = {name: [] for name in models}
        for round_ in range(rounds + 1):
            for name, model in models.items():
                seconds = _seconds(model.generate, prompt, **ask)
                if round_ > 0:
                    times[name].append(seconds)
        speed = {name: batch * new / statistics.median(seconds) for name, seconds in times.items()}
        rows += [
            {
                "batch": batch,
                "model": name,
                "tokens_per_second": value,
                "over_f32": value / speed["torch f32"],
                "over_bf16": value / speed["torch bf16"],
            }
            for name, value in speed.items()
        ]
    return rows


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _call_all(modules: Iterable[nn.Module], x: torch.Tensor) -> None:
    for module in modules:
        module(x)


def _seconds(work: Callable[..., Any], *args: Any, **options: Any) -> float:
    start = time.perf_counter()
    work(*args, **options)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
