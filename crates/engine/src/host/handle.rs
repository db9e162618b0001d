//! A request that a host runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use super::Shared;
use crate::batch::{Event, Usage};

/// Yields the events of a request, up to its [`Event::Finished`]; waits for each. Dropping it cancels the request.
pub struct Handle {
    events: Receiver<Event>,
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Handle {
    pub(super) fn new(
        events: Receiver<Event>,
        cancelled: Arc<AtomicBool>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            events,
            cancelled,
            shared,
            ended: false,
        }
    }

    /// Ends the request before the next step. Events of earlier steps and the last event still come.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Iterator for Handle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| Event::Finished {
            text: String::new(),
            result: Err(self.shared.failure()),
            usage: Usage::default(),
        });
        self.ended = matches!(event, Event::Finished { .. });
        Some(event)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}
