//! Requests and answers as they are on the wire, an API a module.

pub mod anthropic;
pub mod openai;
pub mod responses;
pub mod text_or;
