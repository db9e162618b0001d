//! Text from one request at a time.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use sparamx_kernels::Runtime;
use sparamx_model::Model;

use crate::{
    BatchEngine, Engine, EngineError, EngineOptions, Event, Request, SamplingParams, Stats,
    Tokenizer, Usage,
};

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateParams {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: SamplingParams,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for GenerateParams {
    /// 256 tokens, default sampling, no stop strings.
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended the text, or a stop string came.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// Prompt and text fill the context.
    Context,
    /// The caller had enough.
    Cancelled,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        })
    }
}

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
    /// Tokens that were guessed and run through the model.
    pub drafted_tokens: usize,
    /// Guesses that were right.
    pub accepted_tokens: usize,
    /// Speed over the tokens of the prompt that were not in the cache from before.
    pub prefill_tokens_per_s: f64,
    /// Speed over the tokens after the first, which comes out of the prefill; 0 when there are none. Time that the caller
    /// spends on events does not count.
    pub decode_tokens_per_s: f64,
}

/// An engine for one request at a time. Generations that begin alike, such as the turns of a conversation, find what they
/// have in common in the cache.
pub struct Session<'a>(BatchEngine<'a>);

impl<'a> Session<'a> {
    /// A session for sequences of up to `options.context` tokens. Memory is taken as a sequence grows.
    ///
    /// # Errors
    /// As [`BatchEngine::new`].
    pub fn new(
        rt: &'a Runtime,
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        BatchEngine::new(rt, model, tokenizer, options).map(Self)
    }

    /// Tokens that fit, prompt and text together.
    pub fn context(&self) -> usize {
        self.0.context()
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Continues `prompt`. Events go to `on_event`, which can end the generation by breaking; the text so far is then the
    /// outcome.
    ///
    /// # Errors
    /// As [`Engine::submit`]; too little memory for the cache; what model and sampler report.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerateParams,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Outcome, EngineError> {
        let id = self.0.submit(Request {
            prompt: prompt.to_vec(),
            params: params.clone(),
            ..Request::default()
        })?;
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut end = None;
        let mut wanted = true;
        while end.is_none() {
            let engine = &mut self.0;
            engine.step(&mut |_, event| {
                // The last event changes nothing any more, and who has had enough hears nothing more.
                let last = matches!(event, Event::Finished { .. });
                if wanted {
                    wanted = on_event(&event).is_continue() || last;
                }
                match event {
                    Event::Prompt { .. } => {}
                    Event::Token {
                        id, text: piece, ..
                    } => {
                        ids.push(id);
                        text += &piece;
                    }
                    Event::Finished {
                        text: rest,
                        result,
                        usage,
                    } => {
                        text += &rest;
                        end = Some((result, usage));
                    }
                }
            });
            if !wanted {
                self.0.cancel(id);
            }
        }
        let (result, usage) = end.unwrap_or((Ok(FinishReason::Cancelled), Usage::default()));
        let computed = usage.prompt_tokens - usage.cached_tokens;
        Ok(Outcome {
            prompt_ids: prompt.to_vec(),
            prefill_tokens_per_s: rate(computed, usage.prefill_time),
            decode_tokens_per_s: rate(ids.len().saturating_sub(1), usage.decode_time),
            ids,
            text,
            finish_reason: match result? {
                // It may have come to its end in the same step.
                _ if !wanted => FinishReason::Cancelled,
                reason => reason,
            },
            cached_tokens: usage.cached_tokens,
            drafted_tokens: usage.drafted,
            accepted_tokens: usage.accepted,
        })
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
