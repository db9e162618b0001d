//! Takes the events of one text on the engine's thread: into the queue of its HTTP request and into the metrics.

use std::sync::Arc;
use std::time::Instant;

use sparamx_engine::{EngineError, Event, FinishReason, Sink};
use tokio::sync::mpsc::UnboundedSender;

use crate::extract::{Caller, Tally};
use crate::metrics::{FinishedReason, Metrics};

/// Where the events of one text go.
pub struct Feed {
    index: usize,
    events: UnboundedSender<(usize, Event)>,
    tally: Arc<Tally>,
    metrics: Metrics,
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Feed {
    /// Of the text `index` of a request by `caller`.
    pub fn new(
        index: usize,
        events: UnboundedSender<(usize, Event)>,
        caller: &Caller,
        metrics: &Metrics,
    ) -> Self {
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
        match &event {
            Event::Prompt { logprobs, .. } if logprobs.is_empty() => return,
            Event::Prompt { .. } => {}
            Event::Token { .. } => self.token(),
            Event::Finished { usage, result, .. } => {
                self.tally.add_generated(usage.tokens);
                self.metrics
                    .finished(reason(result), usage, self.submitted.elapsed());
            }
        }
        // Nobody reads the events of a client that is gone.
        let _ = self.events.send((self.index, event));
    }

    fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.metrics.first_token(now - self.submitted),
            Some(last) => self.metrics.next_token(now - last),
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
