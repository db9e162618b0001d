//! Text from one sequence: prompt, then token by token.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;
use sparamx_kernels::Runtime;
use sparamx_model::{Input, Model, Want, Workspace};

use crate::writer::TextWriter;
use crate::{EngineError, PagedCache, Sampler, SamplingParams, Tokenizer};

/// Tokens of a prompt that go through the model at a time: enough rows for the kernels to be at full speed, few enough that
/// buffers stay small and progress is seen.
const CHUNK_TOKENS: usize = 512;

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

/// What a generation reports while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many tokens of the prompt are in the cache.
    Prefill {
        /// Tokens done.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// More text: whole characters, at least one.
    Text(&'a str),
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
    /// Speed over the tokens of the prompt that were not in the cache from before.
    pub prefill_tokens_per_s: f64,
    /// Speed over the tokens after the first, which comes out of the prefill; 0 when there are none. Time that the caller
    /// spends on events does not count.
    pub decode_tokens_per_s: f64,
}

/// A model with the cache of one sequence. Generations that begin alike, such as the turns of a conversation, find what
/// they have in common in the cache.
pub struct Session<'a> {
    rt: &'a Runtime,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    cache: PagedCache,
    /// The tokens whose keys and values are in the cache.
    cached_ids: Vec<u32>,
    workspace: Workspace,
}

impl<'a> Session<'a> {
    /// A session for sequences of up to `context` tokens, prompt and text together; by default, as many as the model was
    /// made for. Memory is taken as a sequence grows.
    ///
    /// # Errors
    /// A context that is less than 2 tokens or more than the model was made for.
    pub fn new(
        rt: &'a Runtime,
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        context: Option<usize>,
    ) -> Result<Self, EngineError> {
        let longest = model.config().context_length();
        let context = context.unwrap_or(longest);
        if !(2..=longest).contains(&context) {
            let allowed = format!("2 to {longest}, what the model was made for");
            return Err(EngineError::parameter("context", context, allowed));
        }
        Ok(Self {
            rt,
            model,
            tokenizer,
            cache: PagedCache::new(model.config(), context)?,
            cached_ids: Vec::new(),
            workspace: Workspace::new(),
        })
    }

    /// Tokens that fit, prompt and text together.
    pub fn context(&self) -> usize {
        self.cache.capacity()
    }

    /// Continues `prompt`. Events go to `on_event`, which can end the generation by breaking; the text so far is then the
    /// outcome.
    ///
    /// # Errors
    /// Parameters outside their range, an empty prompt, [`EngineError::PromptTooLong`]; too little memory for the cache;
    /// what model and sampler report.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerateParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, EngineError> {
        self.check(prompt, params)?;
        let mut run = Run {
            sampler: Sampler::new(&params.sampling, prompt)?,
            text: TextWriter::new(self.tokenizer, &params.stop)?,
            ids: Vec::new(),
            max_tokens: params.max_tokens,
            room: self.context() - prompt.len(),
            decode_time: Duration::ZERO,
            on_event,
        };
        let begin = Instant::now();
        let reused = self.reuse(prompt);
        let first = self.prefill(prompt, &mut run)?;
        let prefill_time = begin.elapsed();
        let finish_reason = match first {
            Some(first) => self.decode(first, &mut run)?,
            None => FinishReason::Cancelled,
        };
        Ok(Outcome {
            prompt_ids: prompt.to_vec(),
            text: run.text.end(finish_reason, run.on_event)?,
            finish_reason,
            prefill_tokens_per_s: rate(prompt.len() - reused, prefill_time),
            decode_tokens_per_s: rate(run.ids.len().saturating_sub(1), run.decode_time),
            ids: run.ids,
        })
    }

    fn check(&self, prompt: &[u32], params: &GenerateParams) -> Result<(), EngineError> {
        if params.max_tokens == 0 {
            return Err(EngineError::parameter("max_tokens", 0, "1 or more"));
        }
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        match prompt.len() < self.context() {
            true => Ok(()),
            false => Err(EngineError::PromptTooLong {
                prompt: prompt.len(),
                context: self.context(),
            }),
        }
    }

    /// Cuts the cache to what it has in common with `prompt`, and says how many tokens that is. At least one is left to do,
    /// for its logits.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let common = prompt
            .iter()
            .zip(&self.cached_ids)
            .take(prompt.len() - 1)
            .take_while(|(a, b)| a == b)
            .count();
        self.cached_ids.truncate(common);
        self.cache.truncate(common);
        common
    }

    /// Runs the rest of the prompt and chooses the first token; none if the caller had enough.
    fn prefill(
        &mut self,
        prompt: &[u32],
        run: &mut Run<'_, '_>,
    ) -> Result<Option<u32>, EngineError> {
        let total = prompt.len();
        let mut first = None;
        while self.cached_ids.len() < total {
            let done = self.cached_ids.len();
            let end = total.min(done + CHUNK_TOKENS);
            let tokens = &prompt[done..end];
            if end < total {
                self.forward(tokens, Want::None)?;
            } else {
                first = Some(run.sampler.sample(self.forward(tokens, Want::Last)?)?);
            }
            if (run.on_event)(Event::Prefill { done: end, total }).is_break() {
                return Ok(None);
            }
        }
        Ok(first)
    }

    /// Token after token, until there is a reason to end.
    fn decode(&mut self, first: u32, run: &mut Run<'_, '_>) -> Result<FinishReason, EngineError> {
        let mut id = first;
        loop {
            if self.tokenizer.eos().contains(&id) {
                return Ok(FinishReason::Stop);
            }
            run.ids.push(id);
            if let Some(reason) = run.text.push(id, run.on_event)? {
                return Ok(reason);
            }
            if run.ids.len() == run.max_tokens {
                return Ok(FinishReason::Length);
            }
            if run.ids.len() == run.room {
                return Ok(FinishReason::Context);
            }
            let begin = Instant::now();
            id = run.sampler.sample(self.forward(&[id], Want::Last)?)?;
            run.decode_time += begin.elapsed();
        }
    }

    /// Runs tokens that follow those in the cache.
    fn forward(&mut self, tokens: &[u32], logits: Want) -> Result<&[f32], EngineError> {
        self.cache.reserve(tokens.len())?;
        let mut inputs = [Input {
            tokens,
            cache: &mut self.cache,
            logits,
        }];
        let logits = self
            .model
            .forward(self.rt, &mut inputs, &mut self.workspace)?;
        self.cached_ids.extend_from_slice(tokens);
        Ok(logits)
    }
}

/// A generation under way.
struct Run<'t, 'e> {
    sampler: Sampler,
    text: TextWriter<'t>,
    ids: Vec<u32>,
    max_tokens: usize,
    /// Tokens for which the context has room after the prompt.
    room: usize,
    decode_time: Duration,
    on_event: &'e mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
}

/// Tokens per second; 0 for none.
fn rate(tokens: usize, time: Duration) -> f64 {
    match tokens {
        0 => 0.0,
        // A clock too coarse to see the time must not make it infinite: JSON has no such number.
        n => n as f64 / time.as_secs_f64().max(1e-9),
    }
}
