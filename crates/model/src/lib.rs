//! Llama-family models: read from Hugging Face directories and GGUF files, run on the kernels of this project.
//!
//! [`Checkpoint::open`] reads a folder or a GGUF file, [`Model::load`] its weights, [`Model::forward`] computes logits. Keys and values of
//! earlier tokens are the caller's: see [`KvCache`].
//!
//! There is one forward pass. What sets families apart is data, a [`LayerSpec`] for each layer, filled in by one small file each;
//! see `docs/adding-a-model.md`.

#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod error;
mod families;
mod memory;
mod pass;

pub use checkpoint::convert::RawRows;
pub use checkpoint::encoding::Encoding;
pub use checkpoint::files::{model_file, model_file_names, model_json};
pub use checkpoint::{Checkpoint, TensorInfo};
pub use config::small_file::read_small_file;
pub use config::{Config, Precision, RopeScaling};
pub use error::ModelError;
pub use families::family::Arch;
pub use families::spec::{Activation, FfnKind, LayerSpec, NormKind, NormPlace};
pub use families::{plan, shapes};
pub use memory::load::{LoadOptions, Progress};
pub use memory::random::{RandomSpec, random_weight};
pub use memory::residence::{Group, ResidenceOptions};
pub use pass::cache::{Input, KvCache, Want};
pub use pass::decoder::{DecoderLayer, DecoderWorkspace, head_input};
pub use pass::layers::projection::LayerInput;
pub use pass::model::{Inexact, Model};
pub use pass::profile::{Op, Profile, Spent};
pub use pass::workspace::Workspace;
