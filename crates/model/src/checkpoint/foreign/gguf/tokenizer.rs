//! `tokenizer.json` and `tokenizer_config.json` from metadata.
//!
//! Two kinds of vocabulary are read: `gpt2` is byte-level BPE with its merges; `llama` is SentencePiece's BPE, whose merges
//! follow from the scores of the pieces, as Transformers derives them when it converts such a tokenizer.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sparamx_format::gguf::GgufValue;

use super::keys::Keys;
use super::pre::{self, Cut};
use super::vocabulary::{MODEL, Token, Vocabulary, kind};
use crate::ModelError;

const PRE: &str = "tokenizer.ggml.pre";
/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// `tokenizer.json`.
pub(super) fn tokenizer(keys: &Keys, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let mut tokenizer = match keys.required(MODEL, keys.text(MODEL)?)? {
        "gpt2" => byte_level(keys, vocabulary)?,
        "llama" => sentencepiece(keys, vocabulary)?,
        other => return Err(keys.bad(MODEL, other, "gpt2 or llama")),
    };
    tokenizer["version"] = json!("1.0");
    tokenizer["truncation"] = Value::Null;
    tokenizer["padding"] = Value::Null;
    tokenizer["added_tokens"] = json!(vocabulary.added());
    Ok(tokenizer)
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config(keys: &Keys, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    for (role, token) in [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.padding),
    ] {
        if let Some((_, token)) = token {
            config[role] = json!(token);
        }
    }
    if let Some(template) = keys.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    Ok(config)
}

/// What a user should know about how a byte-level vocabulary cuts a text.
pub(super) fn note(keys: &Keys) -> Result<Option<String>, ModelError> {
    let unsaid = keys.text(MODEL)? == Some("gpt2") && pre(keys)?.is_none();
    Ok(unsaid.then(|| {
        format!(
            "{PRE} is missing: texts are cut into words as '{}' has it, which may not be how the model learned them; a file \
             that is converted again has it",
            pre::DEFAULT
        )
    }))
}

fn pre<'a>(keys: &Keys<'a>) -> Result<Option<&'a str>, ModelError> {
    Ok(keys.text(PRE)?.filter(|name| !name.is_empty()))
}

fn byte_level(keys: &Keys, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let name = pre(keys)?.unwrap_or(pre::DEFAULT);
    let cut = Cut::of(name).ok_or_else(|| {
        let expected = "a name of llama.cpp for a way to cut text into words that is known here (docs/checkpoints.md)";
        keys.bad(PRE, name, expected)
    })?;
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges = keys.required(MERGES, keys.texts(MERGES)?)?;
    let merges: Vec<[&str; 2]> = merges
        .iter()
        .map(|merge| {
            let parts = merge.split_once(' ').map(|(left, right)| [left, right]);
            parts.ok_or_else(|| keys.bad(MERGES, merge, "two tokens and a space between them"))
        })
        .collect::<Result<_, _>>()?;
    Ok(json!({
        "normalizer": cut.nfc.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": cut.pre_tokenizer(),
        "post_processor": around(keys, vocabulary, cut.bos)?,
        "decoder": pre::byte_level(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": cut.ignore_merges, "vocab": vocabulary.map(), "merges": merges
        }
    }))
}

fn sentencepiece(keys: &Keys, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = keys.required(SCORES, keys.array(SCORES)?)?;
    let scores: Vec<f64> = scores
        .values()
        .filter_map(|score| match score {
            GgufValue::Float(score) if !score.is_nan() => Some(score),
            _ => None,
        })
        .collect();
    if scores.len() != vocabulary.tokens.len() {
        let expected = format!("{} numbers, as tokens", vocabulary.tokens.len());
        return Err(keys.bad(SCORES, format!("{} numbers", scores.len()), expected));
    }
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if keys
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true)
    {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.unknown.map(|(_, token)| token);
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": around(keys, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": vocabulary.kinds.contains(&kind::BYTE),
            "ignore_merges": false, "vocab": vocabulary.map(), "merges": merges(vocabulary, &scores)
        }
    }))
}

/// Every way to put a piece together of two others, best score first; among equals the longer left part first.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let pieces = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores);
    let pieces = pieces.filter(|((_, kind), _)| **kind == kind::NORMAL);
    let pieces: HashMap<&str, f64> = pieces.map(|((token, _), score)| (*token, *score)).collect();
    let mut merges = Vec::new();
    for piece in &vocabulary.tokens {
        let Some(&score) = pieces.get(piece) else {
            continue;
        };
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if pieces.contains_key(left) && pieces.contains_key(right) {
                merges.push((score, left, right));
            }
        }
    }
    let chars = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let score = b.0.total_cmp(&a.0);
        score.then_with(|| (chars(b.1), chars(b.2)).cmp(&(chars(a.1), chars(a.2))))
    });
    merges
        .into_iter()
        .map(|(_, left, right)| [left, right])
        .collect()
}

/// What is put around a text: BOS before, EOS after, as the file says; `bos` if it does not.
fn around(keys: &Keys, vocabulary: &Vocabulary, bos: bool) -> Result<Value, ModelError> {
    let wanted = |key: &str, default: bool| {
        Ok::<_, ModelError>(
            keys.flag(&format!("tokenizer.ggml.{key}"))?
                .unwrap_or(default),
        )
    };
    let (before, after) = (
        wanted("add_bos_token", bos)?,
        wanted("add_eos_token", false)?,
    );
    let before = vocabulary.bos.filter(|_| before);
    let after = vocabulary.eos.filter(|_| after);
    if before.is_none() && after.is_none() {
        return Ok(Value::Null);
    }
    let special =
        |token: &Token, part: u64| json!({"SpecialToken": {"id": token.1, "type_id": part}});
    let part = |name: &str, id: u64| {
        let text = json!({"Sequence": {"id": name, "type_id": id}});
        let before = before.iter().map(|token| special(token, id));
        before
            .chain([text])
            .chain(after.iter().map(|token| special(token, id)))
            .collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = before
        .iter()
        .chain(&after)
        .map(|(id, token)| {
            (
                (*token).to_owned(),
                json!({"id": token, "ids": [id], "tokens": [token]}),
            )
        })
        .collect();
    let pair = [part("A", 0), part("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": pair,
        "special_tokens": tokens
    }))
}
