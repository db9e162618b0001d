//! OpenAI's API on the wire, with the fields that vLLM adds.

pub mod chat;
pub mod common;
pub mod completions;

pub use chat::ChatRequest;
pub use completions::CompletionRequest;
