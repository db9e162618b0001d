//! Tokenizer, sampling, KV cache and generation.

#![forbid(unsafe_code)]

mod chat;
mod error;
mod folder;
mod generate;
mod kv;
mod perplexity;
mod sampler;
mod stop;
mod stream;
mod tokenizer;
mod writer;

pub use chat::{ChatTemplate, Message};
pub use error::EngineError;
pub use generate::{Event, FinishReason, GenerateParams, Outcome, Session};
pub use kv::{PagePool, PagedCache};
pub use perplexity::{Perplexity, perplexity};
pub use sampler::{Sampler, SamplingParams};
pub use stop::{Passed, StopMatcher};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
