//! One file per path.

pub mod chat_completions;
pub mod completions;
pub mod health;
pub mod models;
pub mod version;
