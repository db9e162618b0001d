"""The work that is measured: shapes, weights and reference results, the same for every peer."""

import json
import pathlib
import zlib
from dataclasses import dataclass

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE / ".build"

# (N, K) of the linear layers of Llama-3-8B: q and o, k and v, gate and up, down, lm_head.
LINEAR_SHAPES = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096)]
LINEAR_BATCHES = [1, 4, 8, 16, 32, 512]

# Copies of a weight are made until they take at least this much, and at least so many times the last-level cache.
STREAM_BYTES = 256 << 20
STREAM_CACHES = 4

# Random numbers are drawn once and repeated: drawing a billion would take longer than the measurement. The length is a
# prime, so that no two rows of a weight are equal.
POOL_LEN = 4194301
STD = 0.02
# Output columns that are compared with the reference.
CHECKED_ROWS = 64
PROMPT = [1, 7919, 15838, 23757, 31676, 7595, 15514, 23433]


@dataclass(frozen=True)
class Kind:
    """One way in which a peer stores weights."""

    name: str
    precision: str  # 32-bit, 16-bit, 8-bit or 4-bit weights: what a fair comparison is grouped by
    bytes_per_weight: float  # of a weight that is not zero; what it takes to say where they are is not counted
    tolerance: float  # largest error of a linear layer, relative to the norm of the reference
    sparsity: float = 0.0

    def read_bytes(self, n, k):
        """Of a weight, in any form: as few as a multiplication can read."""
        return n * k * (1 - self.sparsity) * self.bytes_per_weight


@dataclass(frozen=True)
class ModelShape:
    """TinyLlama-1.1B."""

    hidden: int = 2048
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4
    intermediate: int = 5632
    vocab: int = 32000
    eps: float = 1e-5
    theta: float = 10000.0

    @property
    def head_dim(self):
        return self.hidden // self.heads

    def tensors(self):
        """Hugging Face names of all weights, with their shapes; what is of one dimension is all ones."""
        h, kv, i = self.hidden, self.kv_heads * self.head_dim, self.intermediate
        yield "model.embed_tokens.weight", (self.vocab, h)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (h,)
            yield at + "self_attn.q_proj.weight", (h, h)
            yield at + "self_attn.k_proj.weight", (kv, h)
            yield at + "self_attn.v_proj.weight", (kv, h)
            yield at + "self_attn.o_proj.weight", (h, h)
            yield at + "post_attention_layernorm.weight", (h,)
            yield at + "mlp.gate_proj.weight", (i, h)
            yield at + "mlp.up_proj.weight", (i, h)
            yield at + "mlp.down_proj.weight", (h, i)
        yield "model.norm.weight", (h,)
        yield "lm_head.weight", (self.vocab, h)


SHAPE = ModelShape()
# The error of a layer grows about tenfold through 22 layers of random weights; results that have nothing to do with the
# reference (a wrong layout, a wrong rotation) are off by 1 or more.
MODEL_GROWTH, MODEL_CAP = 10, 0.8

_pool = None


def pool():
    """Normal random numbers with the deviation of a trained model's weights."""
    global _pool
    if _pool is None:
        _pool = np.random.default_rng(1).standard_normal(POOL_LEN, dtype=np.float32) * np.float32(STD)
    return _pool


def weight(name, shape):
    """The weight of that name, f32."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    numbers = pool()
    start = zlib.crc32(name.encode()) % POOL_LEN
    out = np.empty(shape[0] * shape[1], np.float32)
    at = 0
    while at < len(out):
        part = numbers[start : start + len(out) - at]
        out[at : at + len(part)] = part
        at += len(part)
        start = 0
    return out.reshape(shape)


def pruned(w, sparsity):
    """The weight without that fraction of its elements, those nearest to zero; changes `w`."""
    if sparsity:
        w[np.abs(w) < np.quantile(np.abs(pool()), sparsity)] = 0
    return w


def activations(m, k):
    """m rows, f32; within 4, as the static quantization of DeepSparse's graph assumes."""
    return np.clip(np.random.default_rng(2).standard_normal((m, k), dtype=np.float32), -3.9, 3.9)


def copies(n, k, bytes_per_weight):
    """How many copies of a weight the calls go through, so that none is in a cache when its turn comes."""
    return max(1, -(-max(STREAM_BYTES, STREAM_CACHES * last_level_cache()) // int(n * k * bytes_per_weight)))


def distinct(w, i):
    """Copy i of a weight, with other rows first: an engine that sees equal constants may keep one of them. Copy 0 is the weight."""
    return np.roll(w, i, axis=0) if i else w


def last_level_cache():
    """Bytes; 0 where the system does not say."""
    sizes = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().rstrip("K")) << 10 for size in sizes), default=0)


def relative_error(y, reference):
    """Norm of the difference over the norm of the reference; infinite if anything is not finite."""
    y = np.asarray(y, np.float32)
    if y.shape != reference.shape or not np.isfinite(y).all():
        return float("inf")
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def reference_logits():
    """Logits of the model for PROMPT, [tokens, vocab], by numpy in f32; kept in a file once made."""
    key = json.dumps([str(SHAPE), PROMPT, POOL_LEN, STD])
    path = BUILD / f"reference-{zlib.crc32(key.encode()):08x}.npy"
    if not path.exists():
        part = path.with_suffix(".part.npy")
        np.save(part, _forward(SHAPE, PROMPT))
        part.rename(path)
    return np.load(path)


def _forward(s, tokens):
    t, d = len(tokens), s.head_dim
    shapes = dict(s.tensors())

    def w(name):
        return weight(name, shapes[name])

    def norm(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + s.eps)

    angle = np.arange(t)[:, None] * s.theta ** (-np.arange(0, d, 2) / d)
    cos, sin = (np.tile(f(angle), 2).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))

    def rotate(x):
        return x * cos + np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], -1) * sin

    hidden = w("model.embed_tokens.weight")[tokens]
    mask = np.triu(np.full((t, t), -np.inf, np.float32), 1)
    for layer in range(s.layers):
        at = f"model.layers.{layer}."
        x = norm(hidden)
        q, k, v = (x @ w(f"{at}self_attn.{p}_proj.weight").T for p in "qkv")
        q = rotate(q.reshape(t, s.heads, d))
        k = np.repeat(rotate(k.reshape(t, s.kv_heads, d)), s.heads // s.kv_heads, 1)
        v = np.repeat(v.reshape(t, s.kv_heads, d), s.heads // s.kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, v).reshape(t, s.hidden)
        hidden = hidden + mixed @ w(at + "self_attn.o_proj.weight").T
        x = norm(hidden)
        gate, up = (x @ w(f"{at}mlp.{p}_proj.weight").T for p in ("gate", "up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ w(at + "mlp.down_proj.weight").T
    return norm(hidden) @ w("lm_head.weight").T
