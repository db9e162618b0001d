//! Llama-family models read from Hugging Face directories.
mod config;
mod error;
mod llama;
mod mistral;
pub mod plan;
mod qwen;
mod registry;
mod rope;
pub mod shapes;

pub use config::{Arch, Config, RopeScaling};
pub use error::ModelError;
