//! The tokens of a file, what they are, and which of them start and end a text.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sparamx_format::Short;
use sparamx_format::gguf::GgufValue;

use super::keys::Keys;
use crate::ModelError;

const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const MODEL: &str = "tokenizer.ggml.model";

/// What a token is: values of `tokenizer.ggml.token_type`.
pub(super) mod kind {
    pub const NORMAL: i128 = 1;
    pub const UNKNOWN: i128 = 2;
    pub const CONTROL: i128 = 3;
    pub const USER_DEFINED: i128 = 4;
    pub const BYTE: i128 = 6;
}

/// Tokens that end a text or a turn, by their names in the vocabularies of chat models. Files often name only one of them by its id;
/// llama.cpp ends at all that there are, and so does this.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Tokens that end what is filled in between two texts, by key and by names.
const FILLED: [(&str, &[&str]); 3] = [
    (
        "fim_pad_token_id",
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    ),
    (
        "fim_rep_token_id",
        &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
    ),
    ("fim_sep_token_id", &["<|file_sep|>"]),
];
/// Tokens that end nothing where there are others: the parts of an answer end with `<|end|>` where calls and the whole have tokens of
/// their own, and `</s>` is a word where there are answers of tools.
const BUT: [(&str, &[&str]); 5] = [
    ("<|end|>", &["<|return|>", "<|call|>"]),
    ("<|end|>", &["<|return|>", "<|calls|>"]),
    ("<|end|>", &["<|flush|>", "<|call|>"]),
    ("<|end|>", &["<|flush|>", "<|calls|>"]),
    ("</s>", &["<|tool_response>"]),
];

/// A token with its id.
pub(super) type Token<'a> = (u64, &'a str);

/// The tokens, and what they are.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<&'a str>,
    /// One of [`kind`] each.
    pub kinds: Vec<i128>,
    pub bos: Option<Token<'a>>,
    pub eos: Option<Token<'a>>,
    pub unknown: Option<Token<'a>>,
    pub padding: Option<Token<'a>>,
    /// Ids that end a text or a turn, EOS first.
    pub ends: Vec<u64>,
    /// A line each on what was passed over or corrected.
    pub notes: Vec<String>,
}

impl<'a> Vocabulary<'a> {
    /// The tokens of a file; nothing if it has none.
    pub(super) fn read(keys: &Keys<'a>) -> Result<Option<Self>, ModelError> {
        let Some(tokens) = keys.texts(TOKENS)? else {
            return Ok(None);
        };
        let ids = ids(keys, &tokens)?;
        let mut vocabulary = Self {
            kinds: kinds(keys, tokens.len())?,
            tokens,
            bos: None,
            eos: None,
            unknown: None,
            padding: None,
            ends: Vec::new(),
            notes: Vec::new(),
        };
        // What llama.cpp assumes of SentencePiece where a file says nothing.
        let defaults = match keys.text(MODEL)? {
            Some("llama") => {
                let marked = vocabulary
                    .kinds
                    .iter()
                    .position(|&kind| kind == kind::UNKNOWN);
                [Some(1), Some(2), Some(marked.unwrap_or(0) as u64)]
            }
            _ => [None; 3],
        };
        vocabulary.bos = vocabulary.named(keys, "bos_token_id", defaults[0])?;
        vocabulary.eos = vocabulary.named(keys, "eos_token_id", defaults[1])?;
        vocabulary.unknown = vocabulary.named(keys, "unknown_token_id", defaults[2])?;
        vocabulary.padding = vocabulary.named(keys, "padding_token_id", None)?;
        vocabulary.find_ends(keys, &ids)?;
        Ok(Some(vocabulary))
    }

