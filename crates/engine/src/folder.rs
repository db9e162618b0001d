//! The small JSON files that lie beside `tokenizer.json` in a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use sparamx_model::{model_file, model_json};

use crate::EngineError;

/// Reads `dir/name`; none when there is no such file. `dir` may be a GGUF file, which stands for its folder.
pub(crate) fn read_text(dir: &Path, name: &str) -> Result<Option<String>, EngineError> {
    let text = |bytes| utf8(bytes, &dir.join(name));
    model_file(dir, name)?.map(text).transpose()
}

/// The text of the file `path`.
pub(crate) fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String, EngineError> {
    String::from_utf8(bytes).map_err(|e| EngineError::Json {
        path: path.to_owned(),
        error: e.to_string(),
    })
}

/// Reads the JSON object in `dir/name`; `null` when there is no such file, so that every field of it is absent.
pub(crate) fn read_object(dir: &Path, name: &str) -> Result<Value, EngineError> {
    Ok(model_json(dir, name)?.map_or(Value::Null, Value::Object))
}

/// Special tokens by role (`bos_token`, `eos_token`, ...): the text, or none where a file says that there is none.
pub(crate) type SpecialTokens = BTreeMap<String, Option<String>>;

/// Reads the roles from `special_tokens_map.json` and `tokenizer_config.json`; the latter decides, as in Transformers.
pub(crate) fn special_tokens(dir: &Path) -> Result<SpecialTokens, EngineError> {
    let map = read_object(dir, "special_tokens_map.json")?;
    let config = read_object(dir, "tokenizer_config.json")?;
    Ok(roles(&map, &config))
}

/// The roles that those two files name.
pub(crate) fn roles(map: &Value, config: &Value) -> SpecialTokens {
    let mut tokens = SpecialTokens::new();
    for value in [map, config] {
        let Some(fields) = value.as_object() else {
            continue;
        };
        for (field, value) in fields.iter().filter(|(field, _)| field.ends_with("_token")) {
            match value {
                Value::Null => tokens.insert(field.clone(), None),
                Value::String(text) => tokens.insert(field.clone(), Some(text.clone())),
                // A serialized `AddedToken`. Flags such as `add_bos_token` end alike and are no tokens.
                Value::Object(_) => {
                    tokens.insert(field.clone(), value["content"].as_str().map(str::to_owned))
                }
                _ => continue,
            };
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_from_both_files_and_the_config_decides() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("special_tokens_map.json"),
            r#"{"bos_token": "<a>", "eos_token": {"content": "</a>"}, "pad_token": "<pad>"}"#,
        )
        .unwrap();
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            r#"{"bos_token": null, "add_bos_token": false, "eos_token": "</s>", "tokenizer_class": "X"}"#,
        )
        .unwrap();
        let tokens = special_tokens(dir.path()).unwrap();
        assert_eq!(tokens["bos_token"], None);
        assert_eq!(tokens["eos_token"].as_deref(), Some("</s>"));
        assert_eq!(tokens["pad_token"].as_deref(), Some("<pad>"));
        assert_eq!(tokens.len(), 3);
    }

    #[test]
    fn absent_files_say_nothing_and_bad_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(special_tokens(dir.path()).unwrap().is_empty());
        for bad in ["[]", "{"] {
            std::fs::write(dir.path().join("tokenizer_config.json"), bad).unwrap();
            let message = special_tokens(dir.path()).unwrap_err().to_string();
            assert!(
                message.contains("tokenizer_config.json: not a JSON object"),
                "{message}"
            );
        }
    }
}
