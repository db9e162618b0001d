//! From ids to the text that a caller sees.

use std::ops::ControlFlow;

use crate::generate::{Event, FinishReason};
use crate::{EngineError, StopMatcher, StreamDecoder, Tokenizer};

type OnEvent<'e> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'e;

/// Decodes ids as they come, looks for stop strings, passes text on.
pub(crate) struct TextWriter<'a> {
    decoder: StreamDecoder<'a>,
    stops: StopMatcher,
    text: String,
    /// A stop string came: what is held back is none of the text.
    stopped: bool,
}

impl<'a> TextWriter<'a> {
    pub fn new(tokenizer: &'a Tokenizer, stops: &[String]) -> Result<Self, EngineError> {
        Ok(Self {
            decoder: tokenizer.stream(),
            stops: StopMatcher::new(stops)?,
            text: String::new(),
            stopped: false,
        })
    }

    /// Adds an id; a reason to end if there is one now.
    pub fn push(
        &mut self,
        id: u32,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Option<FinishReason>, EngineError> {
        let Some(piece) = self.decoder.push(id)? else {
            return Ok(None);
        };
        let passed = self.stops.push(&piece);
        self.stopped = passed.stopped;
        let flow = self.show(&passed.text, on_event);
        Ok(match (passed.stopped, flow) {
            (true, _) => Some(FinishReason::Stop),
            (false, ControlFlow::Break(())) => Some(FinishReason::Cancelled),
            (false, ControlFlow::Continue(())) => None,
        })
    }

    /// Lets go of what was held back, unless a stop string ended the text, and returns all of the text. A caller who had
    /// enough hears nothing more.
    pub fn end(
        self,
        reason: FinishReason,
        on_event: &mut OnEvent<'_>,
    ) -> Result<String, EngineError> {
        let Self {
            decoder,
            mut stops,
            mut text,
            stopped,
        } = self;
        if stopped {
            return Ok(text);
        }
        let mut passed = stops.push(&decoder.finish()?.unwrap_or_default());
        if !passed.stopped {
            passed.text += &stops.finish();
        }
        text += &passed.text;
        if !passed.text.is_empty() && reason != FinishReason::Cancelled {
            // Whether the caller wants more makes no difference now.
            let _ = on_event(Event::Text(&passed.text));
        }
        Ok(text)
    }

    fn show(&mut self, text: &str, on_event: &mut OnEvent<'_>) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.text += text;
        on_event(Event::Text(text))
    }
}
