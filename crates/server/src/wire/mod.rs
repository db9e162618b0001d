//! Requests and answers as they are on the wire, an API a module.

pub mod openai;
