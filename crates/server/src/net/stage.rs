//! Where a connection stands: what it is waited for, and until when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use tokio::time::Instant;

use crate::options::Limits;

/// What a connection, its requests and its watcher both know. A clone is the same.
#[derive(Clone)]
pub struct Stage(Arc<Mutex<State>>);

struct State {
    wait: Wait,
    /// No byte has come yet.
    unused: bool,
    /// Why the connection is refused, to be told once nothing else is written.
    refusal: Option<StatusCode>,
}

#[derive(Clone, Copy)]
enum Wait {
    /// The first byte of a request, since then.
    Idle(Instant),
    /// The end of its head, since its first byte.
    Head(Instant),
    /// A handler.
    Answer,
}

impl Stage {
    /// A new connection.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            wait: Wait::Idle(Instant::now()),
            unused: true,
            refusal: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came.
    pub fn received(&self) {
        let mut state = self.state();
        state.unused = false;
        if let Wait::Idle(_) = state.wait {
            state.wait = Wait::Head(Instant::now());
        }
    }

    /// The client took something of an answer: what it is waited for next, it is waited for from now on.
    pub fn taken(&self) {
        let mut state = self.state();
        if let Wait::Idle(_) = state.wait {
            state.wait = Wait::Idle(Instant::now());
        }
    }

    /// A request begins; it ends with the value.
    pub fn request(&self) -> Answering {
        self.state().wait = Wait::Answer;
        Answering(self.clone())
    }

    /// Until when the next byte must have come; none: it is not waited for.
    pub fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match self.state().wait {
            Wait::Idle(since) => Some(since + limits.idle),
            Wait::Head(since) => Some(since + limits.head),
            Wait::Answer => None,
        }
    }

    /// The deadline has passed.
    pub fn late(&self) {
        let mut state = self.state();
        if let Wait::Head(_) = state.wait {
            state.refusal = Some(StatusCode::REQUEST_TIMEOUT);
        }
    }

    /// What came is no request.
    pub fn refuse(&self, status: StatusCode) {
        self.state().refusal = Some(status);
    }

    /// Why the connection is refused.
    pub fn refusal(&self) -> Option<StatusCode> {
        self.state().refusal
    }

    /// Whether a handler is at work.
    pub fn answers(&self) -> bool {
        matches!(self.state().wait, Wait::Answer)
    }

    /// Whether not a byte has come.
    pub fn unused(&self) -> bool {
        self.state().unused
    }
}

/// A request, from its head to the end of its answer.
pub struct Answering(Stage);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state().wait = Wait::Idle(Instant::now());
    }
}
