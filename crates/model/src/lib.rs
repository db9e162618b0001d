//! Llama-family models: read from Hugging Face directories and GGUF files, run on the kernels of this project.
//!
//! [`Checkpoint::open`] reads a folder or a GGUF file, [`Model::load`] its weights, [`Model::forward`] computes logits. Keys and values of
//! earlier tokens are the caller's: see [`KvCache`].
//!
//! There is one forward pass. What sets families apart is data ([`Config`]), filled in by one small file each; see
//! `docs/adding-a-model.md`.

#![forbid(unsafe_code)]

mod cache;
mod checkpoint;
mod config;
mod convert;
mod decoder;
mod error;
mod files;
mod foreign;
mod forward;
mod json;
mod layers;
mod llama;
mod load;
mod mistral;
pub mod plan;
mod profile;
mod qwen;
mod random;
mod registry;
mod residence;
mod rope;
pub mod shapes;
mod workspace;

pub use cache::{Input, KvCache, Want};
pub use checkpoint::{Checkpoint, TensorInfo};
pub use config::{Arch, Config, Precision, RopeScaling};
pub use convert::RawRows;
pub use decoder::{DecoderLayer, DecoderWorkspace, LayerInput, head_input};
pub use error::ModelError;
pub use files::{model_file, model_file_names, model_json, read_small_file};
pub use load::{Inexact, LoadOptions, Model, Progress};
pub use profile::{Op, Profile, Spent};
pub use random::{RandomSpec, random_weight};
pub use residence::{Group, ResidenceOptions};
pub use workspace::Workspace;
