//! An HTTP server over the batch engine: OpenAI's API and what its clients expect around it.
//!
//! [`Server::start`] takes the address and answers "loading" at once; [`Server::ready`] gives it the model. Threads of its own
//! do the network's work, and the engine has another: they meet in [`App`], which every route gets.

#![forbid(unsafe_code)]

mod adapters;
mod app;
mod bodies;
mod chat;
mod completion;
#[cfg(test)]
mod damage;
mod error;
mod extract;
mod generate;
mod ids;
mod keys;
mod meta;
mod metrics;
mod net;
mod observe;
mod options;
mod routes;
mod security;
mod server;
mod sse;
mod state;
#[cfg(test)]
mod testing;
mod tools;
mod wire;
mod work;

pub use error::ApiError;
pub use meta::{Defaults, KvMeta, ModelMeta};
pub use options::{Limits, Listen, Log, ModelOptions, ServerOptions, Tls};
pub use server::{Server, StartError};
pub use state::{App, Served};
pub use tools::ToolFormat;
