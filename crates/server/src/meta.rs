//! What is served, in figures: for `/v1/models`, the page and the metrics.

use serde::Serialize;
use sparamx_engine::{Host, KvOptions, SamplingParams};
use sparamx_model::plan;
use utoipa::ToSchema;

/// Facts about a model as it is in memory.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelMeta {
    /// Weights, biases and norms, each counted once.
    pub parameters: u64,
    /// Bytes of weights that a token reads.
    pub bytes: u64,
    /// Share of zeros in the matrices of the decoder layers.
    pub sparsity: f64,
    /// Form of those matrices, such as `sparse int8`.
    pub weights: String,
    /// The kernel that multiplies them by one row of activations.
    pub kernel: &'static str,
    /// The instructions that kernels use.
    pub isa: String,
    /// Threads that compute.
    pub threads: usize,
    /// Keys and values.
    pub kv_cache: KvMeta,
    /// Whether a chat template makes prompts of conversations; without one texts are continued.
    pub chat_template: bool,
    /// Whether answers hold reasoning, split off as `reasoning`.
    pub reasoning: bool,
    /// What a field of a request means that is not given.
    pub defaults: Defaults,
}

/// Facts about keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct KvMeta {
    /// Form of the pages, such as `int8, 50 % of keys zero`.
    pub format: String,
    /// Tokens that it holds, about.
    pub tokens: u64,
    /// Bytes that it may take.
    pub bytes: u64,
    /// Tokens of a page.
    pub block_tokens: usize,
}

/// Sampling where a request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Defaults {
    /// See the fields of a request.
    pub temperature: f32,
    /// As above.
    pub top_p: f32,
    /// As above; 0: all.
    pub top_k: usize,
    /// As above.
    pub min_p: f32,
    /// As above.
    pub repetition_penalty: f32,
}

impl ModelMeta {
    /// Facts about what `host` runs. Zeros of dense weights are counted, which takes as long as a token.
    /// `reasons`: whether answers hold reasoning.
    pub fn new(host: &Host, sampling: &SamplingParams, reasons: bool) -> Self {
        let loaded = host.loaded();
        let (model, runtime) = (&loaded.model, &loaded.runtime);
        let format = model.weight_format();
        let (elements, nnz) = model.elements();
        let tensors = plan::tensors(model.config());
        Self {
            parameters: tensors.iter().map(|tensor| tensor.elements()).sum(),
            bytes: model.weight_bytes(),
            sparsity: 1.0 - nnz as f64 / elements.max(1) as f64,
            weights: format.to_string(),
            kernel: runtime.kernel(format, 1).name,
            isa: runtime.cpu().isa().to_string(),
            threads: runtime.threads(),
            kv_cache: KvMeta {
                format: kv_format(host.kv_options()),
                tokens: host.cache_tokens(),
                bytes: host.stats().pool.budget_bytes,
                block_tokens: sparamx_kernels::attention::PAGE_TOKENS,
            },
            chat_template: loaded.template.is_some(),
            reasoning: reasons,
            defaults: Defaults {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
            },
        }
    }
}

/// The form of pages once they are packed.
fn kv_format(options: &KvOptions) -> String {
    let mut text = options.precision.to_string();
    for (name, sparsity) in [
        ("keys", options.key_sparsity),
        ("values", options.value_sparsity),
    ] {
        if sparsity > 0.0 {
            text += &format!(", {:.0} % of {name} zero", 100.0 * sparsity);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;
    use sparamx_engine::HostOptions;

    #[test]
    fn the_shipped_model_is_half_zeros() {
        let host = host(HostOptions::default());
        let meta = ModelMeta::new(&host, &SamplingParams::default(), false);
        assert_eq!(meta.parameters, 5_401_856);
        assert!((meta.sparsity - 0.5).abs() < 0.01, "{}", meta.sparsity);
        assert!(meta.weights.contains("bf16"), "{}", meta.weights);
        assert!(meta.kernel.starts_with("linear_bf16_"), "{}", meta.kernel);
        assert_eq!(meta.kv_cache.format, "bf16");
        assert!(meta.kv_cache.tokens > 512 && !meta.chat_template && !meta.reasoning);
    }

    #[test]
    fn the_cache_is_told_in_words() {
        let options = KvOptions {
            precision: sparamx_engine::KvPrecision::Int8,
            key_sparsity: 0.5,
            ..KvOptions::default()
        };
        assert_eq!(kv_format(&options), "int8, 50 % of keys zero");
    }
}
