"""Makes the fixtures of crates/compress/tests/reference.rs: small layers, and what pruning and rounding make of them.

Everything is written from the papers, in float64 and for reading, not for speed: Wanda (arXiv 2306.11695), SparseGPT (arXiv
2301.00774) with its inverse Hessian, and GPTQ (arXiv 2210.17323). Where the papers leave a choice, `sparamx` documents its
own, and it is repeated here: which of equal scores goes first, what a scale is, that weights that are zero stay so.

A fixture is NAME.safetensors: `weights` and `inputs` (and `dense`, the inputs of the dense model) as bits of bf16, and of
every case CASE.bits (bf16) or CASE.levels and CASE.scales. cases.json lists the cases, with the relative error of each.

The test compares bits. That is possible because no decision is near: every comparison of scores, every rounding and every
choice between scales is checked here to be decided by a margin (MARGIN) that no difference between two ways to compute in
float64 comes near to; where one is not, the layer is made again from another seed, or of fewer tokens.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BLOCK = 128
DAMPENING = 0.01

# Relative to the numbers compared, and in steps where something is rounded. sparamx computes in float64, with relative errors of
# 1e-16 times the condition number of the dampened Hessian, about 1e4 here: 1e-12. Scores may be that far off.
MARGIN = 1e-8
# Bits of bf16 are rounded from f32 here, which has 2^16 values in a step of bf16.
MARGIN_BF16 = 2e-5
# Levels of int8 and int4 come from quotients of f32: 2^-24 twice, times 127 steps.
MARGIN_LEVEL = 2e-5
# So do the sums of squared errors that scales of int4 are chosen by: an error is at most 2^-24 of a weight off, and about 1/32 of it.
MARGIN_SCALE = 1e-5


class Undecided(Exception):
    """Something was decided by less than a margin."""


def decided(distance, margin):
    """Checks that no element of `distance` is below `margin`."""
    if np.size(distance) and np.min(distance) < margin:
        raise Undecided(f"{np.min(distance)} of {margin}")


# Numbers


def to_bits(values):
    """The bits of the nearest bf16, ties to even; +0 for zeros."""
    wide = np.asarray(values, np.float64).astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(bits == 0x8000, 0, bits).astype(np.uint16)


def from_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_bf16(values):
    """Rounded to bf16, as float64. Values half way between two are not decided."""
    rounded = from_bits(to_bits(values))
    nonzero = values[values != 0]
    step = 2.0 ** (np.floor(np.log2(np.abs(nonzero))) - 7)
    decided(np.abs((nonzero / step) % 1 - 0.5), MARGIN_BF16)
    return rounded


def nearest(exact, low, high):
    """The whole numbers nearest to `exact`, between two."""
    inside = exact[(exact > low - 1) & (exact < high + 1)]
    decided(np.abs(inside % 1 - 0.5), MARGIN_LEVEL)
    return np.clip(np.round(exact), low, high)


# Masks: True for weights to keep


def keep_largest(scores, count):
    """Drops the `count` smallest of a vector, the first of equal ones."""
    order = np.argsort(scores, kind="stable")
    if 0 < count < len(scores):
        last, first = scores[order[count - 1]], scores[order[count]]
        # Equal magnitudes of bf16 weights are equal in every program; other scores have to differ clearly.
        if last != first:
            decided((first - last) / first, MARGIN)
    kept = np.ones(len(scores), bool)
    kept[order[:count]] = False
    return kept


def half_up(share, count):
    return int(np.floor(share * count + 0.5))


def keep_groups(scores, keep, of):
    parts = [scores[i : i + of] for i in range(0, len(scores), of)]
    return np.concatenate([keep_largest(part, max(0, len(part) - keep)) for part in parts])


def keep_rows(scores, case):
    if "n_of_m" in case:
        return np.array([keep_groups(row, *case["n_of_m"]) for row in scores])
    return np.array([keep_largest(row, half_up(case["sparsity"], len(row))) for row in scores])


def magnitude_mask(w, case):
    scores = np.abs(w)
    if "n_of_m" not in case and case["scope"] == "tensor":
        kept = keep_largest(scores.ravel(), half_up(case["sparsity"], w.size)).reshape(w.shape)
    else:
        kept = keep_rows(scores, case)
    return kept & (w != 0)


def wanda_mask(w, x, case):
    """Section 3 of the paper: |W_ij| ||X_j||_2, compared within a row."""
    return keep_rows(np.abs(w) * np.sqrt((x * x).sum(0)), case) & (w != 0)


# Levels


def int8_scale(weights):
    """The largest magnitude becomes 127."""
    return float(np.float32(np.max(np.abs(weights), initial=0.0)) / np.float32(127))


def int8_level(weight, scale):
    return nearest(np.asarray(weight / scale), -127, 127) if scale else 0.0 * weight


def int4_level(weights, scale, packed, check=True):
    """-8 to 7. Of packed weights only zeros become 0."""
    if scale == 0:
        return 0.0 * weights
    exact = weights / scale
    levels = nearest(exact, -8, 7) if check else np.clip(np.round(exact), -8, 7)
    if packed:
        levels = np.where((levels == 0) & (weights != 0), np.copysign(1.0, exact), levels)
    return levels


def int4_scale(weights, packed):
    """Of nine scales around that which makes the largest weight -8, the one of the least squared error."""
    sizes = np.sort(np.abs(weights))
    if sizes[-1] == 0:
        return 0.0
    if len(sizes) > 1 and sizes[-1] != sizes[-2]:
        decided((sizes[-1] - sizes[-2]) / sizes[-1], MARGIN)
    largest = np.float32(weights[np.argmax(np.abs(weights))])
    steps = [0, -8, -6, -4, -2, 2, 4, 6, 8]
    scales = [-largest / (np.float32(8) + np.float32(0.1) * np.float32(i)) for i in steps]
    scales = from_bits(to_bits(np.array(scales, np.float32)))
    errors = [np.sum((weights - int4_level(weights, s, packed, check=False) * s) ** 2) for s in scales]
    best = int(np.argmin(errors))
    others = [e for e, s in zip(errors, scales) if s != scales[best]]
    if errors[best] > 0 or min(others) == 0:
        decided((np.array(others) - errors[best]) / max(errors[best], 1e-300), MARGIN_SCALE)
    return float(scales[best])


def packs(zeros, size):
    """Whether a mask saves more than it takes."""
    return zeros * 4 >= size


def round_to_nearest(w, case):
    """Levels and scales of bf16 weights, each by itself."""
    n, k = w.shape
    if case["weights"] == "int8":
        scales = np.array([[int8_scale(row)] for row in w])
        levels = np.array([int8_level(row, scale) for row, (scale,) in zip(w, scales)])
        return levels, scales
    group = case["group"]
    packed = packs(np.sum(w == 0), w.size)
    scales = np.zeros((n, -(-k // group)))
    levels = np.zeros((n, k))
    for r in range(n):
        for g, first in enumerate(range(0, k, group)):
            part = w[r, first : first + group]
            scales[r, g] = int4_scale(part, packed)
            levels[r, first : first + group] = int4_level(part, scales[r, g], packed)
    return levels, scales


# SparseGPT, and GPTQ in the same pass


def dampened(x):
    """The dampened Hessian, and which inputs are dead."""
    hessian = x.T @ x
    diagonal = np.diag(hessian)
    dead = diagonal == 0
    damp = DAMPENING * diagonal[~dead].mean()
    return hessian + np.diag(np.where(dead, 1.0, damp)), dead


def inverse_factor(x):
    """The upper Cholesky factor of the inverse of the dampened Hessian, and which inputs are dead."""
    hessian, dead = dampened(x)
    return np.linalg.cholesky(np.linalg.inv(hessian)).T, dead


def retarget(w, x, dense):
    """The weights that make ||X w - D w_dense||^2 + a ||w - w_dense||^2 least, a the dampening; zeros and dead ones stay."""
    hessian, dead = dampened(x)
    start = np.where(dead, 0.0, w)
    change = np.linalg.solve(hessian, x.T @ (dense @ w.T - x @ start.T)).T
    return np.where(start == 0, start, start + change)


def share_pruned(case):
    return 1 - case["n_of_m"][0] / case["n_of_m"][1] if "n_of_m" in case else case["sparsity"]


def levels_of(column, scales, packed, int4):
    """Levels of a column, each weight with the scale of its row."""
    pairs = zip(column[:, None], scales)
    return [(int4_level(one, scale, packed) if int4 else int8_level(one, scale))[0] for one, scale in pairs]


def sparse_gpt(w, x, case, kept=None, levels=False):
    """Algorithm 1 of SparseGPT, with the mask given or chosen; with `levels`, weights that are kept are rounded as in GPTQ.

    Returns the weights, the mask, and levels and scales.
    """
    w = w.copy()
    n, k = w.shape
    factor, dead = inverse_factor(x)
    choose = kept is None
    if choose:
        w[:, dead] = 0
        kept = w != 0
    kept = kept.copy()
    result, codes = np.zeros((n, k)), np.zeros((n, k))
    int4 = levels and case["weights"] == "int4"
    group = case["group"] if int4 else k
    scales = np.zeros((n, -(-k // group)))
    if levels:
        pruned = half_up(share_pruned(case), w.size) if choose else 0
        packed = packs(max(pruned, np.sum(~kept)), w.size)
        if not int4:
            # Making up for what is pruned makes weights larger, so scales are those of weights pruned before.
            sized, mask = sparse_gpt(w, x, case)[:2] if choose else (w, kept)
            scales[:, 0] = [int8_scale(row[mask]) for row, mask in zip(sized, mask)]

    def scores(rows, first, last):
        found = w[rows, first:last] ** 2 / np.diag(factor)[first:last] ** 2
        return np.where(kept[rows, first:last], found, 0.0)

    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        if choose and "sparsity" in case:
            block = scores(slice(None), first, last)
            parts = block if case["scope"] == "row" else block.reshape(1, -1)
            largest = [keep_largest(part, half_up(case["sparsity"], part.size)) for part in parts]
            kept[:, first:last] &= np.reshape(largest, block.shape)
        errors = np.zeros((n, last - first))
        for j in range(first, last):
            if choose and "n_of_m" in case and (j - first) % case["n_of_m"][1] == 0:
                end = min(j + case["n_of_m"][1], last)
                for r in range(n):
                    kept[r, j:end] &= keep_groups(scores(r, j, end), *case["n_of_m"])
            if int4 and j % group == 0:
                end = min(j + group, k)
                for r in range(n):
                    mask = kept[r, j:end]
                    if choose and "n_of_m" in case:
                        mask = mask & keep_groups(scores(r, j, end), *case["n_of_m"])
                    scales[r, j // group] = int4_scale(np.where(mask, w[r, j:end], 0.0), packed)
            value = w[:, j].copy()
            if levels:
                scale = scales[:, j // group]
                codes[:, j] = levels_of(np.where(kept[:, j], w[:, j], 0.0), scale, packed, int4)
                value = codes[:, j] * scale
            value[~kept[:, j]] = 0
            result[:, j] = value
            error = (w[:, j] - value) / factor[j, j]
            errors[:, j - first] = error
            w[:, j + 1 : last] -= np.outer(error, factor[j, j + 1 : last])
        w[:, last:] -= errors @ factor[first:last, last:]
    return result, kept, codes, scales


# Least squares with a fixed mask


def refit(w, values, kept, x, dense):
    """The kept weights that make ||X w - D w_dense||^2 + a ||w - values||^2 least, a the dampening. Without normal equations."""
    squares = (x * x).sum(0)
    ridge = np.sqrt(DAMPENING * squares[squares > 0].mean())
    found = np.zeros_like(values)
    for r, (start, mask) in enumerate(zip(values, kept)):
        system = np.vstack([x[:, mask], ridge * np.eye(mask.sum())])
        side = np.concatenate([dense @ w[r], ridge * start[mask]])
        found[r, mask] = np.linalg.lstsq(system, side, rcond=None)[0]
    return found


def row_errors(values, w, x, dense):
    return np.sum((x @ values.T - dense @ w.T) ** 2, 0)


def reconstruct(w, values, kept, x, dense, rounded):
    if rounded:
        values = to_bf16(values)
    found = refit(w, values, kept, x, dense)
    if rounded:
        found = to_bf16(found)
    before, after = row_errors(values, w, x, dense), row_errors(found, w, x, dense)
    decided(np.abs(after - before) / before, MARGIN)
    return np.where((after <= before)[:, None], found, values)


# A case


def solve(w, x, dense, case):
    """Bits, or levels and scales, and the relative error on the inputs."""
    integers = case["weights"] != "bf16"
    compensate = integers and not case["rtn"]
    joint = compensate and case["method"] == "sparsegpt" and not case["reconstruct"]
    if case["method"] == "sparsegpt":
        target = w if dense is x else retarget(w, x, dense)
        values, kept, levels, scales = sparse_gpt(target, x, case, levels=joint)
    else:
        kept = magnitude_mask(w, case) if case["method"] == "magnitude" else wanda_mask(w, x, case)
        values = np.where(kept, w, 0.0)
    if not joint:
        if case["reconstruct"]:
            values = reconstruct(w, values, kept, x, dense, not compensate)
        if compensate:
            _, _, levels, scales = sparse_gpt(values, x, case, kept=kept, levels=True)
        else:
            values = to_bf16(values)
            if integers:
                levels, scales = round_to_nearest(values, case)
    if integers:
        values = levels * np.repeat(scales, case.get("group", w.shape[1]), 1)[:, : w.shape[1]]
        tensors = {"levels": levels.astype(np.int8), "scales": scales.astype(np.float32)}
    else:
        tensors = {"bits": to_bits(values)}
    output = dense @ w.T
    error = np.linalg.norm(x @ values.T - output) / np.linalg.norm(output)
    return tensors, float(error)


def case(name, method, pattern, weights="bf16", group=None, scope="tensor", rtn=False, reconstruct=False):
    made = {"case": name, "method": method, "scope": scope, "weights": weights, "rtn": rtn, "reconstruct": reconstruct}
    made["n_of_m" if isinstance(pattern, tuple) else "sparsity"] = pattern
    if group:
        made["group"] = group
    return made


SMALL = [
    case("magnitude", "magnitude", 0.5),
    case("magnitude-row", "magnitude", 0.6, scope="row"),
    case("magnitude-int8", "magnitude", 0.5, "int8", rtn=True),
    case("magnitude-int4", "magnitude", 0.5, "int4", 32, rtn=True),
    case("wanda", "wanda", 0.5),
    case("wanda-2of4", "wanda", (2, 4)),
    case("wanda-refit", "wanda", 0.5, reconstruct=True),
    case("wanda-int8", "wanda", 0.5, "int8"),
    case("wanda-refit-int4", "wanda", 0.5, "int4", 32, reconstruct=True),
    case("sparsegpt", "sparsegpt", 0.5),
    case("sparsegpt-2of4", "sparsegpt", (2, 4)),
    case("sparsegpt-refit", "sparsegpt", 0.5, reconstruct=True),
    case("sparsegpt-refit-int8", "sparsegpt", 0.5, "int8", reconstruct=True),
    case("sparsegpt-int8", "sparsegpt", 0.6, "int8"),
    case("sparsegpt-int4", "sparsegpt", 0.5, "int4", 32),
    case("sparsegpt-2of4-int4", "sparsegpt", (2, 4), "int4", 32),
    case("gptq-int8", "magnitude", 0.0, "int8"),
    case("gptq-int4", "sparsegpt", 0.0, "int4", 32),
]
BLOCKS = [
    case("magnitude-4of8", "magnitude", (4, 8)),
    case("sparsegpt", "sparsegpt", 0.5),
    case("sparsegpt-row", "sparsegpt", 0.5, scope="row"),
    case("sparsegpt-8of16", "sparsegpt", (8, 16)),
    case("sparsegpt-int8", "sparsegpt", 0.5, "int8"),
    case("sparsegpt-int4", "sparsegpt", 0.5, "int4", 128),
    case("gptq-int4", "sparsegpt", 0.0, "int4", 64),
    case("wanda-refit-int8", "wanda", 0.7, "int8", reconstruct=True),
]
ODD = [
    case("wanda-2of4", "wanda", (2, 4)),
    case("sparsegpt", "sparsegpt", 0.37),
    case("sparsegpt-2of4", "sparsegpt", (2, 4)),
    case("sparsegpt-int4", "sparsegpt", 0.2, "int4", 32),
    case("sparsegpt-refit", "sparsegpt", 0.37, reconstruct=True),
]
FEW = [
    case("wanda", "wanda", 0.5),
    case("sparsegpt", "sparsegpt", 0.5),
    case("sparsegpt-int8", "sparsegpt", 0.5, "int8"),
    case("wanda-refit", "wanda", 0.5, reconstruct=True),
]
REAL = [
    case("magnitude", "magnitude", 0.5),
    case("wanda", "wanda", 0.5),
    case("sparsegpt", "sparsegpt", 0.5),
    case("sparsegpt-2of4", "sparsegpt", (2, 4)),
    case("sparsegpt-int8", "sparsegpt", 0.5, "int8"),
    case("wanda-refit", "wanda", 0.5, reconstruct=True),
]


# Layers


def random_layer(seed, n, k, tokens, dead=0, zeros=0.0, dense=False):
    """Weights and inputs that are correlated and of unequal sizes, as those of models are."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(0.7 * rng.standard_normal(k))
    mixed = rng.standard_normal((tokens, 8)) @ rng.standard_normal((8, k)) / np.sqrt(8)
    x = (mixed + 0.7 * rng.standard_normal((tokens, k))) * sizes
    x[:, rng.permutation(k)[:dead]] = 0
    w = 0.05 * rng.standard_normal((n, k))
    w[rng.random((n, k)) < zeros] = 0
    layer = {"weights": to_bits(w), "inputs": to_bits(x)}
    if dense:
        layer["dense"] = to_bits(x + 0.2 * sizes * rng.standard_normal((tokens, k)))
    return layer


