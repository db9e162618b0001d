//! The small files of a model: those of its folder, or made from the metadata of a GGUF file.

use std::io::ErrorKind;
use std::path::Path;

use crate::ModelError;
use crate::foreign::gguf::Gguf;

/// Small files that a GGUF file stands for, beside `config.json`.
const OF_GGUF: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

/// Reads a small file of a model, such as `tokenizer.json`, from its folder or its GGUF file; nothing if the model has none.
///
/// # Errors
/// [`ModelError::Io`] if there is one and it cannot be read; for a GGUF file also [`ModelError::Format`],
/// [`ModelError::MissingField`] and [`ModelError::BadField`].
pub fn model_file(model: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    if model.is_file() {
        return Gguf::open(model)?.side_file(name);
    }
    let path = model.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::io(&path, e)),
    }
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
    for entry in std::fs::read_dir(model).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
