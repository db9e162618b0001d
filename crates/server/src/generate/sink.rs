//! Takes the events of one text on the engine's thread: into the queue of its HTTP request and into the metrics.

use std::sync::Arc;
use std::time::Instant;

use sparamx_engine::{EngineError, Event, FinishReason, Sink};

use super::queue::Sender;
use crate::extract::{Caller, Tally};
use crate::metrics::{FinishedReason, Metrics};

/// Where the events of one text go.
pub struct Feed {
    index: usize,
    events: Sender,
    tally: Arc<Tally>,
    metrics: Metrics,
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Feed {
    /// Of the text `index` of a request by `caller`.
    pub fn new(index: usize, events: Sender, caller: &Caller, metrics: &Metrics) -> Self {
        Self {
            index,
            events,
            tally: Arc::clone(&caller.tally),
            metrics: metrics.clone(),
            submitted: Instant::now(),
            last_token: None,
        }
    }

    /// What the engine calls.
    pub fn sink(mut self) -> Sink {
        Box::new(move |event| self.take(event))
    }

    fn take(&mut self, event: Event) {
        let urgent = match &event {
            Event::Prompt { logprobs, .. } if logprobs.is_empty() => return,
            Event::Prompt { .. } => true,
            Event::Token { .. } => self.token(),
            Event::Finished { usage, result, .. } => {
                self.tally.add_generated(usage.tokens);
                self.metrics
                    .finished(reason(result), usage, self.submitted.elapsed());
                true
            }
        };
        self.events.send((self.index, event), urgent);
    }

    /// Counts a token; whether it is the first one.
    fn token(&mut self) -> bool {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => {
                self.metrics.first_token(now - self.submitted);
                true
            }
            Some(last) => {
                self.metrics.next_token(now - last);
                false
            }
        }
    }
}

/// vLLM's word for how a text ended.
fn reason(result: &Result<FinishReason, EngineError>) -> FinishedReason {
    match result {
        Ok(FinishReason::Stop) => FinishedReason::Stop,
        Ok(FinishReason::Length | FinishReason::Context) => FinishedReason::Length,
        Ok(FinishReason::Cancelled) => FinishedReason::Abort,
        Err(_) => FinishedReason::Error,
    }
}
