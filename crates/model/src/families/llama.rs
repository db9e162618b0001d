//! Llama 1, 2 and 3.x, and the many models that are Llama by another name (TinyLlama, SmolLM2, Vicuna ...).
//! Source: `models/llama` of Transformers.

use super::family::{Arch, Defaults, Family};
use super::spec::LayerSpec;

pub(crate) static LLAMA: Family = Family {
    arch: Arch::Llama,
    // The second spelling is that of the first conversions of Llama 1.
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_type: "llama",
    defaults: Defaults {
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
    },
    layers: |fields, plain, layers| {
        let attention_bias = fields.flag("attention_bias", false)?;
        let layer = LayerSpec {
            qkv_bias: attention_bias,
            o_bias: attention_bias,
            mlp_bias: fields.flag("mlp_bias", false)?,
            ..plain
        };
        Ok(vec![layer; layers])
    },
};
