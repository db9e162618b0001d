//! Reads the fields of a JSON object and says which one is wrong.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// No size in a `config.json` may exceed this. It is 40 times the largest vocabulary in use, and small enough that the
/// product of two sizes and a few bytes cannot overflow.
pub(crate) const MAX_SIZE: usize = 1 << 24;

/// A JSON object, the file it is from, and the name of the field that holds it.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// `rope_scaling.` inside that object, empty at the top.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self {
            path,
            prefix: String::new(),
            map,
        }
    }

    /// The field, or nothing if it is absent or null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// The field is there and null.
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    pub(crate) fn missing(&self, field: &str) -> ModelError {
        ModelError::MissingField {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
        }
    }

    pub(crate) fn bad(
        &self,
        field: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> ModelError {
        ModelError::BadField {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            found: shorten(found.to_string()),
            expected: expected.into(),
        }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// A size that must be there.
    pub(crate) fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_size(field)?
            .ok_or_else(|| self.missing(field))
    }

    /// A size in `1 ..= MAX_SIZE`.
    pub(crate) fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size)),
            _ => Err(self.bad(field, value, format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    /// A size that null switches off; absent is the default, as Transformers has it.
    pub(crate) fn optional_size_or(
        &self,
        field: &str,
        default: usize,
    ) -> Result<Option<usize>, ModelError> {
        Ok(self
            .optional_size(field)?
            .or((!self.is_null(field)).then_some(default)))
    }

    /// A number that is not NaN or infinite, also not as f32.
    pub(crate) fn optional_number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (number as f32).is_finite() => Ok(Some(number)),
            Some(_) => Err(self.bad(field, value, format!("a number up to {:e}", f32::MAX))),
            None => Err(self.bad(field, value, "a number")),
        }
    }

    /// A number greater than `least`, or `default` when it is absent or null.
    pub(crate) fn number_above(
        &self,
        field: &str,
        least: f64,
        default: Option<f64>,
    ) -> Result<f64, ModelError> {
        let number = self
            .optional_number(field)?
            .or(default)
            .ok_or_else(|| self.missing(field))?;
        // Also as f32, the type that the kernels compute with: 1e-60 is zero there.
        if number as f32 > least as f32 {
            Ok(number)
        } else {
            Err(self.bad(field, number, format!("a number above {least}")))
        }
    }

    /// `true`, `false`, or `default` when absent or null.
    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.bad(field, value, "true or false")),
        }
    }

    pub(crate) fn optional_text(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| self.bad(field, value, "a string")),
        }
    }

    /// The object in a field, if there is one.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ModelError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let map = value
            .as_object()
            .ok_or_else(|| self.bad(field, value, "an object"))?;
        Ok(Some(Fields {
            path: self.path,
            prefix: format!("{}{field}.", self.prefix),
            map,
        }))
    }

    /// Names of the fields that hold objects.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &'a str> {
        self.map
            .iter()
            .filter(|(_, v)| v.is_object())
            .map(|(k, _)| k.as_str())
    }
}

/// A message is one line: long values are cut.
fn shorten(text: String) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
