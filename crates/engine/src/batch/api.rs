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
    /// Tokens before which nothing ends the text: the ids that end it are not chosen, and a stop string counts only if it
    /// becomes complete later. A [`LogitsProcessor`] that leaves nothing but such ids has its way.
    pub min_tokens: usize,
    /// How to choose them.
    pub sampling: SamplingParams,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// What ended the text is part of it: the stop string, or the text of the token.
    pub include_stop: bool,
    /// Ids that end the text, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The model's own ids that end a text are tokens like any other.
    pub ignore_eos: bool,
    /// Special tokens are part of the text, by their names.
    pub show_special: bool,
    /// These are, if not all of them.
    pub shown_ids: Vec<u32>,
}

impl GenerateParams {
    /// Tokens to generate at most where nobody says how many.
    pub const DEFAULT_TOKENS: usize = 256;
}

impl Default for GenerateParams {
    /// [`GenerateParams::DEFAULT_TOKENS`], default sampling, nothing that ends the text but the model.
    fn default() -> Self {
        Self {
            max_tokens: Self::DEFAULT_TOKENS,
            min_tokens: 0,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            show_special: false,
            shown_ids: Vec::new(),
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended the text, or what the request says ends it came: see [`StoppedBy`].
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

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoppedBy {
    /// One of the model's own ids.
    Eos(u32),
    /// One of [`GenerateParams::stop_token_ids`].
    Token(u32),
    /// One of [`GenerateParams::stop`].
    Text(String),
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
    /// Whose it is. A host admits requests of all tenants in turn.
    pub tenant: u64,
    /// Pages of the prefix cache are shared among requests with the same salt only: who measures times learns nothing of the
    /// prompts of others.
    pub cache_salt: Option<String>,
}

/// What happens to a request, in order.
///
/// The texts of all events joined are the text. A token's text often comes with a later event: part of a character, and what
/// may become a stop string, is held back until it is certain. So a front end that has to say which tokens a piece of text
/// belongs to keeps the tokens since the last piece that was not empty: they and their log probabilities go with the next one.
/// What is held back at the end comes with [`Event::Finished`]; after a stop string that is nothing, and the tokens that were
/// kept made the stop string.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one comes once a request"
)]
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
    /// A new token. The one that ends the text is no event of its own.
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
        /// What ended the text; none unless the result is [`FinishReason::Stop`].
        stopped_by: Option<StoppedBy>,
        /// The log probability of the token that ended the text, if one did and they are asked for. It is not among those of
        /// [`Event::Token`].
        ending: Option<TokenLogprob>,
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
    pub logprob: f64,
    /// The most probable tokens with theirs, best first, the lower id first among equals.
    pub top: Vec<(u32, f64)>,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were there from other requests, at first admission.
    pub cached_tokens: usize,
    /// New tokens, without the one that ended the text.
    pub tokens: usize,
    /// Draft tokens that went through the model.
    pub drafted: usize,
    /// Draft tokens that were the ones chosen.
    pub accepted: usize,
    /// Times it had to give back its memory and start over.
    pub preemptions: usize,
    /// Time from submission to first admission, or to the end of a request that was never admitted.
    pub queue_time: Duration,
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
    /// Those of them that wait until the prompt that they share with another is in the cache.
    pub deferred: usize,
    /// Requests admitted.
    pub running: usize,
    /// Requests that have ended.
    pub finished: Finished,
    /// Steps that ran the model.
    pub steps: u64,
    /// Rows of those steps: tokens that went through the model, draft tokens included.
    pub rows: u64,
    /// Tokens of the prompts of all requests that were admitted, each counted once.
    pub prompt_tokens: u64,
    /// Those of them whose keys and values were there from other requests.
    pub cached_tokens: u64,
    /// Tokens of prompts, and of preempted texts, that went through the model.
    pub prefill_tokens: u64,
    /// New tokens.
    pub tokens: u64,
    /// Times a request took draft tokens in a step.
    pub drafts: u64,
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

/// How many requests ended, by how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// [`FinishReason::Stop`].
    pub stop: u64,
    /// [`FinishReason::Length`].
    pub length: u64,
    /// [`FinishReason::Context`].
    pub context: u64,
    /// [`FinishReason::Cancelled`].
    pub cancelled: u64,
    /// An error.
    pub error: u64,
}

impl Finished {
    /// Counts a request that ended.
    pub(crate) fn count(&mut self, result: &Result<FinishReason, EngineError>) {
        *match result {
            Ok(FinishReason::Stop) => &mut self.stop,
            Ok(FinishReason::Length) => &mut self.length,
            Ok(FinishReason::Context) => &mut self.context,
            Ok(FinishReason::Cancelled) => &mut self.cancelled,
            Err(_) => &mut self.error,
        } += 1;
    }
}

/// A step that ran the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepReport {
    /// Tokens that went through the model.
    pub rows: usize,
    /// Requests that they belong to.
    pub requests: usize,
    /// Time of the step, without what is done on events.
    pub time: Duration,
}
