//! `config.json` from metadata. What it may hold is checked where a real one is.

use std::f64::consts::TAU;

use serde_json::{Value, json};
use sparamx_format::gguf::GgufType;

use super::keys::Keys;
use super::vocabulary::Vocabulary;
use super::{Gguf, ROPE_FREQS};
use crate::ModelError;

/// Architectures by their names in GGUF. Mistral calls itself llama there.
const ARCHITECTURES: [(&str, &str); 3] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

/// What a field of `config.json` is called in a file, without the architecture before it.
const FIELDS: [(&str, &str); 13] = [
    // A name comes before those that are part of it.
    (
        "rope_scaling.original_max_position_embeddings",
        "rope.scaling.original_context_length",
    ),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("rope_scaling.beta_fast", "rope.scaling.yarn_beta_fast"),
    ("rope_scaling.beta_slow", "rope.scaling.yarn_beta_slow"),
    ("max_position_embeddings", "context_length"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("num_attention_heads", "attention.head_count"),
    ("num_hidden_layers", "block_count"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("head_dim", "attention.key_length"),
];

/// The error in the words of the file, which has no `config.json`.
pub(super) fn in_own_words(error: ModelError, arch: &str) -> ModelError {
    let own = |text: String| {
        FIELDS.iter().fold(text, |text, (field, key)| {
            text.replace(field, &format!("{arch}.{key}"))
        })
    };
    match error {
        ModelError::BadField {
            path,
            field,
            found,
            expected,
        } => ModelError::BadField {
            path,
            field: own(field),
            found,
            expected: own(expected),
        },
        ModelError::MissingField { path, field } => ModelError::MissingField {
            path,
            field: own(field),
        },
        other => other,
    }
}

pub(super) fn config(
    gguf: &Gguf,
    keys: &Keys,
    vocabulary: Option<&Vocabulary>,
) -> Result<Value, ModelError> {
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
    let (bos, ends) = ids(keys, vocabulary)?;
    let theta = keys.number(&keys.of("rope.freq_base"))?.unwrap_or(10_000.0);
    let epsilon = keys.of("attention.layer_norm_rms_epsilon");
    let scaling = scaling(gguf, keys, theta, head_dim)?;
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
        "bos_token_id": bos,
        "eos_token_id": ends,
        "torch_dtype": "bfloat16",
    }))
}

/// `rope_scaling`, from keys or from divisors of frequencies.
fn scaling(gguf: &Gguf, keys: &Keys, theta: f64, head_dim: u64) -> Result<Value, ModelError> {
    let divisors = rope_freqs(gguf, keys, theta, head_dim)?;
    match (rope_scaling(keys)?, divisors) {
        (Value::Null, divisors) => Ok(divisors),
        (scaling, Value::Null) => Ok(scaling),
        (scaling, _) => Err(keys.bad(
            &keys.of("rope.scaling.factor"),
            &scaling["factor"],
            "none, as the file has divisors of frequencies, too",
        )),
    }
}

/// The ids of the token that starts a text and of those that end one, also for a file without tokens.
pub(super) fn ids(
    keys: &Keys,
    vocabulary: Option<&Vocabulary>,
) -> Result<(Option<u64>, Vec<u64>), ModelError> {
    if let Some(vocabulary) = vocabulary {
        let bos = vocabulary.bos.map(|(id, _)| id);
        return Ok((bos, vocabulary.ends.clone()));
    }
    let id = |name: &str| keys.int(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(id(name)?.filter(|id| !ends.contains(id)));
    }
    Ok((id("bos")?, ends))
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

/// How positions are scaled, by llama.cpp's rules: a factor without a type is linear, `scale_linear` is the factor's old name, and 0
/// is none.
fn rope_scaling(keys: &Keys) -> Result<Value, ModelError> {
    let key = |key: &str| keys.of(&format!("rope.scaling.{key}"));
    let number = |name: &str| keys.number(&key(name));
    let kind = keys.text(&key("type"))?.unwrap_or("linear");
    let factor = match number("factor")? {
        Some(factor) => Some(factor),
        None => keys.number(&keys.of("rope.scale_linear"))?,
    };
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let attention = number("attn_factor")?.unwrap_or(1.0);
    for one in ["yarn_ext_factor", "yarn_attn_factor"] {
        if let Some(found) = number(one)?.filter(|&found| found != 1.0) {
            return Err(keys.bad(&key(one), found, "1"));
        }
    }
    if attention != 1.0 && kind != "yarn" {
        return Err(keys.bad(&key("attn_factor"), attention, "1"));
    }
    Ok(match kind {
        "none" => Value::Null,
        "linear" if factor == 1.0 => Value::Null,
        "linear" => json!({"rope_type": "linear", "factor": factor}),
        "yarn" => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.int(&key("original_context_length"))?,
            "attention_factor": attention * (0.1 * factor.max(1.0).ln() + 1.0),
            "beta_fast": number("yarn_beta_fast")?,
            "beta_slow": number("yarn_beta_slow")?,
        }),
        other => return Err(keys.bad(&key("type"), other, "none, linear or yarn")),
    })
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
