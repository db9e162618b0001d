//! The parts of a decoder layer: the one list of its tensors. Loading, checking, packing, random models, `inspect` and the names in
//! GGUF files follow it.

use super::spec::{FfnKind, LayerSpec};
use crate::Config;

/// A module of a decoder layer: a norm, or a linear layer.
pub(crate) struct Part {
    /// Its name without the layer before it: `mlp.up_proj`.
    pub module: &'static str,
    /// What it is called in GGUF files: `ffn_up`.
    pub gguf: &'static str,
    pub kind: PartKind,
    /// Whether a layer has it.
    pub present: fn(&LayerSpec) -> bool,
}

pub(crate) enum PartKind {
    /// A weight `[n]`.
    Norm { n: fn(&Config) -> usize },
    /// A weight `[n, k]` and, in layers of which `bias` is true, a bias `[n]`.
    Linear {
        n: fn(&Config) -> usize,
        k: fn(&Config) -> usize,
        bias: fn(&LayerSpec) -> bool,
    },
}

const HIDDEN: fn(&Config) -> usize = |c| c.hidden_size;
const HEAD: fn(&Config) -> usize = |c| c.head_dim;
const Q: fn(&Config) -> usize = Config::q_width;
const KV: fn(&Config) -> usize = Config::kv_width;
const FFN: fn(&Config) -> usize = |c| c.intermediate_size;
const ALWAYS: fn(&LayerSpec) -> bool = |_| true;

/// Before attention.
pub(crate) static ATTENTION_NORM: Part = Part {
    module: "input_layernorm",
    gguf: "attn_norm",
    kind: PartKind::Norm { n: HIDDEN },
    present: ALWAYS,
};
/// To queries, keys and values: they read the same rows.
pub(crate) static QKV: [Part; 3] = [
    attention("self_attn.q_proj", "attn_q", Q),
    attention("self_attn.k_proj", "attn_k", KV),
    attention("self_attn.v_proj", "attn_v", KV),
];
/// Of the heads of queries and keys.
pub(crate) static QK_NORMS: [Part; 2] = [
    head_norm("self_attn.q_norm", "attn_q_norm"),
    head_norm("self_attn.k_norm", "attn_k_norm"),
];
/// Of what was attended to.
pub(crate) static O: Part = Part {
    module: "self_attn.o_proj",
    gguf: "attn_output",
    kind: PartKind::Linear {
        n: HIDDEN,
        k: Q,
        bias: |layer| layer.o_bias,
    },
    present: ALWAYS,
};
/// Before the feed-forward part.
pub(crate) static FFN_NORM: Part = Part {
    module: "post_attention_layernorm",
    gguf: "ffn_norm",
    kind: PartKind::Norm { n: HIDDEN },
    present: ALWAYS,
};
/// The first linear layers of a gated feed-forward part: they read the same rows.
pub(crate) static GATE_UP: [Part; 2] = [
    gated("mlp.gate_proj", "ffn_gate", FFN, HIDDEN),
    gated("mlp.up_proj", "ffn_up", FFN, HIDDEN),
];
/// The last linear layer of a gated feed-forward part.
pub(crate) static DOWN: Part = gated("mlp.down_proj", "ffn_down", HIDDEN, FFN);

const fn attention(module: &'static str, gguf: &'static str, n: fn(&Config) -> usize) -> Part {
    Part {
        module,
        gguf,
        kind: PartKind::Linear {
            n,
            k: HIDDEN,
            bias: |layer| layer.qkv_bias,
        },
        present: ALWAYS,
    }
}

const fn head_norm(module: &'static str, gguf: &'static str) -> Part {
    Part {
        module,
        gguf,
        kind: PartKind::Norm { n: HEAD },
        present: |layer| layer.qk_norm,
    }
}

const fn gated(
    module: &'static str,
    gguf: &'static str,
    n: fn(&Config) -> usize,
    k: fn(&Config) -> usize,
) -> Part {
    Part {
        module,
        gguf,
        kind: PartKind::Linear {
            n,
            k,
            bias: |layer| layer.mlp_bias,
        },
        present: |layer| layer.ffn == FfnKind::Gated,
    }
}

/// All parts that layers can have, in the order of the forward pass.
pub(crate) fn all() -> impl Iterator<Item = &'static Part> {
    use std::slice::from_ref;
    let attention = [from_ref(&ATTENTION_NORM), &QKV, &QK_NORMS, from_ref(&O)];
    let ffn = [from_ref(&FFN_NORM), &GATE_UP, from_ref(&DOWN)];
    attention.into_iter().chain(ffn).flatten()
}

/// The parts that a layer has.
pub(crate) fn of(layer: &LayerSpec) -> impl Iterator<Item = &'static Part> {
    all().filter(|part| (part.present)(layer))
}
