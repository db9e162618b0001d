//! The least number of tokens of a text, known before it is tokenized.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Characters that Unicode's normalization makes one of, at most: no character decomposes canonically into more than four.
const COMPOSED_CHARS: usize = 4;

/// Characters of a text that a token stands for at most, so that a long text is refused without the time and the memory to
/// tokenize it: a hundred bytes for each of its own.
///
/// There is such a number as long as no part of the tokenizer drops characters, or makes one token of a run of any length. What
/// is not known to leave all characters alone counts as if it did not, and there is no bound then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LeastTokens {
    /// Of all characters, but for blanks beside `greedy` tokens.
    chars: Option<usize>,
    /// Added tokens that take all blanks beside them.
    greedy: Vec<String>,
    /// Of letters and digits in ASCII. Spaces and lines of dashes make the longest tokens, and normalization leaves these
    /// alone, so that this one is far tighter for most texts.
    letters: Option<usize>,
}

impl LeastTokens {
    /// For a tokenizer whose tokens, the added ones included, are `tokens`.
    pub fn new<'a>(
        tokenizer: &tokenizers::Tokenizer,
        tokens: impl Iterator<Item = &'a String> + Clone,
    ) -> Self {
        let json = |part: serde_json::Result<Value>| part.unwrap_or(Value::Bool(false));
        let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
        let splitter = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
        let ModelWrapper::BPE(model) = tokenizer.get_model() else {
            return Self::default();
        };
        // With marks at the begin or the end of words a letter may be known in one place and not in another.
        let byte_level = is_byte_level(&normalizer) || is_byte_level(&splitter);
        let marked =
            model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some();
        if marked || !normalizer_keeps(&normalizer) || !splitter_keeps(&splitter) {
            return Self::default();
        }
        let known = |char: char| {
            tokenizer
                .token_to_id(char.encode_utf8(&mut [0; 4]))
                .is_some()
        };
        let letters = ('0'..='9').chain('A'..='Z').chain('a'..='z').all(known);
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let greedy = added.values().filter(|token| token.lstrip || token.rstrip);
        // These are looked for in the normalized text, which is not at hand.
        let hidden = greedy.clone().any(|token| token.normalized);
        let most = |count: fn(&str) -> usize| tokens.clone().map(|token| count(token)).max();
        let counts = every_char_counts(model, tokenizer, byte_level);
        Self {
            chars: most(|token| token.chars().count())
                .filter(|_| counts && !hidden)
                .map(|chars| chars * COMPOSED_CHARS),
            greedy: greedy.map(|token| token.content.clone()).collect(),
            letters: most(|token| token.bytes().filter(u8::is_ascii_alphanumeric).count())
                .filter(|_| counts || letters),
        }
    }

    /// Whether `text` is certain to have more than `tokens` tokens.
    pub fn more_than(&self, tokens: usize, text: &str) -> bool {
        let over = |a_token: Option<usize>, count: &dyn Fn() -> usize| {
            let most = a_token.map_or(usize::MAX, |chars| chars.saturating_mul(tokens));
            // A character is a byte at least: most texts need no counting.
            text.len() > most && count() > most
        };
        over(self.letters, &|| count_letters(text)) || over(self.chars, &|| self.count_chars(text))
    }

    /// Characters of `text` without those that a token may take though they are not its own.
    fn count_chars(&self, text: &str) -> usize {
        let blanks = |token: &String| -> usize {
            let beside = text.match_indices(token.as_str()).map(|(at, _)| {
                let (before, after) = (&text[..at], &text[at + token.len()..]);
                before.len() - before.trim_end().len() + after.len() - after.trim_start().len()
            });
            beside.sum()
        };
        let taken: usize = self.greedy.iter().map(blanks).sum();
        text.chars().count().saturating_sub(taken)
    }
}

/// Letters and digits of `text` in ASCII. With a mark behind it a letter may become one that is not in ASCII: it is left out.
fn count_letters(text: &str) -> usize {
    let pairs = text.as_bytes().windows(2);
    let alone = |pair: &&[u8]| pair[0].is_ascii_alphanumeric() && pair[1].is_ascii();
    pairs.filter(alone).count()
}

/// Whether four characters leave one at least, and each letter and digit stays. Replacing a space is all that `Replace` may do.
fn normalizer_keeps(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("NFC" | "NFD" | "Prepend" | "ByteLevel") => true,
        Some("Replace") => {
            normalizer["pattern"]["String"] == " " && normalizer["content"].as_str() != Some("")
        }
        Some("Sequence") => all(&normalizer["normalizers"], normalizer_keeps),
        Some(_) => false,
    }
}

/// Whether all characters stay.
fn splitter_keeps(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        None => splitter.is_null(),
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => splitter["behavior"] != "Removed",
        Some("Sequence") => all(&splitter["pretokenizers"], splitter_keeps),
        Some(_) => false,
    }
}

fn all(list: &Value, keeps: fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|parts| parts.iter().all(keeps))
}

fn is_byte_level(part: &Value) -> bool {
    let lists = [&part["normalizers"], &part["pretokenizers"]];
    let mut parts = lists.into_iter().filter_map(Value::as_array).flatten();
    part["type"] == "ByteLevel" || parts.any(is_byte_level)
}

/// Whether a character that is no token of its own is one token or more: its bytes are, or each is the unknown token.
fn every_char_counts(model: &BPE, tokenizer: &tokenizers::Tokenizer, byte_level: bool) -> bool {
    let known = |token: String| tokenizer.token_to_id(&token).is_some();
    model.unk_token.is_some() && !model.fuse_unk
        || model.byte_fallback && (0..=255).all(|byte: u8| known(format!("<0x{byte:02X}>")))
        || byte_level
            && ByteLevel::alphabet()
                .into_iter()
                .all(|letter| known(letter.into()))
}
