//! Names that come from outside. They become names of files, so that none is used that was not checked here.

use std::collections::BTreeSet;

use crate::error::Fault;

/// Longer than any hash; with `.incomplete` still a name that all file systems take.
const MAX_LEN: usize = 128;
/// What file systems take.
const MAX_FILE_NAME: usize = 255;

/// A commit, as the hub or a reference in the cache names it.
pub fn commit(text: &str) -> Option<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (!text.is_empty() && text.len() <= MAX_LEN && text.bytes().all(fits)).then_some(text)
}

/// The entity tag of a header, without quotes and the mark of a weak one. Some mirrors have dots in it.
pub fn etag(header: &str) -> Result<String, Fault> {
    let text = header.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    let plain = text.split('.').all(|part| commit(part).is_some());
    if plain && text.len() <= MAX_LEN && !text.ends_with(".incomplete") {
        Ok(text.to_owned())
    } else {
        Err(Fault::Answer(format!(
            "its ETag {} is not made of letters, digits, '-' and '_'",
            shown(header)
        )))
    }
}

/// The files that an index of shards names.
pub fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: serde_json::Value =
        serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index["weight_map"]
        .as_object()
        .ok_or("it has no weight_map")?;
    let name = |value: &serde_json::Value| match value.as_str() {
        Some(name) if name.ends_with(".safetensors") && is_file_name(name) => Ok(name.to_owned()),
        _ => Err(format!(
            "its weight_map names {}, which is no .safetensors file beside it",
            shown(&value.to_string())
        )),
    };
    map.values().map(name).collect()
}

/// Whether a file of that name lies beside others on any system.
fn is_file_name(name: &str) -> bool {
    let odd = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    !name.is_empty() && name.len() <= MAX_FILE_NAME && !name.starts_with('.') && !name.contains(odd)
}

/// A text from outside, short enough for a message.
pub fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() {
        format!("{start:?}...")
    } else {
        format!("{start:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_words() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(commit(hash), Some(hash));
        let long = "a".repeat(129);
        for text in [
            "", ".", "..", "../a", "/a", "a/b", "a\\b", "a\n", "a b", "C:", &long,
        ] {
            assert_eq!(commit(text), None, "{text:?}");
        }
    }

    #[test]
    fn entity_tags_are_words() {
        for (header, tag) in [
            ("\"abc-1\"", "abc-1"),
            ("W/\"abc\"", "abc"),
            (" abc_d ", "abc_d"),
            ("\"e-model.safetensors\"", "e-model.safetensors"),
        ] {
            assert_eq!(etag(header).expect(header), tag);
        }
        let long = format!("\"{}\"", "a".repeat(129));
        for header in [
            "",
            "\"\"",
            "\"..\"",
            "\".\"",
            "\".a\"",
            "\"a.\"",
            "\"/home/me/.bashrc\"",
            "\"../../x\"",
            "\"a/b\"",
            "\"a\\b\"",
            "\"a b\"",
            "\"a\0\"",
            "\"a.incomplete\"",
            "\"C:x\"",
            &long,
        ] {
            assert!(etag(header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let index = br#"{"weight_map": {"a": "x-1.safetensors", "b": "x 2.safetensors", "c": "x-1.safetensors"}}"#;
        let names: Vec<String> = shards(index).expect("an index").into_iter().collect();
        assert_eq!(names, ["x 2.safetensors", "x-1.safetensors"]);
        let long = format!(
            r#"{{"weight_map": {{"a": "{}.safetensors"}}}}"#,
            "x".repeat(300)
        );
        for wrong in [
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            r#"{"weight_map": {"a": "/x.safetensors"}}"#,
            r#"{"weight_map": {"a": "a/../../x.safetensors"}}"#,
            r#"{"weight_map": {"a": "..\\x.safetensors"}}"#,
            r#"{"weight_map": {"a": "C:x.safetensors"}}"#,
            r#"{"weight_map": {"a": ".safetensors"}}"#,
            r#"{"weight_map": {"a": "x\u0000.safetensors"}}"#,
            r#"{"weight_map": {"a": "x.bin"}}"#,
            r#"{"weight_map": {"a": 1}}"#,
            "{}",
            "nonsense",
            &long,
        ] {
            assert!(shards(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
