//! Requests, what happens to them, and the engine that runs them: what a front end sees.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::{EngineError, LogitsProcessor, PoolUsage, SamplingParams};

/// Most alternatives that [`Request::logprobs`] and [`Request::prompt_logprobs`] may ask for.
pub const MAX_ALTERNATIVES: usize = 20;

/// Runs any number of requests side by side. The front end submits requests and calls [`Engine::step`] as long as there is
/// work; all that happens to a request is reported by events.
pub trait Engine {
    /// Takes a request in. It waits until a step admits it, first come, first served.
    ///
    /// # Errors
    /// What can never be run: parameters outside their range, an empty prompt, ids that the model does not know,
    /// [`EngineError::PromptTooLong`], [`EngineError::PoolFull`] for more tokens than the pool holds.
    fn submit(&mut self, request: Request) -> Result<RequestId, EngineError>;

    /// Ends a request at once: its memory is free when this returns. The next step reports its [`Event::Finished`], and no
    /// further token. Nothing happens if it has ended.
    fn cancel(&mut self, id: RequestId);

    /// One pass of the model over what there is to do, and its events in the order of the requests' ids, each request's in the
    /// order of its text. Says whether there is work left. What goes wrong belongs to some request and ends that one.
    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool;

    /// What it has done so far.
    fn stats(&self) -> Stats;
}

/// Names a request of one engine. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// The request that an engine takes in after `taken` others.
    pub fn new(taken: u64) -> Self {
        Self(taken)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

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

impl GenerateParams {
    /// Tokens to generate at most where nobody says how many.
    pub const DEFAULT_TOKENS: usize = 256;
}

impl Default for GenerateParams {
    /// [`GenerateParams::DEFAULT_TOKENS`], default sampling, no stop strings.
    fn default() -> Self {
        Self {
            max_tokens: Self::DEFAULT_TOKENS,
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

/// A prompt to continue.
#[derive(Debug, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// What to generate. `max_tokens` may be 0 if `prompt_logprobs` are asked for.
    pub params: GenerateParams,
    /// Gives the log probability of each new token, and those of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same of the tokens of the prompt, from the second on. The whole prompt then goes through the model, whatever the
    /// cache has of it.
    pub prompt_logprobs: Option<usize>,
    /// Changes the logits before a token is chosen.
    pub processor: Option<Box<dyn LogitsProcessor>>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// More of the prompt is in the cache.
    Prompt {
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Log probabilities of the tokens after those reported before, if they are asked for. The first token has none.
        logprobs: Vec<TokenLogprob>,
    },
    /// A new token. The one that ends the text is not reported.
    Token {
        /// The token.
        id: u32,
        /// Whole characters that are certain now, often none: part of a character or of a stop string is held back.
        text: String,
        /// Its log probability, if asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The last event.
    Finished {
        /// Text that was held back.
        text: String,
        /// Why it ended.
        result: Result<FinishReason, EngineError>,
        /// What it took.
        usage: Usage,
    },
}

/// How likely the model took a token to be: the natural logarithm of its softmax, before temperature, penalty and filters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The most probable tokens with theirs, best first, the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were there from other requests, at first admission.
    pub cached_tokens: usize,
    /// New tokens.
    pub tokens: usize,
    /// Draft tokens that went through the model.
    pub drafted: usize,
    /// Draft tokens that were the ones chosen.
    pub accepted: usize,
    /// Times it had to give back its memory and start over.
    pub preemptions: usize,
    /// Time of the steps up to the first token, without the time it waited for admission.
    pub prefill_time: Duration,
    /// Time of the steps after that.
    pub decode_time: Duration,
}

/// What an engine has done, and is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Requests not admitted yet, or preempted.
    pub waiting: usize,
    /// Requests admitted.
    pub running: usize,
    /// Steps that ran the model.
    pub steps: u64,
    /// Tokens of prompts, and of preempted texts, that went through the model.
    pub prefill_tokens: u64,
    /// New tokens.
    pub tokens: u64,
    /// Draft tokens that went through the model.
    pub drafted: u64,
    /// Draft tokens that were the ones chosen.
    pub accepted: u64,
    /// Times a request had to give its memory back.
    pub preemptions: u64,
    /// Time in the model.
    pub forward_time: Duration,
    /// Time to choose tokens, and for all that is computed for each: text, log probabilities.
    pub sampling_time: Duration,
    /// Time of all steps, without what the caller does on events.
    pub step_time: Duration,
    /// Memory of keys and values.
    pub pool: PoolUsage,
}
