//! The files beside the weights.

use std::fs;
use std::path::Path;

use serde_json::Value;
use sparamx_model::{Checkpoint, model_file, model_file_names, model_json};

use crate::CompressError;

/// Beginnings of the names of files that belong to a model and do not depend on how its weights are stored.
const KEPT: [&str; 11] = [
    "tokenizer",
    "special_tokens_map.",
    "added_tokens.",
    "vocab.",
    "merges.",
    "generation_config.",
    "chat_template",
    "LICENSE",
    "LICENCE",
    "NOTICE",
    "USE_POLICY",
];

/// Where programs that wrote the input may have described its weights, which are other ones in the output.
const OTHER_QUANTIZATION: [&str; 3] = [
    "quantization_config",
    "compression_config",
    "sparsity_config",
];

/// The file of weights, if it has another name. Transformers finds no weights in packed tensors, and would go on with random ones after
/// a warning: named so, it says in an error what would work.
const WEIGHTS_FILE: (&str, &str) = (
    "transformers_weights",
    "packed by sparamx: load it with sparamx.torch.from_pretrained",
);

/// Copies tokenizer, generation settings and license, or writes what a GGUF file has in their place.
///
/// # Errors
/// [`CompressError::Model`] or [`CompressError::Io`]
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), CompressError> {
    for name in model_file_names(from)? {
        if !KEPT.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        // Not `fs::copy`: the copy of a read-only file shall not be read-only.
        if let Some(bytes) = model_file(from, &name)? {
            let copy = to.join(&name);
            fs::write(&copy, bytes).map_err(|error| CompressError::io(&copy, error))?;
        }
    }
    Ok(())
}

/// Copies `config.json`, its fields in their order, with `quantization_config`, if there is one, in place of what was said about the
/// weights, their type if that is to be another, and whether the output head is the embedding as the weights have it.
///
/// # Errors
/// [`CompressError::Model`] or [`CompressError::Io`]
pub(crate) fn write_config(
    from: &Checkpoint,
    to: &Path,
    quantization: Option<Value>,
    dtype: Option<&str>,
) -> Result<(), CompressError> {
    let to = to.join("config.json");
    let mut config = model_json(from.dir(), "config.json")?.unwrap_or_default();
    for key in OTHER_QUANTIZATION {
        config.shift_remove(key);
    }
    config.shift_remove(WEIGHTS_FILE.0);
    if let Some(quantization) = quantization {
        let packed = quantization["quant_method"] == "sparamx";
        config.insert("quantization_config".to_owned(), quantization);
        if packed {
            config.insert(WEIGHTS_FILE.0.to_owned(), WEIGHTS_FILE.1.into());
        }
    }
    let tied = from.config().tie_word_embeddings;
    if config.get("tie_word_embeddings") == Some(&Value::Bool(!tied)) {
        config.insert("tie_word_embeddings".to_owned(), Value::Bool(tied));
    }
    if let Some(dtype) = dtype {
        // The name since Transformers 5 if the file has it, else the old one, which all versions read.
        let key = if config.contains_key("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        config.insert(key.to_owned(), Value::from(dtype));
    }
    write_json(&to, &Value::Object(config))
}

/// Writes a value as people read it.
///
/// # Errors
/// [`CompressError::Io`]
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), CompressError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| CompressError::io(path, error))
}
