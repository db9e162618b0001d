//! `config.json` from metadata. What it may hold is checked where a real one is.

use std::f64::consts::TAU;

use serde_json::{Value, json};
use sparamx_format::gguf::GgufType;

use super::keys::Keys;
use super::{Gguf, ROPE_FREQS};
use crate::ModelError;

/// Architectures by their names in GGUF. Mistral calls itself llama there.
const ARCHITECTURES: [(&str, &str); 3] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

pub(super) fn config(gguf: &Gguf, keys: &Keys) -> Result<Value, ModelError> {
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == keys.arch);
    let (model_type, architecture) = known.ok_or_else(|| {
        let names = ARCHITECTURES.map(|(name, _)| name).join(", ");
        keys.bad("general.architecture", keys.arch, format!("one of {names}"))
    })?;
    let int = |key: &str| {
        let key = keys.of(key);
        keys.required(&key, keys.int(&key)?)
    };
    if let Some(experts) = keys
        .int(&keys.of("expert_count"))?
        .filter(|&experts| experts > 0)
    {
        return Err(keys.bad(
            &keys.of("expert_count"),
            experts,
            "none: mixtures of experts are not supported",
        ));
    }
    let (hidden, heads) = (int("embedding_length")?, int("attention.head_count")?);
    let head_dim = head_dim(keys, hidden, heads)?;
    let embedding = gguf
        .tensor("token_embd.weight")
        .map(|tensor| tensor.shape[0]);
    let has = |name: &str| gguf.tensor(name).is_some();
    let theta = keys.number(&keys.of("rope.freq_base"))?.unwrap_or(10_000.0);
    let epsilon = keys.of("attention.layer_norm_rms_epsilon");
    let scaling = match rope_scaling(keys)? {
        Value::Null => rope_freqs(gguf, keys, theta, head_dim)?,
        scaling => scaling,
    };
    Ok(json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": int("feed_forward_length")?,
        "num_hidden_layers": int("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.int(&keys.of("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": keys.required("token_embd.weight", embedding)?,
        "max_position_embeddings": int("context_length")?,
        "rms_norm_eps": keys.required(&epsilon, keys.number(&epsilon)?)?,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"),
        "bos_token_id": keys.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": ends(keys)?,
        "torch_dtype": "bfloat16",
    }))
}

/// Tokens that end a text or a turn.
pub(super) fn ends(keys: &Keys) -> Result<Vec<u64>, ModelError> {
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(keys.int(key)?.filter(|id| !ends.contains(id)));
    }
    Ok(ends)
}

fn head_dim(keys: &Keys, hidden: u64, heads: u64) -> Result<u64, ModelError> {
    let whole = || (heads > 0 && hidden.is_multiple_of(heads)).then(|| hidden / heads);
    let key = keys.of("attention.key_length");
    let head_dim = keys.int(&key)?.or_else(whole);
    let head_dim = keys.required(&key, head_dim)?;
    for same in ["attention.value_length", "rope.dimension_count"] {
        let same = keys.of(same);
        if let Some(found) = keys.int(&same)?.filter(|&found| found != head_dim) {
            return Err(keys.bad(&same, found, format!("{head_dim}, the width of a head")));
        }
    }
    Ok(head_dim)
}

fn rope_scaling(keys: &Keys) -> Result<Value, ModelError> {
    let key = |key: &str| keys.of(&format!("rope.scaling.{key}"));
    let number = |name: &str| keys.number(&key(name));
    let kind = keys.text(&key("type"))?.unwrap_or("none");
    let scaling = match kind {
        "none" => return Ok(Value::Null),
        "linear" => json!({"rope_type": "linear", "factor": number("factor")?}),
        "yarn" => json!({
            "rope_type": "yarn",
            "factor": number("factor")?,
            "original_max_position_embeddings": keys.int(&key("original_context_length"))?,
            "beta_fast": number("yarn_beta_fast")?,
            "beta_slow": number("yarn_beta_slow")?,
        }),
        other => return Err(keys.bad(&key("type"), other, "none, linear or yarn")),
    };
    if let Some(factor) = number("attn_factor")?.filter(|&factor| factor != 1.0) {
        return Err(keys.bad(&key("attn_factor"), factor, "1"));
    }
    Ok(scaling)
}

/// The scaling of Llama 3.1, which GGUF holds as a divisor for each frequency: the parameters that give these divisors.
fn rope_freqs(gguf: &Gguf, keys: &Keys, theta: f64, head_dim: u64) -> Result<Value, ModelError> {
    let Some(tensor) = gguf.tensor(ROPE_FREQS) else {
        return Ok(Value::Null);
    };
    let (values, _) = gguf.file.bytes(tensor).as_chunks();
    let divisors: Vec<f64> = values
        .iter()
        .map(|&b| f64::from(f32::from_le_bytes(b)))
        .collect();
    if tensor.kind != GgufType::F32 || divisors.len() as u64 != head_dim / 2 {
        let expected = format!("{} of F32, half the width of a head", head_dim / 2);
        return Err(keys.bad(ROPE_FREQS, format!("{:?}", tensor.shape), expected));
    }
    if divisors.iter().all(|&divisor| divisor == 1.0) {
        return Ok(Value::Null);
    }
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let (low, high) = (1.0, 4.0);
    for exponent in 10..=20 {
        let original = f64::from(1u32 << exponent);
        let fits = divisors.iter().enumerate().all(|(i, &divisor)| {
            let wavelength = TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let smooth = (original / wavelength - low) / (high - low);
            let smooth = smooth.clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
            (divisor - expected).abs() <= 1e-4 * expected
        });
        if fits {
            return Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original as u64,
            }));
        }
    }
    Err(keys.bad(
        ROPE_FREQS,
        "of a kind that is not known",
        "the divisors of Llama 3.1",
    ))
}
