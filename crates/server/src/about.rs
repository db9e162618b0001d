//! What a model is made of, for those who choose among servers.

use serde::Serialize;
use sparamx_engine::{KvOptions, Loaded};
use sparamx_kernels::catalog;

/// The weights of a model, and what runs them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct About {
    /// Elements of its matrices, each counted once, without norms and biases.
    pub parameters: u64,
    /// Bytes of weights that a forward pass of one token reads.
    pub weight_bytes: u64,
    /// The fraction of zeros in what it multiplies.
    pub sparsity: f64,
    /// The form of most weights.
    pub weights: &'static str,
    /// The kernel that multiplies them with one row.
    pub kernel: &'static str,
    /// The instruction set.
    pub isa: String,
    /// Threads that compute.
    pub threads: usize,
    /// The dtype of keys and values once they leave the window.
    pub kv_dtype: String,
    /// The fraction of zeros in keys then.
    pub kv_key_sparsity: f32,
    /// The same in values.
    pub kv_value_sparsity: f32,
}

impl About {
    /// Of a model whose keys and values are kept as `kv` says. Counts zeros.
    pub fn new(loaded: &Loaded, kv: &KvOptions) -> Self {
        let (model, runtime) = (&loaded.model, &loaded.runtime);
        let (config, format) = (model.config(), model.weight_format());
        let forced = runtime.forced_kernel().filter(|spec| spec.weight == format);
        let kernel = forced.unwrap_or_else(|| catalog::select(runtime.cpu().features(), format, 1));
        let (elements, nnz) = model.elements();
        let embedding = config.vocab_size as u64 * config.hidden_size as u64;
        Self {
            parameters: elements
                + if config.tie_word_embeddings {
                    0
                } else {
                    embedding
                },
            weight_bytes: model.weight_bytes(),
            sparsity: 1.0 - nnz as f64 / elements.max(1) as f64,
            weights: format.name(),
            kernel: kernel.name,
            isa: runtime.cpu().isa().to_string(),
            threads: runtime.threads(),
            kv_dtype: kv.precision.to_string(),
            kv_key_sparsity: kv.key_sparsity,
            kv_value_sparsity: kv.value_sparsity,
        }
    }
}
