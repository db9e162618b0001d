//! Tokens that other files of a folder add to those of `tokenizer.json`.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::EngineError;
use crate::folder::read_object;

/// Roles in the order in which Transformers gives ids to tokens that have none.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Tokens with the ids that a file says they have, ascending: `added_tokens_decoder` of `tokenizer_config.json`, which is
/// `config`, or what older folders have instead, `added_tokens.json`, where no flags are. As in Transformers flags given here go
/// before those of `tokenizer.json`.
///
/// # Errors
/// An old file that is no JSON object; an entry that is no token.
pub(crate) fn numbered(
    dir: &Path,
    config: &Value,
    special: &[AddedToken],
) -> Result<Vec<(u32, AddedToken)>, EngineError> {
    let decoder = &config["added_tokens_decoder"];
    let old = match decoder {
        Value::Null => read_object(dir, "added_tokens.json")?,
        _ => Value::Null,
    };
    let of_config = entries(decoder).map(|(id, token)| {
        let entry = id.parse().ok().zip(from_object(token));
        entry.ok_or(("tokenizer_config.json", id))
    });
    let of_old = entries(&old).map(|(name, id)| {
        let is_special = special.iter().any(|token| token.content == *name);
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let entry = id.map(|id| (id, AddedToken::from(name.clone(), is_special)));
        entry.ok_or(("added_tokens.json", name))
    });
    let tokens: Result<Vec<_>, _> = of_config.chain(of_old).collect();
    let mut tokens = tokens.map_err(|(file, key)| EngineError::Json {
        path: dir.join(file),
        error: format!("the added token '{key}' has no text or no id"),
    })?;
    tokens.sort_by_key(|&(id, _)| id);
    Ok(tokens)
}

/// The special tokens that `special_tokens_map.json` and `tokenizer_config.json` name, each once: those with a role, such as
/// `pad_token`, and those of a list without one. As in Transformers, the map is not read beside `added_tokens_decoder`.
pub(crate) fn special(map: &Value, config: &Value) -> Vec<AddedToken> {
    let map = entries(map).filter(|_| config["added_tokens_decoder"].is_null());
    let mut fields: Vec<_> = entries(config).chain(map).collect();
    fields.sort_by_key(|(field, _)| {
        ROLES
            .iter()
            .position(|role| role == field)
            .unwrap_or(ROLES.len())
    });
    let named = fields
        .into_iter()
        .flat_map(|(field, value)| match (field.as_str(), value) {
            ("additional_special_tokens" | "extra_special_tokens", Value::Array(list)) => {
                list.iter().collect()
            }
            ("extra_special_tokens", Value::Object(roles)) => roles.values().collect(),
            (role, token) if role.ends_with("_token") => vec![token],
            _ => Vec::new(),
        });
    let mut tokens: Vec<AddedToken> = Vec::new();
    for token in named.filter_map(from_name) {
        if tokens.iter().all(|other| other.content != token.content) {
            tokens.push(token);
        }
    }
    tokens
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A special token by its text, or with flags. Flags such as `add_bos_token` are named like roles and are no tokens.
fn from_name(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.clone(), true)),
        _ => from_object(value).map(|token| token.special(true)),
    }
}

/// A token with its flags, by the defaults of Transformers where they lack.
fn from_object(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value[name].as_bool();
    let special = flag("special").unwrap_or(false);
    let content = value["content"].as_str()?;
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}
