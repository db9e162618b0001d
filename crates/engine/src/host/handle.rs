//! Requests that a host runs, seen by those that submitted them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::shared::Shared;
use crate::EngineError;
use crate::batch::{Event, Usage};

/// Cancels the requests of a submission when it is dropped. Those that wait end at once; for those that run, the step in
/// progress ends first. Each gets its last event unless it had it.
pub struct Cancel {
    shared: Arc<Shared>,
    numbers: Range<u64>,
}

impl Cancel {
    pub(super) fn new(shared: &Arc<Shared>, numbers: Range<u64>) -> Self {
        Self {
            shared: Arc::clone(shared),
            numbers,
        }
    }

    /// Cancels them now. Nothing happens to those that have ended.
    pub fn cancel(&self) {
        self.shared.cancel(self.numbers.clone());
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Yields the events of a request, up to its [`Event::Finished`]; waits for each. Dropping it cancels the request.
pub struct Handle {
    events: Receiver<Event>,
    cancel: Cancel,
    ended: bool,
}

impl Handle {
    pub(super) fn new(events: Receiver<Event>, cancel: Cancel) -> Self {
        Self {
            events,
            cancel,
            ended: false,
        }
    }

    /// Ends the request, before the next step if it runs. Events of earlier steps and the last event still come.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

impl Iterator for Handle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        // The engine's thread sends a last event whatever happens.
        let event = self.events.recv().unwrap_or_else(|_| Event::Finished {
            text: String::new(),
            result: Err(EngineError::Panicked {
                message: "there was no last event".to_owned(),
            }),
            stopped_by: None,
            ending: None,
            usage: Usage::default(),
        });
        self.ended = matches!(event, Event::Finished { .. });
        Some(event)
    }
}
