//! The one place that gives work to the engine: requests go in, their events come out as a stream.
//!
//! The engine's thread puts events into a queue for each HTTP request, without bound, so that a slow reader holds up nobody;
//! `max_tokens` bounds what can be in it. The stream's value is also the guard: once it is dropped, which hyper does with a
//! handler or a body whose client is gone, the engine ends the requests before its next step.

pub mod format;
pub mod head;
pub mod logprobs;
pub mod params;
mod queue;
mod sink;
pub mod usage;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use serde_json::{Value, json};
use sparamx_engine::{
    Cancel, EngineError, Event, GenerateParams, Grammar, Request, StoppedBy, Usage,
};

use self::queue::{Indexed, Receiver, queue};
use self::sink::Feed;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::metrics::QUEUE_FULL;
use crate::state::{App, Served};

/// A prompt to go on with.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// What to generate.
    pub params: GenerateParams,
    /// See [`Request::logprobs`].
    pub logprobs: Option<usize>,
    /// See [`Request::prompt_logprobs`].
    pub prompt_logprobs: Option<usize>,
    /// Texts to generate, with seeds one after the other.
    pub n: usize,
    /// What each text must look like.
    pub grammar: Option<Grammar>,
    /// See [`Request::cache_salt`].
    pub cache_salt: Option<String>,
}

impl Job {
    fn request(&self, choice: usize, tenant: u64) -> Request {
        let mut params = self.params.clone();
        params.sampling.seed = params.sampling.seed.wrapping_add(choice as u64);
        Request {
            prompt: self.prompt.clone(),
            params,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            processor: self.grammar.as_ref().map(Grammar::processor),
            tenant,
            cache_salt: self.cache_salt.clone(),
        }
    }
}

/// Events of the requests of one HTTP request, each with the index of its text: those of the first prompt come first. It ends
/// after the last event of the last text. Dropping it cancels what has not ended.
pub struct Running {
    events: Receiver,
    next: VecDeque<Indexed>,
    /// Texts that have not ended.
    left: usize,
    _cancel: Cancel,
}

impl App {
    /// Starts the requests of `jobs`: all of them or none.
    ///
    /// # Errors
    /// As [`Host::submit_to`](sparamx_engine::Host::submit_to); the model is not there.
    pub fn start(&self, caller: &Caller, jobs: Vec<Job>) -> Result<Running, ApiError> {
        // A request that began before the server began to shut down is still answered.
        let served = self.model().map_or_else(|| self.served(), Ok)?;
        params::check_logprobs(&jobs)?;
        let texts = jobs.iter().map(|job| job.n).sum();
        // Each takes memory, which those that are refused do not need.
        refusals_counted(served, served.host.check(caller.tenant, texts))?;
        let (sender, events) = queue();
        let mut requests = Vec::new();
        for job in &jobs {
            for choice in 0..job.n {
                let feed = Feed::new(requests.len(), sender.clone(), caller, &served.metrics);
                requests.push((job.request(choice, caller.tenant), feed.sink()));
            }
        }
        let left = requests.len();
        let cancel = refusals_counted(served, served.host.submit_to(requests))?;
        caller.held.release();
        for job in &jobs {
            caller.tally.add_prompt(job.prompt.len());
            served.metrics.arrived(job.n, job.params.max_tokens);
        }
        Ok(Running {
            events,
            next: VecDeque::new(),
            left,
            _cancel: cancel,
        })
    }
}

/// What the engine says to requests; counts those that it has no room for.
fn refusals_counted<T>(served: &Served, taken: Result<T, EngineError>) -> Result<T, ApiError> {
    if let Err(EngineError::Busy { .. }) = taken {
        served.metrics.rejected(QUEUE_FULL);
    }
    match taken {
        // It had not begun: another server may take it.
        Err(EngineError::Panicked { .. }) => Err(ApiError::unavailable("the engine has ended")),
        taken => Ok(taken?),
    }
}

impl Stream for Running {
    type Item = Indexed;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        if this.next.is_empty() {
            match this.events.poll_take(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(events) => this.next = events.into(),
            }
        }
        let next = this.next.pop_front().unwrap_or_else(|| {
            this.left = 1;
            (0, lost())
        });
        if let (_, Event::Finished { .. }) = next {
            this.left -= 1;
        }
        Poll::Ready(Some(next))
    }
}

/// The last event of a text whose own never comes. The engine promises one, whatever happens.
fn lost() -> Event {
    Event::Finished {
        text: String::new(),
        result: Err(EngineError::Panicked {
            message: "there was no last event".to_owned(),
        }),
        stopped_by: None,
        ending: None,
        usage: Usage::default(),
    }
}

/// Whether a token ended the text that came by no event: the model's own end, or one of the request's.
pub fn ends_unseen(stopped_by: Option<&StoppedBy>, include_stop: bool) -> bool {
    !include_stop && matches!(stopped_by, Some(StoppedBy::Eos(_) | StoppedBy::Token(_)))
}

/// vLLM's `stop_reason`: the stop string or the id that ended the text; none for the model's own end.
pub fn stop_reason(stopped_by: Option<StoppedBy>) -> Option<Value> {
    match stopped_by? {
        StoppedBy::Eos(_) => None,
        StoppedBy::Token(id) => Some(json!(id)),
        StoppedBy::Text(text) => Some(json!(text)),
    }
}

#[cfg(test)]
mod tests;
