"""The network: a plain Llama (RMS norm, rotary positions, grouped-query attention, SwiGLU, tied embeddings).

Parameter names are those of Hugging Face's LlamaForCausalLM less the leading "model.", so that export is a rename.
"""
import json
import math
import os
import shutil
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

BOS, EOS = 1, 0


@dataclass
class Shape:
    """Field names follow config.json."""
    hidden_size: int = 256
    intermediate_size: int = 688
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    vocab_size: int = 4096
    max_position_embeddings: int = 512

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5)


def rotate(x, cos, sin):
    """Rotary positions in Llama's arrangement: element i is paired with element i + half."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = linear(shape.hidden_size, self.heads * self.head_dim)
        self.k_proj = linear(shape.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = linear(shape.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = linear(self.heads * self.head_dim, shape.hidden_size)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape

        def split(projected, heads):
            return projected.view(batch, length, heads, self.head_dim).transpose(1, 2)

        q = rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        # Repeating the few key and value heads is cheaper on a CPU than the grouped path of the fused kernel.
        k = k.repeat_interleave(self.heads // self.kv_heads, 1)
        v = v.repeat_interleave(self.heads // self.kv_heads, 1)
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden_size)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size)
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)

    def forward(self, x, cos, sin, dropout):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, self.training)


class Llama(nn.Module):
    def __init__(self, shape, dropout=0.0):
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RmsNorm(shape.hidden_size)
        inverse = 1e4 ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), inverse)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer('cos', angles.cos(), persistent=False)
        self.register_buffer('sin', angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Layers that write into the residual stream start smaller, so that its variance does not grow with depth.
                last = name.endswith(('o_proj.weight', 'down_proj.weight'))
                nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * shape.num_hidden_layers) if last else 0.02)

    def forward(self, ids):
        x = F.dropout(self.embed_tokens(ids), self.dropout, self.training)
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin, self.dropout)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def linear_weights(self):
        """The weights that are pruned: every linear layer, not the embeddings and norms."""
        return {name: weight for name, weight in self.named_parameters() if name.endswith('_proj.weight')}


def load_checkpoint(folder, dropout=0.0):
    """A model from a Hugging Face folder, weights widened to f32."""
    with open(os.path.join(folder, 'config.json'), encoding='utf8') as file:
        config = json.load(file)
    model = Llama(Shape(**{field: config[field] for field in Shape.__dataclass_fields__}), dropout)
    tensors = load_file(os.path.join(folder, 'model.safetensors'))
    model.load_state_dict({name.removeprefix('model.'): tensor.float() for name, tensor in tensors.items()})
    return model


def bf16_nonzero(weight):
    """Round to bf16 without making new zeros: what would round to zero becomes the smallest normal number instead.

    A pruned file's zeros are its mask, so rounding must not add to them.
    """
    rounded = weight.to(torch.bfloat16)
    lost = (rounded == 0) & (weight != 0)
    tiny = torch.finfo(torch.bfloat16).tiny
    return torch.where(lost, torch.where(weight < 0, -tiny, tiny).to(torch.bfloat16), rounded)


def save_checkpoint(model, tokenizer_path, folder):
    """Write config, bf16 weights, tokenizer and generation settings in Hugging Face layout."""
    os.makedirs(folder, exist_ok=True)
    weights = {f'model.{name}': bf16_nonzero(weight.detach()).contiguous() for name, weight in model.named_parameters()}
    # A reader may be looking at this folder while training goes on: replace the file in one step.
    partial = os.path.join(folder, 'model.safetensors.partial')
    save_file(weights, partial, metadata={'format': 'pt'})
    os.chmod(partial, 0o644)
    os.replace(partial, os.path.join(folder, 'model.safetensors'))
    write_json(os.path.join(folder, 'config.json'), dict(
        architectures=['LlamaForCausalLM'], model_type='llama', **vars(model.shape), hidden_act='silu', rms_norm_eps=1e-5, rope_theta=1e4,
        tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=EOS, attention_bias=False, mlp_bias=False, torch_dtype='bfloat16'))
    write_json(os.path.join(folder, 'tokenizer_config.json'), dict(
        bos_token='<s>', eos_token='<|endoftext|>', model_max_length=model.shape.max_position_embeddings,
        tokenizer_class='PreTrainedTokenizerFast', clean_up_tokenization_spaces=False))
    # Models this small make up words at higher temperatures.
    write_json(os.path.join(folder, 'generation_config.json'), dict(
        bos_token_id=BOS, do_sample=True, eos_token_id=EOS, temperature=0.6))
    target = os.path.join(folder, 'tokenizer.json')
    if os.path.abspath(tokenizer_path) != os.path.abspath(target):
        shutil.copyfile(tokenizer_path, target)


def write_json(path, value):
    with open(path, 'w', encoding='utf8') as file:
        json.dump(value, file, indent=1)
        file.write('\n')
