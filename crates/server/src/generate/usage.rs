//! What a request took, as the wire has it.

use std::time::Duration;

use sparamx_engine as engine;

use crate::wire::openai::common::{Timings, Usage};

/// Adds up what the texts of a request took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Total {
    prompt: usize,
    completion: usize,
    timings: Timings,
}

impl Total {
    /// For prompts of so many tokens together.
    pub fn new(prompt: usize) -> Self {
        Self {
            prompt,
            ..Self::default()
        }
    }

    /// Another token came.
    pub fn add_token(&mut self) {
        self.completion += 1;
    }

    /// A text ended; `ending` says that a token ended it that came by no event. `first`: it is the first of its prompt, which
    /// the others took from the cache.
    pub fn add(&mut self, usage: &engine::Usage, ending: bool, first: bool) {
        self.completion += usize::from(ending);
        let timings = &mut self.timings;
        if first {
            timings.cache_n += usage.cached_tokens;
            timings.prompt_n += usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        }
        timings.prompt_ms += milliseconds(usage.prefill_time);
        timings.predicted_n += usage.tokens;
        timings.predicted_ms += milliseconds(usage.decode_time);
        timings.draft_n += usage.drafted;
        timings.draft_n_accepted += usage.accepted;
    }

    /// So far.
    pub fn usage(&self) -> Usage {
        Usage::new(self.prompt, self.completion, self.timings.cache_n)
    }

    /// So far, with speeds.
    pub fn timings(&self) -> Timings {
        let timings = self.timings;
        Timings {
            prompt_per_second: rate(timings.prompt_n, timings.prompt_ms),
            predicted_per_second: rate(timings.predicted_n.saturating_sub(1), timings.predicted_ms),
            ..timings
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Tokens a second; 0 where there was no time.
fn rate(tokens: usize, time_ms: f64) -> f64 {
    if time_ms > 0.0 {
        tokens as f64 * 1e3 / time_ms
    } else {
        0.0
    }
}
