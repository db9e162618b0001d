//! Mistral: Llama without bias, with a sliding window on every layer. Source: `models/mistral` of Transformers.

use super::family::{Arch, Defaults, Family};
use super::spec::LayerSpec;

pub(crate) static MISTRAL: Family = Family {
    arch: Arch::Mistral,
    architectures: &["MistralForCausalLM"],
    model_type: "mistral",
    defaults: Defaults {
        num_key_value_heads: Some(8),
        head_dim: None,
        max_position_embeddings: 131_072,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
    },
    layers: |fields, plain, layers| {
        // Absent is the window of Mistral 7B v0.1; later models write null, which is no window.
        let window = fields.optional_size_or("sliding_window", 4096)?;
        Ok(vec![LayerSpec { window, ..plain }; layers])
    },
};
