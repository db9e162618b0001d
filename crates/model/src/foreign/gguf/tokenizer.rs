//! `tokenizer.json` and `tokenizer_config.json` from metadata.
//!
//! Two kinds of vocabulary are read: `gpt2` is byte-level BPE with its merges; `llama` is SentencePiece's BPE, whose merges
//! follow from the scores of the pieces, as Transformers derives them when it converts such a tokenizer.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sparamx_format::gguf::GgufValue;

use super::keys::Keys;
use crate::ModelError;

const TOKENS: &str = "tokenizer.ggml.tokens";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i128 = 1;
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const BYTE: i128 = 6;
/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// How byte-level vocabularies cut a text, by `tokenizer.ggml.pre`. The expressions are those of the models' own
/// tokenizer.json.
struct Cut {
    names: &'static [&'static str],
    /// `None` is the expression of GPT-2, which the tokenizers crate has built in.
    pattern: Option<&'static str>,
    /// Digits are cut one by one first.
    digits: bool,
    /// A word that is a token stays whole, whatever the merges say.
    ignore_merges: bool,
    /// A text starts with BOS unless the file says otherwise.
    bos: bool,
    /// Text is composed first.
    nfc: bool,
}

const PLAIN: Cut = Cut {
    names: &["gpt-2"],
    pattern: None,
    digits: false,
    ignore_merges: false,
    bos: false,
    nfc: false,
};

static CUTS: [Cut; 5] = [
    PLAIN,
    Cut {
        names: &["smollm"],
        digits: true,
        ..PLAIN
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        bos: true,
        ..PLAIN
    },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        ..PLAIN
    },
    Cut {
        names: &["tekken"],
        pattern: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        bos: true,
        ..PLAIN
    },
];

/// The tokens, and what they are.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i128>,
}

impl<'a> Vocabulary<'a> {
    fn read(keys: &Keys<'a>) -> Result<Option<Self>, ModelError> {
        let Some(tokens) = keys.texts(TOKENS)? else {
            return Ok(None);
        };
        const TYPES: &str = "tokenizer.ggml.token_type";
        let kinds = match keys.array(TYPES)? {
            None => vec![NORMAL; tokens.len()],
            Some(array) => array
                .values()
                .map(|value| match value {
                    GgufValue::Int(kind) => kind,
                    _ => NORMAL,
                })
                .collect(),
        };
        if kinds.len() != tokens.len() {
            return Err(keys.bad(
                TYPES,
                format!("{} types", kinds.len()),
                format!("{}, as tokens", tokens.len()),
            ));
        }
        Ok(Some(Self { tokens, kinds }))
    }

    /// The token that a key names by its id.
    fn named(&self, keys: &Keys, key: &str) -> Result<Option<(u64, &'a str)>, ModelError> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(id) = keys.int(&key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        match token {
            Some(token) => Ok(Some((id, token))),
            None => Err(keys.bad(
                &key,
                id,
                format!("below {}, the number of tokens", self.tokens.len()),
            )),
        }
    }

    /// Ids by token.
    fn map(&self) -> Map<String, Value> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    /// Tokens that are found in a text before it is cut.
    fn added(&self) -> Vec<Value> {
        let special = [UNKNOWN, CONTROL];
        let added = self.tokens.iter().zip(&self.kinds).enumerate();
        added
            .filter(|(_, (_, kind))| special.contains(kind) || **kind == USER_DEFINED)
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special.contains(kind)
                })
            })
            .collect()
    }
}

/// `tokenizer.json`; nothing if the file has no tokens.
pub(super) fn tokenizer(keys: &Keys) -> Result<Option<Value>, ModelError> {
    let Some(vocabulary) = Vocabulary::read(keys)? else {
        return Ok(None);
    };
    let mut tokenizer = match keys.required(MODEL, keys.text(MODEL)?)? {
        "gpt2" => byte_level(keys, &vocabulary)?,
        "llama" => sentencepiece(keys, &vocabulary)?,
        other => return Err(keys.bad(MODEL, other, "gpt2 or llama")),
    };
    tokenizer["version"] = json!("1.0");
    tokenizer["truncation"] = Value::Null;
    tokenizer["padding"] = Value::Null;
    tokenizer["added_tokens"] = json!(vocabulary.added());
    Ok(Some(tokenizer))
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config(keys: &Keys) -> Result<Option<Value>, ModelError> {
    let Some(vocabulary) = Vocabulary::read(keys)? else {
        return Ok(None);
    };
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    for (role, key) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ] {
        if let Some((_, token)) = vocabulary.named(keys, key)? {
            config[role] = json!(token);
        }
    }
    if let Some(template) = keys.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    Ok(Some(config))
}

fn byte_level(keys: &Keys, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let pre = keys.required(PRE, keys.text(PRE)?)?;
    let cut = CUTS
        .iter()
        .find(|cut| cut.names.contains(&pre))
        .ok_or_else(|| {
            let names = CUTS.iter().flat_map(|cut| cut.names).copied();
            keys.bad(
                PRE,
                pre,
                format!("one of {}", names.collect::<Vec<_>>().join(", ")),
            )
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
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizer = match (cut.pattern, cut.digits) {
        (None, false) => bytes(true),
        (None, true) => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
        }
        (Some(pattern), _) => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
            });
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        }
    };
    Ok(json!({
        "normalizer": cut.nfc.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer,
        "post_processor": around(keys, vocabulary, cut.bos)?,
        "decoder": bytes(true),
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
    let unknown = vocabulary.named(keys, "unknown_token_id")?;
    let first_unknown = || vocabulary.kinds.iter().position(|&kind| kind == UNKNOWN);
    let unknown = unknown
        .map(|(_, token)| token)
        .or_else(|| Some(vocabulary.tokens[first_unknown()?]));
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": around(keys, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": vocabulary.kinds.contains(&BYTE),
            "ignore_merges": false, "vocab": vocabulary.map(), "merges": merges(vocabulary, &scores)
        }
    }))
}

/// Every way to put a piece together of two others, best score first; among equals the longer left part first.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let pieces = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores);
    let pieces = pieces.filter(|((_, kind), _)| **kind == NORMAL);
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
    let before = wanted("add_bos_token", bos)?.then(|| vocabulary.named(keys, "bos_token_id"));
    let after = wanted("add_eos_token", false)?.then(|| vocabulary.named(keys, "eos_token_id"));
    let (before, after) = (before.transpose()?.flatten(), after.transpose()?.flatten());
    if before.is_none() && after.is_none() {
        return Ok(Value::Null);
    }
    let special =
        |token: &(u64, &str), part: u64| json!({"SpecialToken": {"id": token.1, "type_id": part}});
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
