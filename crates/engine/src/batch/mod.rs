//! Requests side by side: continuous batching.
//!
//! [`api`] is what a front end sees. [`intake`] checks requests, [`active`] is one of them from there to its end. [`schedule`]
//! decides who runs, by a [`view`] of the requests and the [`pace`] of those that decode; [`engine`] brings them together with the
//! model. [`lookup`] finds draft tokens and [`speculate`] decides how many of them pay.

mod active;
mod api;
mod engine;
mod intake;
mod lookup;
mod pace;
mod schedule;
mod speculate;
mod view;

pub(crate) use active::Active;
pub use api::{
    Engine, Event, FinishReason, Finished, GenerateParams, MAX_ALTERNATIVES, Request, RequestId,
    Stats, StepReport, StoppedBy, TokenLogprob, Usage,
};
pub use engine::{BatchEngine, EngineOptions, Speculation};
pub(crate) use intake::Intake;
