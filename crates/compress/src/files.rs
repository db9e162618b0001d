//! The files beside the weights.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

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

/// Copies tokenizer, generation settings and license.
///
/// # Errors
/// [`CompressError::Io`]
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), CompressError> {
    let entries = fs::read_dir(from).map_err(|error| CompressError::io(from, error))?;
    for entry in entries {
        let name = entry
            .map_err(|error| CompressError::io(from, error))?
            .file_name();
        let (source, copy) = (from.join(&name), to.join(&name));
        let name = name.to_string_lossy();
        if source.is_file() && KEPT.iter().any(|start| name.starts_with(start)) {
            // Not `fs::copy`: the copy of a read-only file shall not be read-only.
            let bytes = fs::read(&source).map_err(|error| CompressError::io(&source, error))?;
            fs::write(&copy, bytes).map_err(|error| CompressError::io(&copy, error))?;
        }
    }
    Ok(())
}

/// Copies `config.json`, its fields in their order, with `quantization_config` added.
///
/// # Errors
/// [`CompressError::Io`] or [`CompressError::Json`]
pub(crate) fn write_config(
    from: &Path,
    to: &Path,
    quantization: Value,
) -> Result<(), CompressError> {
    let (from, to) = (from.join("config.json"), to.join("config.json"));
    let text = fs::read(&from).map_err(|error| CompressError::io(&from, error))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| CompressError::Json {
            path: from,
            error: error.to_string(),
        })?;
    config.insert("quantization_config".to_owned(), quantization);
    write_json(&to, &Value::Object(config))
}

/// Writes a value as people read it.
///
/// # Errors
/// [`CompressError::Io`]
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), CompressError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| CompressError::io(path, error))
}
