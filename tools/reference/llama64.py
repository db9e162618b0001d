"""A forward pass in float64, written from the definition of Llama."""

import json

import numpy as np
from safetensors.numpy import load_file


class Llama:
    """A forward pass in float64."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = weights(folder / "model.safetensors")

    def logits(self, ids):
        c, w = self.config, self.weights
        x = w["model.embed_tokens.weight"][ids]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, w[p + "input_layernorm.weight"]), p + "self_attn.")
            y = self.norm(x, w[p + "post_attention_layernorm.weight"])
            gate = y @ w[p + "mlp.gate_proj.weight"].T
            up = y @ w[p + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self.norm(x, w["model.norm.weight"]) @ head.T

    def norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def attention(self, x, p):
        c, w, tokens = self.config, self.weights, len(x)
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        dim = c.get("head_dim") or c["hidden_size"] // heads
        q, k, v = (x @ w[f"{p}{name}_proj.weight"].T for name in "qkv")
        q = self.rotate(q.reshape(tokens, heads, dim))
        k = self.rotate(k.reshape(tokens, kv_heads, dim)).repeat(heads // kv_heads, 1)
        v = v.reshape(tokens, kv_heads, dim).repeat(heads // kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", scores, v).reshape(tokens, -1) @ w[p + "o_proj.weight"].T

    def rotate(self, x):
        tokens, _, dim = x.shape
        angles = np.outer(np.arange(tokens), self.config["rope_theta"] ** (-np.arange(0, dim, 2) / dim))
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def weights(path):
    """Tensors in float64; NumPy has no bf16, which is the upper half of a float32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if any(entry["dtype"] != "BF16" for name, entry in header.items() if name != "__metadata__"):
        return {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(data[start:end], "<u2").astype("<u4") << 16
            tensors[name] = bits.view("<f4").astype(np.float64).reshape(entry["shape"])
    return tensors
