//! The families of models. A new one is a file with a [`Family`] and one line in [`FAMILIES`]; see
//! `docs/adding-a-model.md`.

pub(crate) mod family;
mod llama;
mod mistral;
pub(crate) mod names;
pub(crate) mod parts;
pub mod plan;
mod qwen2;
mod qwen3;
pub mod shapes;
pub(crate) mod spec;

use family::Family;

static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
];

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
