//! One file per path.

pub mod chat_completions;
pub mod completions;
pub mod detokenize;
pub mod health;
pub mod messages;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod page;
pub mod responses;
pub mod tokenize;
pub mod tokenizer_info;
pub mod version;
