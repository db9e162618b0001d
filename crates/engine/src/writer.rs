//! From ids to the text that a caller sees.

use std::sync::Arc;

use crate::batch::GenerateParams;
use crate::{EngineError, Passed, StopMatcher, StreamDecoder, Tokenizer};

/// Decodes ids as they come, and looks for stop strings.
pub(crate) struct TextWriter {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    stops: StopMatcher,
    /// Special tokens are text: all, or these.
    shows_special: bool,
    shown_ids: Vec<u32>,
    /// A stop string came: what is held back is none of the text.
    stopped: bool,
}

impl TextWriter {
    /// A writer of what comes after `prompt`. No stop string reaches back into it.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        prompt: &[u32],
        params: &GenerateParams,
    ) -> Result<Self, EngineError> {
        let shows_special = params.show_special;
        let shows_some = shows_special || !params.shown_ids.is_empty();
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            decoder: StreamDecoder::new(Arc::clone(tokenizer), prompt, shows_some)?,
            stops: StopMatcher::new(&params.stop)?.including(params.include_stop),
            shows_special,
            shown_ids: params.shown_ids.clone(),
            stopped: false,
        })
    }

    /// Adds an id: the text that is certain now, and the stop string that ends it there. One that is complete here is ignored
    /// if it comes too `early`.
    pub fn push(&mut self, id: u32, early: bool) -> Result<Passed, EngineError> {
        self.stops.ignore(early);
        let passed = match self.tokenizer.special(id) {
            Some(name) if !self.shows(id) => self.stops.push_special(name),
            _ => self.stops.push(&self.decoder.push(id)?.unwrap_or_default()),
        };
        self.stopped |= passed.stopped.is_some();
        Ok(passed)
    }

    /// Whether a special token is text.
    fn shows(&self, id: u32) -> bool {
        self.shows_special || self.shown_ids.contains(&id)
    }

    /// Lets go of what was held back, unless a stop string ended the text. The text of a token that ended it may come `after`.
    pub fn finish(self, after: Option<u32>) -> Result<String, EngineError> {
        let is_text = |&id: &u32| self.tokenizer.special(id).is_none() || self.shows(id);
        let after = after.filter(is_text);
        let Self {
            mut decoder,
            mut stops,
            stopped,
            ..
        } = self;
        if stopped {
            return Ok(String::new());
        }
        let last = match after {
            Some(id) => decoder.push(id)?.unwrap_or_default(),
            None => String::new(),
        };
        let mut passed = stops.push(&(last + &decoder.finish()?.unwrap_or_default()));
        if passed.stopped.is_none() {
            passed.text += &stops.finish();
        }
        Ok(passed.text)
    }
}
