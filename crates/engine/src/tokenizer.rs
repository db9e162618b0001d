//! Text to ids and back, over the tokenizers crate.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::Value;
use sparamx_format::BothEnds;
use sparamx_model::model_file;
use tokenizers::AddedToken;

use crate::folder::{SpecialTokens, read_object, roles};
use crate::foreign::guarded;
use crate::room::LeastTokens;
use crate::token_bytes::Spelling;
use crate::{EngineError, added};

/// A text of so many bytes is tokenized whatever the context is.
const LONG_BYTES: usize = 1 << 20;
/// Bytes for each token of the context, beyond that. Most texts have three to five for each of their tokens.
const TOKEN_BYTES: usize = 32;

/// The tokenizer of a model's folder, with the ids that start and end a text.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Special tokens, those that a file marks and those with a role, by their ids.
    special: HashMap<u32, String>,
    /// Special tokens by their roles.
    roles: BTreeMap<String, String>,
    least: LeastTokens,
    spelling: Spelling,
    /// Ids of tokens that are added to the vocabulary, whose names are their texts.
    added: HashSet<u32>,
    warnings: Vec<String>,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`, or what a GGUF file `dir` has in its place, for a model whose vocabulary has `vocab_size` ids.
    ///
    /// Tokens that `tokenizer_config.json` or `added_tokens.json` add, and special tokens that have a role there, are part of
    /// it, as in Transformers.
    ///
    /// BOS is the token that `tokenizer_config.json` or `special_tokens_map.json` names; where neither mentions one, the
    /// `bos_token_id` of `generation_config.json` or `config.json`. Every id that any of these files calls EOS ends a text:
    /// chat models name one in each.
    ///
    /// Ids at or above `vocab_size`, and fewer ids than that, are usual: a token for padding is added after training, and models
    /// pad their vocabulary. Only a text that has such a token is refused.
    ///
    /// # Errors
    /// A file that is absent, not JSON or not a tokenizer.
    pub fn from_dir(dir: &Path, vocab_size: usize) -> Result<Self, EngineError> {
        let map = read_object(dir, "special_tokens_map.json")?;
        let tokenizer_config = read_object(dir, "tokenizer_config.json")?;
        let specials = roles(&map, &tokenizer_config);
        let named = added::special(&map, &tokenizer_config);
        let numbered = added::numbered(dir, &tokenizer_config, &named)?;
        let inner = read(&dir.join("tokenizer.json"), dir, &numbered, &named)?;
        let vocabulary = inner.get_vocab(true);
        let special = special_ids(&inner, &named);

        let mut warnings = misnumbered(&inner, &numbered);
        warnings.extend(out_of_reach(&vocabulary, &special, vocab_size));
        let (mut bos, mut eos) = (Vec::new(), Vec::new());
        for file in ["generation_config.json", "config.json"] {
            let object = read_object(dir, file)?;
            for (field, all) in [("bos_token_id", &mut bos), ("eos_token_id", &mut eos)] {
                let (ids, outside) = ids_in(&object[field], vocab_size);
                all.extend(ids);
                // The checkpoint reports the same of config.json.
                let outside = outside.iter().filter(|_| file != "config.json");
                warnings.extend(outside.map(|id| {
                    format!("{file}: {field} {id} is not among the {vocab_size} ids of the model, and ignored")
                }));
            }
        }
        let id_of =
            |role: &str| named_id(&inner, &specials, role).filter(|&id| (id as usize) < vocab_size);
        eos.extend(id_of("eos_token"));
        eos.sort_unstable();
        eos.dedup();
        Ok(Self {
            bos: match specials.get("bos_token") {
                Some(_) => id_of("bos_token"),
                None => bos.first().copied(),
            },
            eos,
            special,
            roles: named_roles(specials),
            least: LeastTokens::new(&inner, vocabulary.keys()),
            spelling: Spelling::of(&inner),
            added: inner.get_added_tokens_decoder().into_keys().collect(),
            vocab_size,
            warnings,
            inner,
        })
    }

    /// What is odd about the files and no reason to refuse them, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses a text that is certain to leave no room for a new token in a context, without the work to tokenize it.
    ///
    /// # Errors
    /// [`EngineError::TextTooLong`]. A text that passes may yet be too long.
    pub fn check_room(&self, text: &str, context: usize) -> Result<(), EngineError> {
        self.check_length(text, context)?;
        if self.least.more_than(context.saturating_sub(1), text) {
            Err(EngineError::TextTooLong {
                bytes: text.len(),
                context,
            })
        } else {
            Ok(())
        }
    }

    /// Refuses a text that is not worth the memory to tokenize it, about a hundred bytes for each of its own: it has more than
    /// a million bytes, and far more than texts of that many tokens have, though a tokenizer may know tokens of any length.
    ///
    /// # Errors
    /// [`EngineError::TextTooLong`].
    pub fn check_length(&self, text: &str, context: usize) -> Result<(), EngineError> {
        let bytes = text.len();
        if bytes <= LONG_BYTES.max(context.saturating_mul(TOKEN_BYTES)) {
            return Ok(());
        }
        Err(EngineError::TextTooLong { bytes, context })
    }

    /// Ids of `text`. With `add_special`, what the tokenizer itself puts around a text (a BOS, for Llama) is added; a
    /// rendered chat template has it already.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text; a token that the model does not have.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, EngineError> {
        // `encode_fast` leaves out the offsets, which nobody here reads.
        let encoding = guarded(|| self.inner.encode_fast(text, add_special))
            .map_err(|error| EngineError::Coding { error })?
            .map_err(EngineError::coding)?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&id) => Err(EngineError::Vocabulary {
                id,
                token: self.inner.id_to_token(id).unwrap_or_default(),
                vocab_size: self.vocab_size,
            }),
            None => Ok(ids.to_vec()),
        }
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
        self.decode_all(&text)
    }

    /// Text of `ids`, with special tokens by their names.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, EngineError> {
        guarded(|| self.inner.decode(ids, false))
            .map_err(|error| EngineError::Coding { error })?
            .map_err(EngineError::coding)
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

    /// The special tokens by role: `bos_token`, `eos_token`, `pad_token` and others that the model's files name.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.roles
    }

    /// Number of ids of the model.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The bytes that a token stands for in the middle of a text, which may be a part of a character. A special token stands
    /// for its name. An id without a token has none.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if let Some(name) = self.special(id) {
            return name.into();
        }
        let Some(name) = self.inner.id_to_token(id) else {
            return Vec::new();
        };
        if self.added.contains(&id) {
            return name.into_bytes();
        }
        match &self.spelling {
            Spelling::Text {
                space: None,
                bytes: false,
            } => self.decode(&[id]).unwrap_or(name).into_bytes(),
            spelling => spelling.bytes(&name),
        }
    }

    /// The text of [`Self::token_bytes`], with U+FFFD for what is no whole character.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The id of the special token with this text, if there is one and the model has it.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        let id = self.inner.token_to_id(text)?;
        ((id as usize) < self.vocab_size && self.special.contains_key(&id)).then_some(id)
    }

    /// The name of a special token, which is no part of a text; none for any other.
    pub fn special(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }
}

/// Reads `tokenizer.json` and adds what lies beside it.
fn read(
    path: &Path,
    dir: &Path,
    numbered: &[(u32, AddedToken)],
    named: &[AddedToken],
) -> Result<tokenizers::Tokenizer, EngineError> {
    let bad = |error: String| EngineError::Tokenizer {
        path: path.to_owned(),
        error,
    };
    let bytes = model_file(dir, "tokenizer.json")?.ok_or_else(|| EngineError::NoTokenizer {
        dir: dir.to_owned(),
    })?;
    let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
        .map_err(bad)?
        .map_err(|e| bad(e.to_string()))?;
    // Some folders carry the settings of a training run; a prompt is neither cut nor padded.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(EngineError::coding)?;

    let known = inner.get_added_tokens_decoder();
    let mut tokens: Vec<AddedToken> = numbered.iter().map(|(_, token)| token.clone()).collect();
    for token in named {
        let mut others = tokens.iter().chain(known.values());
        if others.all(|other| other.content != token.content) {
            tokens.push(token.clone());
        }
    }
    guarded(|| inner.add_tokens(tokens))
        .map_err(bad)?
        .map_err(|e| bad(e.to_string()))?;
    guarded(|| inner.encode_fast("", true))
        .map_err(|error| bad(format!("its 'post_processor' fails: {error}")))?
        .map_err(EngineError::coding)?;
    Ok(inner)
}

/// Special tokens by their ids.
fn special_ids(inner: &tokenizers::Tokenizer, named: &[AddedToken]) -> HashMap<u32, String> {
    let marked = inner.get_added_tokens_decoder();
    let marked = marked.into_iter().filter(|(_, token)| token.special);
    let named = named.iter().filter_map(|token| {
        let id = inner.token_to_id(&token.content)?;
        Some((id, token.content.clone()))
    });
    marked
        .map(|(id, token)| (id, token.content))
        .chain(named)
        .collect()
}

/// Tokens that got another id than the file says, which the tokenizers crate offers no way to set.
fn misnumbered(inner: &tokenizers::Tokenizer, numbered: &[(u32, AddedToken)]) -> Vec<String> {
    let wrong = |(id, token): &(u32, AddedToken)| {
        let got = inner.token_to_id(&token.content).filter(|got| got != id)?;
        let token = BothEnds(&token.content);
        Some(format!(
            "the added token '{token}' has id {id} by the file beside tokenizer.json, and gets {got}"
        ))
    };
    numbered.iter().filter_map(wrong).collect()
}

/// Says how many tokens of text the model does not have. Special ones, such as one for padding, are no loss.
fn out_of_reach(
    vocabulary: &HashMap<String, u32>,
    special: &HashMap<u32, String>,
    vocab_size: usize,
) -> Option<String> {
    let lost = vocabulary
        .iter()
        .filter(|&(_, id)| *id as usize >= vocab_size && !special.contains_key(id));
    let (token, id) = lost.clone().min_by_key(|&(_, id)| id)?;
    Some(format!(
        "tokenizer.json has tokens that are not among the {vocab_size} ids of the model ({}, the first is '{}' with id {id}): \
         texts that need them are refused",
        lost.count(),
        BothEnds(token),
    ))
}

/// Roles that have a token.
fn named_roles(specials: SpecialTokens) -> BTreeMap<String, String> {
    let named = specials.into_iter();
    named
        .filter_map(|(role, text)| Some((role, text?)))
        .collect()
}

/// Id of the special token with a role such as `bos_token`.
fn named_id(inner: &tokenizers::Tokenizer, specials: &SpecialTokens, role: &str) -> Option<u32> {
    inner.token_to_id(specials.get(role)?.as_deref()?)
}

/// Ids in a field that holds one, a list of them, or nothing; and numbers there that are no id of the model.
fn ids_in(field: &Value, vocab_size: usize) -> (Vec<u32>, Vec<i64>) {
    let list = match field {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let numbers = list.iter().filter_map(Value::as_i64);
    let (inside, outside): (Vec<i64>, _) =
        numbers.partition(|&id| usize::try_from(id).is_ok_and(|id| id < vocab_size));
    let ids = inside.into_iter().filter_map(|id| u32::try_from(id).ok());
    (ids.collect(), outside)
}
