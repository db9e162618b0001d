//! Tokenizer, sampling, KV cache and generation.

#![forbid(unsafe_code)]

mod chat;
mod error;
mod folder;
mod sampler;
mod stop;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use error::EngineError;
pub use sampler::{Sampler, SamplingParams};
pub use stop::{Passed, StopMatcher};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
