//! The tokens of a model as the grammar engine sees them.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::Tokenizer;

/// Longest token that a grammar may use, in bytes. Real ones have up to 256.
const MAX_TOKEN_BYTES: usize = 1 << 12;

/// The trie of all tokens; none if the tokenizer has no id that ends a text.
///
/// Text is matched by the exact bytes of its tokens. Special tokens are no text: a grammar names them by id.
pub(super) fn tokens(tokenizer: &Tokenizer) -> Option<TokEnv> {
    let vocab_size = u32::try_from(tokenizer.vocab_size()).ok()?;
    let eos = tokenizer.eos();
    let info = TokRxInfo::new(vocab_size, *eos.first()?);
    let words: Vec<Vec<u8>> = (0..vocab_size).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
    Some(Arc::new(ApproximateTokEnv::new(trie)))
}

/// The bytes of a token, those of a special one after the byte that marks them. A token without bytes is never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    match tokenizer.special(id) {
        Some(_) => [&[marker], bytes.as_slice()].concat(),
        // No text in UTF-8 has that byte.
        None if bytes.contains(&marker) => Vec::new(),
        None => bytes,
    }
}