    /// The token that a key names by its id, or the default one. An id without a token is passed over.
    fn named(
        &mut self,
        keys: &Keys,
        key: &str,
        default: Option<u64>,
    ) -> Result<Option<Token<'a>>, ModelError> {
        let key = format!("tokenizer.ggml.{key}");
        let token = |id: u64| {
            let token = self.tokens.get(usize::try_from(id).ok()?)?;
            Some((id, *token))
        };
        let default = default.and_then(token);
        let Some(id) = keys.int(&key)? else {
            return Ok(default);
        };
        let found = token(id);
        if found.is_none() {
            self.notes.push(format!(
                "{key} is {id}, and there are {} tokens: it is passed over",
                self.tokens.len()
            ));
        }
        Ok(found.or(default))
    }

    /// Fills in what ends a text. Tokens with the name of an end are control tokens, whatever the file says.
    fn find_ends(&mut self, keys: &Keys, ids: &HashMap<&str, u64>) -> Result<(), ModelError> {
        let mut ends: Vec<u64> = self.eos.iter().map(|(id, _)| *id).collect();
        for key in ["eot_token_id", "eom_token_id"] {
            ends.extend(self.named(keys, key, None)?.map(|(id, _)| id));
        }
        let there = |names: &[&str]| names.iter().all(|name| ids.contains_key(name));
        let is_end = |name: &&&str| {
            let mut but = BUT.iter().filter(|(end, _)| end == *name);
            !but.any(|(_, others)| there(others))
        };
        let mut looks: Vec<u64> = ENDS
            .iter()
            .filter(is_end)
            .filter_map(|name| ids.get(name).copied())
            .collect();
        for (key, names) in FILLED {
            match self.named(keys, key, None)? {
                Some((id, _)) => ends.push(id),
                None => looks.extend(names.iter().find_map(|name| ids.get(name))),
            }
        }
        let mut normal = Vec::new();
        for &id in &looks {
            let kind = &mut self.kinds[id as usize];
            if *kind != kind::CONTROL {
                *kind = kind::CONTROL;
                normal.push(Short(self.tokens[id as usize]).to_string());
            }
        }
        if !normal.is_empty() {
            self.notes.push(format!(
                "the file does not mark {} as control, which the name says: it is taken for the end of a text",
                normal.join(", ")
            ));
        }
        looks.sort_unstable();
        for id in ends.into_iter().chain(looks) {
            if !self.ends.contains(&id) {
                self.ends.push(id);
            }
        }
        Ok(())
    }

    /// Ids by token.
    pub(super) fn map(&self) -> Map<String, Value> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    /// Tokens that are found in a text before it is cut.
    pub(super) fn added(&self) -> Vec<Value> {
        let special = [kind::UNKNOWN, kind::CONTROL];
        let added = self.tokens.iter().zip(&self.kinds).enumerate();
        added
            .filter(|(_, (_, kind))| special.contains(kind) || **kind == kind::USER_DEFINED)
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special.contains(kind)
                })
            })
            .collect()
    }
}

/// Ids by token, each of which must be there once: the tokenizer could not tell two apart.
fn ids<'a>(keys: &Keys, tokens: &[&'a str]) -> Result<HashMap<&'a str, u64>, ModelError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (&token, id) in tokens.iter().zip(0..) {
        if let Some(first) = ids.insert(token, id) {
            let found = format!("{} as number {first} and as number {id}", Short(token));
            return Err(keys.bad(TOKENS, found, "each token once: convert the model again"));
        }
    }
    Ok(ids)
}

fn kinds(keys: &Keys, tokens: usize) -> Result<Vec<i128>, ModelError> {
    const TYPES: &str = "tokenizer.ggml.token_type";
    let Some(array) = keys.array(TYPES)? else {
        return Ok(vec![kind::NORMAL; tokens]);
    };
    let kind = |value| match value {
        GgufValue::Int(kind) => kind,
        _ => kind::NORMAL,
    };
    let kinds: Vec<i128> = array.values().map(kind).collect();
    if kinds.len() != tokens {
        let found = format!("{} types", kinds.len());
        return Err(keys.bad(TYPES, found, format!("{tokens}, as tokens")));
    }
    Ok(kinds)
}
