//! The families of models. A new one is a file with a [`Family`] and one line in [`FAMILIES`]; see
//! `docs/adding-a-model.md`.

use crate::config::Fields;
use crate::{Arch, ModelError};

mod llama;
mod mistral;
pub mod plan;
mod qwen;
pub mod shapes;

static FAMILIES: &[&Family] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen::QWEN2, &qwen::QWEN3];

/// What tells a family from the others. All have the same forward pass, layer order and tensor names.
pub(crate) struct Family {
    pub arch: Arch,
    /// Names in `architectures`; the first is the usual one.
    pub architectures: &'static [&'static str],
    /// Name in `model_type`.
    pub model_type: &'static str,
    pub defaults: Defaults,
    /// Reads the fields that only some families have, for so many layers.
    pub parts: fn(&Fields, usize) -> Result<Parts, ModelError>,
}

/// What Transformers assumes for fields that are absent, where families differ.
pub(crate) struct Defaults {
    /// `None`: as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

/// The parts of a layer that not every family has. Fields as in [`crate::Config`].
pub(crate) struct Parts {
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: bool,
    pub windows: Vec<Option<usize>>,
}

pub(crate) fn by_architecture(name: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .copied()
        .find(|f| f.architectures.contains(&name))
}

pub(crate) fn by_model_type(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.model_type == name)
}

/// Names of the architectures, for messages.
pub(crate) fn names() -> Vec<&'static str> {
    FAMILIES.iter().map(|f| f.architectures[0]).collect()
}
