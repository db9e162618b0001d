//! Text to ids and back, over the tokenizers crate.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use sparamx_model::model_file;

use crate::folder::{SpecialTokens, read_object, special_tokens};
use crate::{EngineError, StreamDecoder};

/// The tokenizer of a model's folder, with the ids that start and end a text.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Special tokens, those that `tokenizer.json` marks and those with a role, by their ids.
    special: HashMap<u32, String>,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`, or what a GGUF file `dir` has in its place, for a model whose vocabulary has `vocab_size` ids.
    ///
    /// BOS is the token that `tokenizer_config.json` or `special_tokens_map.json` names; where neither mentions one, the
    /// `bos_token_id` of `generation_config.json` or `config.json`. Every id that any of these files calls EOS ends a text:
    /// chat models name one in each.
    ///
    /// # Errors
    /// A file that is absent, not JSON or not a tokenizer; an id at or above `vocab_size`. Fewer ids than `vocab_size` are
    /// usual: models pad their vocabulary.
    pub fn from_dir(dir: &Path, vocab_size: usize) -> Result<Self, EngineError> {
        let path = dir.join("tokenizer.json");
        let bytes = model_file(dir, "tokenizer.json")?.ok_or_else(|| EngineError::NoTokenizer {
            dir: dir.to_owned(),
        })?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| EngineError::Tokenizer {
                path: path.clone(),
                error: e.to_string(),
            })?;
        // Some folders carry the settings of a training run; a prompt is neither cut nor padded.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(EngineError::coding)?;
        check_fit(&inner, &path, vocab_size)?;

        let specials = special_tokens(dir)?;
        let generation = read_object(dir, "generation_config.json")?;
        let config = read_object(dir, "config.json")?;
        let id_of = |role: &str| named_id(&inner, &specials, role);
        let bos = match specials.get("bos_token") {
            Some(_) => id_of("bos_token"),
            None => ids_in(&generation["bos_token_id"])
                .chain(ids_in(&config["bos_token_id"]))
                .find(|&id| (id as usize) < vocab_size),
        };
        let mut eos: Vec<u32> = ids_in(&generation["eos_token_id"])
            .chain(ids_in(&config["eos_token_id"]))
            .chain(id_of("eos_token"))
            .collect();
        eos.sort_unstable();
        eos.dedup();
        let marked = inner.get_added_tokens_decoder();
        let marked = marked.into_iter().filter(|(_, token)| token.special);
        let named = specials.iter().filter_map(|(role, token)| Some((id_of(role)?, token.clone()?)));
        let special = marked
            .map(|(id, token)| (id, token.content))
            .chain(named)
            .collect();
        Ok(Self {
            inner,
            bos,
            eos,
            special,
        })
    }

    /// Ids of `text`. With `add_special`, what the tokenizer itself puts around a text (a BOS, for Llama) is added; a
    /// rendered chat template has it already.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, EngineError> {
        // `encode_fast` leaves out the offsets, which nobody here reads.
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(EngineError::coding)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids that generation starts from: those of `text` with special tokens, or BOS alone when there are none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; no ids and no BOS.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let ids = self.encode(text, true)?;
        match (ids.is_empty(), self.bos) {
            (false, _) => Ok(ids),
            (true, Some(bos)) => Ok(vec![bos]),
            (true, None) => Err(EngineError::EmptyPrompt),
        }
    }

    /// Text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, EngineError> {
        // The crate's own filter goes by text and misses special tokens that its normalizer changes.
        let special = |id: &&u32| self.special.contains_key(*id);
        let text: Vec<u32> = ids.iter().filter(|id| !special(id)).copied().collect();
        self.inner.decode(&text, false).map_err(EngineError::coding)
    }

    /// A decoder for ids that come one at a time, after those of `prompt`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stream(&self, prompt: &[u32]) -> Result<StreamDecoder<'_>, EngineError> {
        StreamDecoder::new(self, prompt)
    }

    /// The id that starts a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end a text, ascending.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether `id` stands for text: it is in the vocabulary and no special token.
    pub fn is_text(&self, id: u32) -> bool {
        !self.special.contains_key(&id) && self.inner.id_to_token(id).is_some()
    }

    /// The name of a special token, which is no part of a text; none for any other.
    pub fn special(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }
}

/// Refuses a tokenizer with an id that the model has no embedding for.
fn check_fit(
    inner: &tokenizers::Tokenizer,
    path: &Path,
    vocab_size: usize,
) -> Result<(), EngineError> {
    let highest = inner.get_vocab(true).into_iter().max_by_key(|&(_, id)| id);
    match highest {
        Some((token, id)) if id as usize >= vocab_size => Err(EngineError::Vocabulary {
            path: path.to_owned(),
            id,
            token,
            vocab_size,
        }),
        _ => Ok(()),
    }
}

/// Id of the special token with a role such as `bos_token`.
fn named_id(inner: &tokenizers::Tokenizer, specials: &SpecialTokens, role: &str) -> Option<u32> {
    inner.token_to_id(specials.get(role)?.as_deref()?)
}

/// Ids in a field that holds one, a list of them, or nothing.
fn ids_in(field: &Value) -> impl Iterator<Item = u32> {
    let list = match field {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter()
        .filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
}
