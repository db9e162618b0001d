//! A whole generation as one call.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use super::Host;
use crate::batch::{Event, FinishReason, GenerateParams, Request, Usage};
use crate::{EngineError, LogitsProcessor};

/// What came of a generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Tokens it started from.
    pub prompt_ids: Vec<u32>,
    /// Tokens it made, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Text of those, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt that were in the cache from before.
    pub cached_tokens: usize,
    /// Draft tokens that went through the model.
    pub drafted_tokens: usize,
    /// Draft tokens that were the ones chosen.
    pub accepted_tokens: usize,
    /// Speed over the tokens of the prompt that were not in the cache from before.
    pub prefill_tokens_per_s: f64,
    /// Speed over the tokens after the first, which comes out of the prefill; 0 when there are none. Time that the caller
    /// spends on events does not count.
    pub decode_tokens_per_s: f64,
}

impl Host {
    /// Continues `prompt` and waits for the end. Events go to `on_event`, which can end the generation by breaking; what it has
    /// seen so far is then the outcome.
    ///
    /// # Errors
    /// As [`Host::submit`]; too little memory for the cache; what model and sampler report.
    pub fn generate(
        &self,
        prompt: &[u32],
        params: &GenerateParams,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Outcome, EngineError> {
        self.generate_with(prompt, params, None, on_event)
    }

    /// As [`Host::generate`], with a processor of logits: that of a grammar, say.
    ///
    /// # Errors
    /// As [`Host::generate`].
    pub fn generate_with(
        &self,
        prompt: &[u32],
        params: &GenerateParams,
        processor: Option<Box<dyn LogitsProcessor>>,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Outcome, EngineError> {
        let mut handle = self.submit(Request {
            prompt: prompt.to_vec(),
            params: params.clone(),
            processor,
            ..Request::default()
        })?;
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut end = (Ok(FinishReason::Cancelled), Usage::default());
        let mut wanted = true;
        while let Some(event) = handle.next() {
            let goes_on = wanted && on_event(&event).is_continue();
            match event {
                Event::Token {
                    id, text: piece, ..
                } if wanted => {
                    ids.push(id);
                    text += &piece;
                }
                Event::Finished {
                    text: rest,
                    result,
                    usage,
                    ..
                } => {
                    if wanted {
                        text += &rest;
                    }
                    end = (result, usage);
                    // To break changes nothing any more.
                    break;
                }
                _ => {}
            }
            if wanted && !goes_on {
                wanted = false;
                handle.cancel();
            }
        }
        let (result, usage) = end;
        // It may have come to its end before it was cancelled.
        let reason = result.map(|reason| {
            if wanted {
                reason
            } else {
                FinishReason::Cancelled
            }
        })?;
        Ok(Outcome::new(prompt.to_vec(), ids, text, reason, usage))
    }
}

impl Outcome {
    fn new(
        prompt_ids: Vec<u32>,
        ids: Vec<u32>,
        text: String,
        finish_reason: FinishReason,
        usage: Usage,
    ) -> Self {
        let computed = usage.prompt_tokens - usage.cached_tokens;
        Self {
            prompt_ids,
            ids,
            text,
            finish_reason,
            cached_tokens: usage.cached_tokens,
            drafted_tokens: usage.drafted,
            accepted_tokens: usage.accepted,
            prefill_tokens_per_s: rate(computed, usage.prefill_time),
            decode_tokens_per_s: rate(usage.tokens.saturating_sub(1), usage.decode_time),
        }
    }
}

/// Tokens per second; 0 for none.
fn rate(tokens: usize, time: Duration) -> f64 {
    match tokens {
        0 => 0.0,
        // A clock too coarse to see the time must not make it infinite: JSON has no such number.
        n => n as f64 / time.as_secs_f64().max(1e-9),
    }
}