class Llama:
    """Just enough of a model to see the inputs of its layers."""

    def __init__(self, path):
        self.config = json.loads((path / "config.json").read_text())
        raw = read_safetensors(path / "model.safetensors")
        self.bits = {name: to_bits(value) for name, value in raw.items()}
        self.weights = {name: from_bits(bits) for name, bits in self.bits.items()}

    def inputs(self, ids, wanted):
        """The inputs of layer `wanted` at these tokens."""
        config, weights = self.config, self.weights
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config["hidden_size"] // heads
        angles = np.outer(np.arange(len(ids)), config["rope_theta"] ** (-np.arange(0, size, 2) / size))
        cos, sin = np.cos(angles), np.sin(angles)
        seen = {}

        def linear(name, x):
            seen[name] = x
            return x @ weights[name + ".weight"].T

        def norm(name, x):
            return x / np.sqrt((x * x).mean(1, keepdims=True) + config["rms_norm_eps"]) * weights[name + ".weight"]

        def rotate(x):
            x = x.reshape(len(ids), -1, size)
            a, b = x[..., : size // 2], x[..., size // 2 :]
            c, s = cos[:, None], sin[:, None]
            return np.concatenate([a * c - b * s, b * c + a * s], -1)

        hidden = weights["model.embed_tokens.weight"][ids]
        future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = norm(name + "input_layernorm", hidden)
            q = rotate(linear(name + "self_attn.q_proj", x))
            key = rotate(linear(name + "self_attn.k_proj", x))
            value = linear(name + "self_attn.v_proj", x).reshape(len(ids), kv_heads, size)
            out = np.zeros_like(q)
            for h in range(heads):
                g = h * kv_heads // heads
                scores = q[:, h] @ key[:, g].T / np.sqrt(size) + future
                scores = np.exp(scores - scores.max(1, keepdims=True))
                out[:, h] = scores / scores.sum(1, keepdims=True) @ value[:, g]
            hidden = hidden + linear(name + "self_attn.o_proj", out.reshape(len(ids), -1))
            x = norm(name + "post_attention_layernorm", hidden)
            gate, up = linear(name + "mlp.gate_proj", x), linear(name + "mlp.up_proj", x)
            hidden = hidden + linear(name + "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        logits = norm("model.norm", hidden) @ weights["model.embed_tokens.weight"].T
        likelihood = logits - np.log(np.sum(np.exp(logits), 1, keepdims=True))
        loss = -np.mean(likelihood[np.arange(len(ids) - 1), ids[1:]])
        print(f"{wanted}: perplexity of the model {np.exp(loss):.3f}")
        return seen[wanted]


def read_safetensors(path):
    """Tensors as float64, bf16 too, which NumPy does not have."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tensors = {}
    for name, info in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, last = (8 + length + offset for offset in info["data_offsets"])
        kind = {"F32": np.float32, "BF16": np.uint16}[info["dtype"]]
        values = np.frombuffer(content[first:last], kind).reshape(info["shape"])
        tensors[name] = from_bits(values) if info["dtype"] == "BF16" else values.astype(np.float64)
    return tensors


def real_layer(path, text, wanted, tokens):
    """A layer of a trained model at the tokens of a text. Its weights stay where they are."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids[:tokens]
    model = Llama(path)
    inputs = to_bits(model.inputs(np.array(ids), wanted))
    return model.bits[wanted + ".weight"], inputs


def attempts(make, cases):
    """The layer of the first attempt at which every case is decided."""
    for attempt in itertools.count():
        layer = make(attempt)
        w, x = from_bits(layer["weights"]), from_bits(layer["inputs"])
        dense = from_bits(layer["dense"]) if "dense" in layer else x
        try:
            return layer, [(c, *solve(w, x, dense, c)) for c in cases]
        except Undecided as undecided:
            print(f"  attempt {attempt}: {undecided}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories-260k", type=Path, help="folder of the model")
    parser.add_argument("--text", type=Path, help="a file of stories")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = arguments.text.read_text()[:2000]

    def real(path, wanted, tokens):
        def make(attempt):
            weights, inputs = real_layer(path, text, wanted, tokens)
            return {"weights": weights, "inputs": inputs[: tokens - attempt]}

        return make

    demo = Path(__file__).parents[2] / "models/stories-5m"
    value, down = "model.layers.3.self_attn.v_proj", "model.layers.2.mlp.down_proj"
    layers = [
        ("small", SMALL, lambda i: random_layer([1, i], 24, 40, 100), None),
        ("blocks", BLOCKS, lambda i: random_layer([2, i], 16, 256, 180), None),
        ("odd", ODD, lambda i: random_layer([3, i], 7, 131, 90), None),
        ("dead", FEW, lambda i: random_layer([4, i], 12, 72, 80, dead=3), None),
        ("zeros", FEW, lambda i: random_layer([5, i], 12, 72, 80, zeros=0.3), None),
        ("drifted", FEW, lambda i: random_layer([6, i], 12, 72, 120, dense=True), None),
        ("stories-5m", REAL[1:3] + REAL[4:5], real(demo, value, 150), value),
        ("stories260K", REAL, real(arguments.stories_260k, down, 200), down),
    ]
    listed = []
    for name, cases, make, tensor in layers:
        print(name)
        layer, results = attempts(make, cases)
        tensors = dict(layer)
        if tensor:
            del tensors["weights"]
        for made, outputs, error in results:
            tensors |= {f"{made['case']}.{key}": value for key, value in outputs.items()}
            listed.append({"layer": name, **made, "error": error} | ({"tensor": f"{tensor}.weight"} if tensor else {}))
            print(f"  {made['case']:24} {error:.5f}")
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, arguments.out / f"{name}.safetensors")
    lines = ",\n".join(json.dumps(entry) for entry in listed)
    (arguments.out / "cases.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
