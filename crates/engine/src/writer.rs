//! From ids to the text that a caller sees.

use std::sync::Arc;

use crate::{EngineError, Passed, StopMatcher, StreamDecoder, Tokenizer};

/// Decodes ids as they come, and looks for stop strings.
pub(crate) struct TextWriter {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    stops: StopMatcher,
    /// A stop string came: what is held back is none of the text.
    stopped: bool,
}

impl TextWriter {
    /// A writer of what comes after `prompt`. No stop string reaches back into it.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        prompt: &[u32],
        stops: &[String],
    ) -> Result<Self, EngineError> {
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            decoder: tokenizer.stream(prompt)?,
            stops: StopMatcher::new(stops)?,
            stopped: false,
        })
    }

    /// Adds an id: the text that is certain now, and whether it ends there.
    pub fn push(&mut self, id: u32) -> Result<Passed, EngineError> {
        let passed = match self.tokenizer.special(id) {
            Some(name) => self.stops.push_special(name),
            None => self.stops.push(&self.decoder.push(id)?.unwrap_or_default()),
        };
        self.stopped |= passed.stopped;
        Ok(passed)
    }

    /// Lets go of what was held back, unless a stop string ended the text.
    pub fn finish(self) -> Result<String, EngineError> {
        let Self {
            decoder,
            mut stops,
            stopped,
            ..
        } = self;
        if stopped {
            return Ok(String::new());
        }
        let mut passed = stops.push(&decoder.finish()?.unwrap_or_default());
        if !passed.stopped {
            passed.text += &stops.finish();
        }
        Ok(passed.text)
    }
}
