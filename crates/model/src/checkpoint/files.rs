//! The small files of a model: those of its folder, or made from the metadata of a GGUF file.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::checkpoint::foreign::gguf::Gguf;
use crate::config::json;
use crate::config::small_file::read_small_file;

/// Small files that a GGUF file stands for, beside `config.json`.
const OF_GGUF: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

/// Reads a small file of a model, such as `tokenizer.json`, from its folder or its GGUF file; nothing if the model has none.
///
/// # Errors
/// Those of [`read_small_file`]; for a GGUF file also [`ModelError::Format`], [`ModelError::MissingField`] and
/// [`ModelError::BadField`].
pub fn model_file(model: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    if model.is_file() {
        // To open it is to read all its tokens: not for files that it does not stand for.
        return if name == "config.json" || OF_GGUF.contains(&name) {
            Gguf::open(model)?.side_file(name)
        } else {
            Ok(None)
        };
    }
    read_small_file(&model.join(name))
}

/// Reads a JSON object among the small files of a model; nothing if the model has no such file. NaN and infinities, which Python
/// writes and JSON does not have, come as the strings `"NaN"`, `"Infinity"` and `"-Infinity"`.
///
/// # Errors
/// Those of [`model_file`], and [`ModelError::Json`].
pub fn model_json(model: &Path, name: &str) -> Result<Option<Map<String, Value>>, ModelError> {
    let object = |text: Vec<u8>| json::object(&text, &model.join(name));
    model_file(model, name)?.map(object).transpose()
}

/// Names of the files in a model's folder, or of those that its GGUF file stands for; `config.json` may be missing.
///
/// # Errors
/// [`ModelError::Io`].
pub fn model_file_names(model: &Path) -> Result<Vec<String>, ModelError> {
    if model.is_file() {
        return Ok(OF_GGUF.map(str::to_owned).to_vec());
    }
    let error = |e| ModelError::io(model, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(model).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
