//! JSON as Python writes it.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// Numbers that Python's json writes and reads, and that JSON does not have.
const NOT_FINITE: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Parses an object; `path` is for messages. [`NOT_FINITE`] numbers come as strings: where nothing reads them they do no harm, and
/// where a number is asked for the message shows them.
///
/// # Errors
/// [`ModelError::Json`]
pub(crate) fn object(text: &[u8], path: &Path) -> Result<Map<String, Value>, ModelError> {
    let parsed = serde_json::from_slice(text);
    let parsed = parsed.or_else(|error| match quote_not_finite(text) {
        Cow::Owned(quoted) => serde_json::from_slice(&quoted),
        Cow::Borrowed(_) => Err(error),
    });
    parsed.map_err(|error| ModelError::Json {
        path: path.to_owned(),
        error: error.to_string(),
    })
}

/// The text with [`NOT_FINITE`] numbers in quotation marks.
fn quote_not_finite(text: &[u8]) -> Cow<'_, [u8]> {
    let mut quoted = Vec::new();
    let (mut copied, mut at) = (0, 0);
    let mut in_string = false;
    while at < text.len() {
        let number = NOT_FINITE
            .iter()
            .find(|number| !in_string && text[at..].starts_with(number.as_bytes()));
        if let Some(number) = number {
            quoted.extend_from_slice(&text[copied..at]);
            quoted.extend_from_slice(format!("\"{number}\"").as_bytes());
            at += number.len();
            copied = at;
            continue;
        }
        match text[at] {
            b'"' => in_string = !in_string,
            // What is behind it ends no string.
            b'\\' => at += 1,
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    quoted.extend_from_slice(&text[copied..]);
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_come_as_strings() {
        let text = br#"{"a": NaN, "b": [-Infinity, Infinity, 1], "NaN \" Infinity": "NaN, \\", "c": "NaN"}"#;
        let object = object(text, Path::new("x")).unwrap();
        assert_eq!(object["a"], "NaN");
        assert_eq!(object["b"].to_string(), r#"["-Infinity","Infinity",1]"#);
        assert_eq!(object["NaN \" Infinity"], "NaN, \\");
        assert_eq!(object["c"], "NaN");
    }

    #[test]
    fn what_is_no_json_stays_an_error() {
        for text in [
            &b"{\"a\": NaNs}"[..],
            b"{\"a\": NaN",
            b"[NaN]",
            b"{\"a\\",
            b"",
        ] {
            let error = object(text, Path::new("x")).unwrap_err().to_string();
            assert!(error.starts_with("x: not a JSON object"), "{error}");
        }
    }
}
