//! Metadata by key, with messages that name it.

use sparamx_format::gguf::{GgufArray, GgufFile, GgufValue};

use crate::ModelError;

/// The metadata of a file.
pub(super) struct Keys<'a> {
    pub file: &'a GgufFile,
    /// `general.architecture`.
    pub arch: &'a str,
}

impl<'a> Keys<'a> {
    pub fn new(file: &'a GgufFile) -> Result<Self, ModelError> {
        let mut keys = Keys { file, arch: "" };
        keys.arch = keys.required("general.architecture", keys.text("general.architecture")?)?;
        // One of several files has some of the tensors.
        if let Some(parts) = keys.int("split.count")?.filter(|&parts| parts > 1) {
            return Err(keys.bad(
                "split.count",
                parts,
                "1: join the files with llama-gguf-split --merge",
            ));
        }
        Ok(keys)
    }

    /// A key of the architecture: `of("block_count")` is `llama.block_count`.
    pub fn of(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// A whole number of at least 0. Of an array of equal numbers, as some files have one for every layer, that number.
    pub fn int(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let one = |value| match value {
            GgufValue::Int(number) => u64::try_from(number).ok(),
            _ => None,
        };
        let number = match self.file.value(key) {
            None => return Ok(None),
            Some(GgufValue::Array(array)) => {
                let mut values = array.values();
                let first = values.next();
                first
                    .filter(|&first| values.all(|value| value == first))
                    .and_then(one)
            }
            Some(value) => one(value),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.bad(
                key,
                self.shown(key),
                "a whole number, the same for all layers",
            )),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(GgufValue::Float(number)) if number.is_finite() => Ok(Some(number)),
            Some(GgufValue::Int(number)) => Ok(Some(number as f64)),
            Some(_) => Err(self.bad(key, self.shown(key), "a number")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, self.shown(key), "a text")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(GgufValue::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.bad(key, self.shown(key), "true or false")),
        }
    }

    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'a>>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.bad(key, self.shown(key), "an array")),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        let texts = array
            .texts()
            .ok_or_else(|| self.bad(key, self.shown(key), "an array of texts"))?;
        Ok(Some(texts.collect()))
    }

    /// The value, or that the key is missing.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::MissingField {
            path: self.file.path().to_owned(),
            field: key.to_owned(),
        })
    }

    pub fn bad(&self, key: &str, found: impl ToString, expected: impl Into<String>) -> ModelError {
        let found: String = found
            .to_string()
            .chars()
            .take(60)
            .flat_map(char::escape_debug)
            .collect();
        ModelError::BadField {
            path: self.file.path().to_owned(),
            field: key.to_owned(),
            found,
            expected: expected.into(),
        }
    }

    /// A value for a message.
    fn shown(&self, key: &str) -> String {
        match self.file.value(key) {
            Some(GgufValue::Text(text)) => format!("'{text}'"),
            Some(GgufValue::Int(number)) => number.to_string(),
            Some(GgufValue::Float(number)) => number.to_string(),
            Some(GgufValue::Bool(flag)) => flag.to_string(),
            Some(GgufValue::Array(array)) => format!("an array of {}", array.len()),
            None => "absent".to_owned(),
        }
    }
}
