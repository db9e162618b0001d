//! Shapes of well-known models, for benchmarks on random weights.

use std::path::Path;

use crate::{Config, ModelError};

/// Name and `config.json` of a model, without what does not change its speed.
static SHAPES: &[(&str, &str)] = &[
    (
        "tinyllama-1.1b",
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048}"#,
    ),
    (
        "llama2-7b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}"#,
    ),
    (
        "llama3-8b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000,
            "max_position_embeddings": 8192}"#,
    ),
    (
        "llama3.2-1b",
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
            "rope_theta": 500000, "max_position_embeddings": 131072, "tie_word_embeddings": true}"#,
    ),
    (
        "llama3.2-3b",
        r#"{"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
            "rope_theta": 500000, "max_position_embeddings": 131072, "tie_word_embeddings": true}"#,
    ),
    (
        "mistral-7b",
        r#"{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "rope_theta": 1000000,
            "max_position_embeddings": 32768, "sliding_window": null}"#,
    ),
    (
        "qwen2.5-0.5b",
        r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rope_theta": 1000000,
            "max_position_embeddings": 32768, "tie_word_embeddings": true}"#,
    ),
    (
        "qwen2.5-7b",
        r#"{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rope_theta": 1000000,
            "max_position_embeddings": 32768}"#,
    ),
    (
        "qwen3-8b",
        r#"{"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "rope_theta": 1000000, "max_position_embeddings": 40960}"#,
    ),
];

/// Names of the shapes.
pub fn names() -> Vec<&'static str> {
    SHAPES.iter().map(|(name, _)| *name).collect()
}

/// The configuration of a named shape.
///
/// # Errors
/// [`ModelError::UnknownShape`] names those there are.
pub fn config(name: &str) -> Result<Config, ModelError> {
    Config::from_json(json(name)?.as_bytes(), Path::new(name))
}

/// The text of `config.json` of a named shape.
///
/// # Errors
/// [`ModelError::UnknownShape`] names those there are.
pub fn json(name: &str) -> Result<&'static str, ModelError> {
    let shape = SHAPES.iter().find(|(known, _)| *known == name);
    let (_, json) = shape.ok_or_else(|| ModelError::UnknownShape {
        known: names(),
        name: name.to_owned(),
    })?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published sizes, in millions.
    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        for (name, millions) in [
            ("tinyllama-1.1b", 1100),
            ("llama2-7b", 6738),
            ("llama3-8b", 8030),
            ("llama3.2-1b", 1236),
            ("llama3.2-3b", 3213),
            ("mistral-7b", 7248),
            ("qwen2.5-0.5b", 494),
            ("qwen2.5-7b", 7616),
            ("qwen3-8b", 8191),
        ] {
            let tensors = crate::families::plan::tensors(&config(name).unwrap());
            let parameters: u64 = tensors.iter().map(|t| t.elements()).sum();
            assert_eq!((parameters + 500_000) / 1_000_000, millions, "{name}");
        }
        assert_eq!(names().len(), 9);
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = config("llama-9").unwrap_err().to_string();
        assert!(
            message.contains("'llama-9'") && message.contains("tinyllama-1.1b"),
            "{message}"
        );
    }
}
