"""Writes the GGUF fixtures of crates/model/tests/checkpoints with the package `gguf`.

    make_gguf.py --out DIR

Two tiny models, one of each order of rows (llama.cpp keeps q and k of Llama models in another one) and of each kind of
vocabulary, with all types of tensors that sparamx reads. `<name>.expected.json` holds, for each tensor, the FNV-1a hash of
its elements as bf16 under its Hugging Face name and in its order, as the package itself dequantizes it.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

LAYERS, HIDDEN, INTER, HEADS, KV_HEADS, VOCAB = 1, 32, 64, 4, 2, 48
HEAD_DIM = HIDDEN // HEADS


def bf16(values):
    """Bits of f32 values rounded to bf16, to nearest and ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def fnv1a(values):
    value = 0xCBF29CE484222325
    for byte in bf16(values).tobytes():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def permute(rows, heads):
    """LlamaModel.permute of llama.cpp's converter."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def unpermute(rows, heads):
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def weights(rng, qwen):
    """Names and values, and the type each is stored in."""
    kv = KV_HEADS * HEAD_DIM
    matrix = lambda n, k: (0.2 * rng.standard_normal((n, k))).astype(np.float32)
    vector = lambda n: (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)
    layer = "model.layers.0."
    yield "model.embed_tokens.weight", matrix(VOCAB, HIDDEN), T.F16
    yield layer + "input_layernorm.weight", vector(HIDDEN), T.F32
    yield layer + "self_attn.q_proj.weight", matrix(HIDDEN, HIDDEN), T.Q8_0
    yield layer + "self_attn.k_proj.weight", matrix(kv, HIDDEN), T.Q4_1 if qwen else T.Q4_0
    yield layer + "self_attn.v_proj.weight", matrix(kv, HIDDEN), T.BF16
    if qwen:
        for part, n in (("q", HIDDEN), ("k", kv), ("v", kv)):
            yield layer + f"self_attn.{part}_proj.bias", vector(n), T.F32
    yield layer + "self_attn.o_proj.weight", matrix(HIDDEN, HIDDEN), T.F32
    yield layer + "post_attention_layernorm.weight", vector(HIDDEN), T.F32
    yield layer + "mlp.gate_proj.weight", matrix(INTER, HIDDEN), T.Q4_0
    # Scales that bf16 holds: levels stay levels.
    exact = rng.integers(-7, 8, (INTER, HIDDEN)).astype(np.float32)
    exact[:, 0] = -8
    yield layer + "mlp.up_proj.weight", exact / 64, T.Q4_0
    exact = rng.integers(-126, 127, (HIDDEN, INTER)).astype(np.float32)
    exact[:, ::32] = 127
    yield layer + "mlp.down_proj.weight", exact / 1024, T.Q8_0
    yield "model.norm.weight", vector(HIDDEN), T.F32
    if not qwen:
        yield "lm_head.weight", matrix(VOCAB, HIDDEN), T.Q4_1


def spm_tokens():
    """A SentencePiece vocabulary: pieces with scores, two bytes, and a token that users defined."""
    kinds = gguf.TokenType
    tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    tokens += [("<0x0A>", 0.0, kinds.BYTE), ("<0xC3>", 0.0, kinds.BYTE), ("<0xA9>", 0.0, kinds.BYTE)]
    pieces = ["▁t", "he", "▁the", "ca", "▁ca", "t", "▁cat", "s", "at", "▁sat", "▁s", "on", "▁on"]
    pieces = [p for i, p in enumerate(pieces) if len(p) > 1] + list("▁etahcsonmirdlu.,")
    tokens += [(piece, float(-i), kinds.NORMAL) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokens.append(("<extra>", 0.0, kinds.USER_DEFINED))
    return tokens + [(f"[PAD{i}]", -1000.0, kinds.UNUSED) for i in range(VOCAB - len(tokens))]


def bpe_tokens():
    """A byte-level vocabulary and its merges."""
    letters = list("abcdehinorstuĠĊ.!123Ã©")
    merges = ["Ġ t", "h e", "Ġt he", "c a", "Ġ ca", "Ġca t", "Ã ©"]
    tokens = letters + [merge.replace(" ", "") for merge in merges]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * 2
    tokens += ["<|endoftext|>", "<|im_end|>"]
    padding = VOCAB - len(tokens)
    kinds += [gguf.TokenType.UNUSED] * padding
    return tokens + [f"[PAD{i}]" for i in range(padding)], kinds, merges


def write_vocabulary(writer, qwen):
    if not qwen:
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_vocab_size(VOCAB)
        tokens, scores, kinds = zip(*spm_tokens())
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
    else:
        tokens, kinds, merges = bpe_tokens()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_pad_token_id(tokens.index("<|endoftext|>"))
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>")


def write(out, name, qwen):
    rng = np.random.default_rng(11 + qwen)
    arch = "qwen2" if qwen else "llama"
    writer = gguf.GGUFWriter(out / f"{name}.gguf", arch)
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    write_vocabulary(writer, qwen)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), LAYERS)
    expected = {}
    for tensor, values, kind in weights(rng, qwen):
        theirs = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(tensor.split(".")[-2]) if not qwen else None
        stored = values if heads is None else permute(values, heads)
        # f32 and f16 are written as arrays of these, as the converter does.
        data = {T.F32: np.float32, T.F16: np.float16}.get(kind)
        data = stored.astype(data) if data else quantize(stored, kind)
        writer.add_tensor(theirs, data, raw_dtype=kind)
        again = data.astype(np.float32) if kind in (T.F32, T.F16) else dequantize(data, kind)
        expected[tensor] = fnv1a(again if heads is None else unpermute(again, heads))
    if not qwen:
        # Llama 3.1's scaling, by the converter's formula.
        freqs = 1.0 / (500000.0 ** (np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM))
        wavelength = 2 * np.pi / freqs
        smooth = np.clip((8192 / wavelength - 1) / 3, 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (out / f"{name}.expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(name, (out / f"{name}.gguf").stat().st_size, "bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write(out, "llama", False)
    write(out, "qwen2", True)
