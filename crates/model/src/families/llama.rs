//! Llama 1, 2 and 3.x, and the many models that are Llama by another name (TinyLlama, SmolLM2, Vicuna ...).
//! Source: `models/llama` of Transformers.

use crate::Arch;
use crate::families::{Defaults, Family, Parts};

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
    parts: |fields, layers| {
        let attention_bias = fields.flag("attention_bias", false)?;
        Ok(Parts {
            qkv_bias: attention_bias,
            o_bias: attention_bias,
            mlp_bias: fields.flag("mlp_bias", false)?,
            qk_norm: false,
            windows: vec![None; layers],
        })
    },
};
