//! Text of ids that come one at a time.

use std::sync::Arc;

use crate::{EngineError, Tokenizer};

/// Ids without a complete character after which the window is cut all the same: only garbage gets this far.
const MAX_PENDING: usize = 32;
/// Ids kept by that cut. What decides how much of the end is unstable is at most three incomplete characters of three bytes
/// and a whole one of four before them, and an id stands for at least one byte.
const KEPT: usize = 16;
/// Characters U+FFFD at the end of a text that may be a character still on its way: a byte-level decoder writes one for all
/// its bytes, a byte-fallback decoder one for each, and there are at most three.
const MAX_UNSTABLE: usize = 3;

/// Turns ids into pieces of text as they come, never half a character.
///
/// What an id adds depends on those around it: a character may be spread over several, and some decoders drop the space
/// before the first word. So a *window* is decoded: the ids of the last piece as context, then those not yet shown; what
/// the context does not account for is new. The window is a few ids long whatever the length of the text.
///
/// The pieces joined are what [`Tokenizer::decode`] of the prompt and all ids has more than that of the prompt: the space
/// between the prompt and the first word is new text. Where the prompt ends within a character, that character is.
///
/// There is one exception. A byte-fallback decoder writes U+FFFD for *every* byte of a run that has one bad byte, back to
/// characters that have long been shown; here those stay, and only what comes after them becomes U+FFFD. (A text that holds
/// U+FFFD itself may take part in such a run while it is incomplete.)
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    /// Context, then pending ids.
    window: Vec<u32>,
    /// How many ids of the window are context: their text is out.
    settled: usize,
    /// Text of the context.
    context: String,
    /// Bytes of the pending ids' text that are out.
    shown_bytes: usize,
    /// Characters U+FFFD that the prompt's text ends with. Where they stay, they are not new.
    replaced_in_prompt: usize,
    /// Special tokens have a text: their names.
    shows_special: bool,
}

impl Tokenizer {
    /// A decoder for ids that come one at a time, after those of `prompt`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stream(self: &Arc<Self>, prompt: &[u32]) -> Result<StreamDecoder, EngineError> {
        StreamDecoder::new(Arc::clone(self), prompt, false)
    }

    /// The same with special tokens by their names.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stream_all(self: &Arc<Self>, prompt: &[u32]) -> Result<StreamDecoder, EngineError> {
        StreamDecoder::new(Arc::clone(self), prompt, true)
    }
}

impl StreamDecoder {
    /// A decoder of ids that come after `prompt`.
    ///
    /// The end of the prompt goes through it and what comes out is dropped. That end begins with a token that has a text of
    /// its own, so that nothing before it has a say in what follows.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        shows_special: bool,
    ) -> Result<Self, EngineError> {
        let mut stream = Self {
            tokenizer,
            window: Vec::new(),
            settled: 0,
            context: String::new(),
            shown_bytes: 0,
            replaced_in_prompt: 0,
            shows_special,
        };
        let mut start = 0;
        for (index, id) in prompt.iter().enumerate().rev() {
            let text = stream.decode(std::slice::from_ref(id))?;
            if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
                start = index;
                break;
            }
        }
        for &id in &prompt[start..] {
            stream.push(id)?;
        }
        let pending = stream.pending_text()?;
        let pending = pending.get(stream.shown_bytes..).unwrap_or_default();
        stream.replaced_in_prompt = pending.chars().count();
        Ok(stream)
    }

    /// Adds an id and returns the text that is certain now, if any. Special tokens have no text, unless they are shown.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, EngineError> {
        // An id without text in the context would hide what the context is there for.
        let shown = self.shows_special && self.tokenizer.special(id).is_some();
        if !shown && !self.tokenizer.is_text(id) {
            return Ok(None);
        }
        self.window.push(id);
        let text = self.pending_text()?;
        let stable = stable_bytes(&text);
        let piece = self.show(&text, stable);
        if stable == text.len() && stable > 0 {
            self.window.drain(..self.settled);
            self.settled = self.window.len();
            self.context = self.decode(&self.window)?;
            self.shown_bytes = 0;
        } else if self.window.len() - self.settled > MAX_PENDING {
            self.window.drain(..self.window.len() - KEPT);
            self.settled = 0;
            self.context.clear();
            self.shown_bytes = stable_bytes(&self.decode(&self.window)?);
        }
        Ok(piece)
    }

    /// Ends the text: returns what was held back, with U+FFFD for a character that never became whole.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(mut self) -> Result<Option<String>, EngineError> {
        let text = self.pending_text()?;
        Ok(self.show(&text, text.len()))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, EngineError> {
        if self.shows_special {
            self.tokenizer.decode_all(ids)
        } else {
            self.tokenizer.decode(ids)
        }
    }

    /// Text of the pending ids, after the context.
    fn pending_text(&self) -> Result<String, EngineError> {
        let mut text = self.decode(&self.window)?;
        if text.starts_with(&self.context) {
            text.drain(..self.context.len());
            return Ok(text);
        }
        // The run of bytes that the context ends with has gone bad.
        self.decode(&self.window[self.settled..])
    }

    /// What is new in the first `stable` bytes of the pending text.
    fn show(&mut self, text: &str, stable: usize) -> Option<String> {
        let piece = text.get(self.shown_bytes..stable)?;
        if piece.is_empty() {
            return None;
        }
        self.shown_bytes = stable;
        let rest = piece.trim_start_matches(char::REPLACEMENT_CHARACTER);
        let replaced = (piece.len() - rest.len()) / char::REPLACEMENT_CHARACTER.len_utf8();
        let known = replaced.min(self.replaced_in_prompt);
        self.replaced_in_prompt = match rest {
            "" => self.replaced_in_prompt - known,
            _ => 0,
        };
        let piece = &piece[known * char::REPLACEMENT_CHARACTER.len_utf8()..];
        (!piece.is_empty()).then(|| piece.to_owned())
    }
}

/// Bytes of `text` that no further id can change.
fn stable_bytes(text: &str) -> usize {
    let unstable: usize = text
        .chars()
        .rev()
        .take(MAX_UNSTABLE)
        .take_while(|&c| c == char::REPLACEMENT_CHARACTER)
        .map(char::len_utf8)
        .sum();
    text.len() - unstable
}
