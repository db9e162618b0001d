//! Checks requests before they join an engine's queue. Any thread may do it.

use std::sync::Arc;

use sparamx_model::{Config, ModelError};

use super::active::Active;
use super::api::{GenerateParams, MAX_ALTERNATIVES, Request};
use crate::{EngineError, PagePool, Tokenizer};

/// What an engine can run.
#[derive(Clone)]
pub(crate) struct Intake {
    pub tokenizer: Arc<Tokenizer>,
    pub pool: PagePool,
    vocab_size: usize,
    /// Tokens of a request at most, as asked for.
    context: usize,
    /// Tokens of a request at most: `context`, or less if the pool does not hold it.
    room: usize,
    step_tokens: usize,
    speculates: bool,
}

impl Intake {
    /// For requests of up to `context` tokens, in steps of about `step_tokens`.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        pool: PagePool,
        config: &Config,
        (context, step_tokens): (usize, usize),
        speculates: bool,
    ) -> Self {
        Self {
            room: most_tokens(&pool, context, step_tokens),
            vocab_size: config.vocab_size,
            tokenizer,
            pool,
            context,
            step_tokens,
            speculates,
        }
    }

    /// Tokens that a request may have, prompt and text together.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Makes a request ready to join the queue.
    ///
    /// # Errors
    /// As [`Engine::submit`](super::Engine::submit).
    pub fn take(&self, request: Request) -> Result<Active, EngineError> {
        self.check(&request)?;
        Active::new(request, self.room, self.speculates, &self.tokenizer)
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let Request {
            prompt,
            params,
            logprobs,
            prompt_logprobs,
            ..
        } = request;
        let vocab_size = self.vocab_size;
        if params.max_tokens == 0 && prompt_logprobs.is_none() {
            let allowed = "1 or more, and 0 if prompt_logprobs are asked for";
            return Err(EngineError::parameter("max_tokens", 0, allowed));
        }
        self.check_ids(params)?;
        for (name, count) in [("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)] {
            if let Some(count) = *count
                && count > MAX_ALTERNATIVES
            {
                let allowed = format!("0 to {MAX_ALTERNATIVES}");
                return Err(EngineError::parameter(name, count, allowed));
            }
        }
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { token, vocab_size }.into());
        }
        let tokens = prompt.len() + usize::from(params.max_tokens > 0);
        if tokens > self.context {
            return Err(EngineError::PromptTooLong {
                prompt: prompt.len(),
                context: self.context,
            });
        }
        if tokens > self.room {
            let usage = self.pool.usage();
            return Err(EngineError::PoolFull {
                needed_bytes: self.pool.sequence_bytes(tokens, self.step_tokens),
                free_bytes: usage.budget_bytes - usage.in_use_bytes,
                budget_bytes: usage.budget_bytes,
            });
        }
        Ok(())
    }
}

impl Intake {
    /// Ids that the model does not know, and bounds that contradict each other.
    fn check_ids(&self, params: &GenerateParams) -> Result<(), EngineError> {
        let biased = params.sampling.logit_bias.iter();
        let stops = params.stop_token_ids.iter();
        for (name, id) in biased
            .map(|(id, _)| ("logit_bias", id))
            .chain(stops.map(|id| ("stop_token_ids", id)))
        {
            if *id as usize >= self.vocab_size {
                let allowed = format!("an id below {}, the model's vocabulary", self.vocab_size);
                return Err(EngineError::parameter(name, id, allowed));
            }
        }
        if params.min_tokens > params.max_tokens {
            let allowed = format!("0 to max_tokens, which is {}", params.max_tokens);
            let least = params.min_tokens;
            return Err(EngineError::parameter("min_tokens", least, allowed));
        }
        Ok(())
    }
}

/// The most tokens, up to `context`, of a sequence that the pool holds.
fn most_tokens(pool: &PagePool, context: usize, step_tokens: usize) -> usize {
    let budget = pool.usage().budget_bytes;
    let fits = |tokens: usize| pool.sequence_bytes(tokens, step_tokens) <= budget;
    let (mut low, mut high) = (0, context + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
