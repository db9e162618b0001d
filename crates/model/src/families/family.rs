//! What a family is, for the files that describe one.

use super::spec::LayerSpec;
use crate::ModelError;
use crate::config::fields::Fields;

/// A family of models, by the name that `config.json` calls its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Llama 1, 2 and 3, and what shares their architecture.
    Llama,
    /// Mistral: Llama with a sliding window on every layer.
    Mistral,
    /// Qwen2 and Qwen2.5: bias on q, k and v; a sliding window on some layers.
    Qwen2,
    /// Qwen3: norms on the heads of q and k; a sliding window on some layers.
    Qwen3,
}

/// What sets a family apart from the others. All have the same forward pass, order of parts and tensor names.
pub(crate) struct Family {
    pub arch: Arch,
    /// Names in `architectures`; the first is the usual one.
    pub architectures: &'static [&'static str],
    /// Name in `model_type`.
    pub model_type: &'static str,
    pub defaults: Defaults,
    /// Describes every layer: so many, each made from the plain one by the fields that the family has.
    pub layers: fn(&Fields, LayerSpec, usize) -> Result<Vec<LayerSpec>, ModelError>,
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
