//! The small files of a model: those of its folder, or made from the metadata of a GGUF file.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};
use sparamx_format::{FormatError, lfs};

use crate::ModelError;
use crate::checkpoint::foreign::gguf::Gguf;
use crate::config::json;

/// Small files that a GGUF file stands for, beside `config.json`.
const OF_GGUF: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

/// The largest small file that is read, in bytes. The largest `tokenizer.json` in use, of vocabularies of 262,144 tokens, has 33 MB,
/// and to parse one takes some ten times its size of memory.
const MAX_BYTES: u64 = 128 << 20;

/// Reads a small file of a model, such as `tokenizer.json`, from its folder or its GGUF file; nothing if the model has none.
///
/// # Errors
/// Those of [`read_small_file`]; for a GGUF file also [`ModelError::Format`], [`ModelError::MissingField`] and
/// [`ModelError::BadField`].
pub fn model_file(model: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    if model.is_file() {
        // To open it is to read all its tokens: not for files that it does not stand for.
        return match name == "config.json" || OF_GGUF.contains(&name) {
            true => Gguf::open(model)?.side_file(name),
            false => Ok(None),
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

/// Reads a file that is meant to be small, without the mark that some editors put before UTF-8; nothing if there is none. What is no
/// regular file is not opened (a pipe would block, a device never end), and a pointer of git-lfs is not taken for the file.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::DanglingLink`], or [`ModelError::Format`] with [`FormatError::LfsPointer`].
pub fn read_small_file(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    if !is_there(path)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| ModelError::io(path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        let reason = format!(
            "more than {} MiB, too large for such a file",
            MAX_BYTES >> 20
        );
        return Err(ModelError::io(path, io::Error::other(reason)));
    }
    if lfs::is_pointer(&bytes) {
        return Err(FormatError::LfsPointer.in_file(path).into());
    }
    const MARK: &[u8] = "\u{feff}".as_bytes();
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(Some(bytes))
}

/// Whether there is such a file. "No such file" would mislead about a link to nothing and about what is no regular file, so these
/// are errors.
///
/// # Errors
/// [`ModelError::Io`] and [`ModelError::DanglingLink`].
pub(crate) fn is_there(path: &Path) -> Result<bool, ModelError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => Err(ModelError::io(path, io::Error::other("not a regular file"))),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => Err(ModelError::DanglingLink {
                path: path.to_owned(),
                target,
            }),
            Err(_) => Ok(false),
        },
        // A folder that is none has no files.
        Err(e) if e.kind() == ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(ModelError::io(path, e)),
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
    for entry in fs::read_dir(model).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
