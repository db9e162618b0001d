//! The view of requests and their memory that the schedule works on.

use std::collections::BTreeMap;

use sparamx_model::KvCache;

use super::active::Active;
use super::api::RequestId;
use super::schedule::{Pending, Requests};
use crate::{EngineError, PagePool};

/// The requests of a step and what they hold of the pool.
pub(super) struct View<'e> {
    pub requests: &'e mut BTreeMap<RequestId, Active>,
    /// Those that were admitted, in this step too.
    pub running: Vec<RequestId>,
    pub pool: &'e PagePool,
    pub step_tokens: usize,
    pub most_logits: usize,
    /// Tokens of prompts beside requests that decode.
    pub beside: usize,
    pub preemptions: u64,
    /// Tokens of prompts that were admitted for the first time, and of those the ones that the cache had.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// The error of the last reservation that was refused.
    pub refusal: Option<EngineError>,
}

impl View<'_> {
    /// Bytes that a request needs beyond those it has, to get to its next token.
    fn needs(&self, request: &Active, has_bytes: u64) -> u64 {
        self.pool
            .sequence_bytes(request.len() + 1, self.step_tokens)
            .saturating_sub(has_bytes)
    }
}

impl Requests for View<'_> {
    fn admit(&mut self, id: RequestId, alone: bool) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let cache = self
            .pool
            .resume_salted(request.reusable(), request.cache_salt());
        // What the running requests still need is not free, though nobody has it yet.
        let promised: u64 = self
            .running
            .iter()
            .filter_map(|id| self.requests.get(id))
            .map(|other| self.needs(other, other.cache_bytes()))
            .sum();
        let usage = self.pool.usage();
        let free = usage.budget_bytes.saturating_sub(usage.in_use_bytes);
        if !alone && self.needs(request, cache.bytes()) + promised > free {
            return false;
        }
        if let Some(request) = self.requests.get_mut(&id) {
            let cached = cache.len();
            if request.admit(cache) {
                self.prompt_tokens += request.usage().prompt_tokens as u64;
                self.cached_tokens += cached as u64;
            }
        }
        self.running.push(id);
        true
    }

    fn pending(&self, id: RequestId) -> Pending {
        match self.requests.get(&id) {
            Some(request) => request.pending(self.most_logits),
            None => unreachable!("request {id} runs and is gone"),
        }
    }

    fn beside(&self) -> usize {
        self.beside
    }

    fn reserve(&mut self, id: RequestId, tokens: usize) -> bool {
        match self.requests.get_mut(&id).map(|r| r.reserve(tokens)) {
            Some(Err(error)) => {
                self.refusal = Some(error);
                false
            }
            _ => true,
        }
    }

    fn preempt(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.preempt();
        }
        self.running.retain(|&other| other != id);
        self.preemptions += 1;
    }
}
