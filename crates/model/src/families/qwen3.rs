//! Qwen3: norms on the heads of q and k, `head_dim` of its own, windows as in Qwen2. Source: `models/qwen3` of Transformers.

use super::family::{Arch, Defaults, Family};
use super::qwen2::{QWEN2, with_windows};
use super::spec::LayerSpec;

pub(crate) static QWEN3: Family = Family {
    arch: Arch::Qwen3,
    architectures: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    defaults: Defaults {
        head_dim: Some(128),
        ..QWEN2.defaults
    },
    layers: |fields, plain, layers| {
        let bias = fields.flag("attention_bias", false)?;
        let layer = LayerSpec {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: true,
            ..plain
        };
        with_windows(fields, layer, layers)
    },
};
