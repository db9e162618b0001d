//! Requests side by side: continuous batching.
//!
//! [`api`] is what a front end sees. [`schedule`] decides who runs, [`active`] is one request, [`engine`] brings them together
//! with the model. [`lookup`] guesses at tokens and [`speculate`] how many guesses pay.

mod active;
mod api;
mod engine;
mod lookup;
mod schedule;
mod speculate;

pub use api::{Engine, Event, MAX_ALTERNATIVES, Request, RequestId, Stats, TokenLogprob, Usage};
pub use engine::{BatchEngine, EngineOptions, Speculation};
