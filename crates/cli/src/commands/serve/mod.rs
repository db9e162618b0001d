//! `serve`: a model for programs, over HTTP.

mod keys;
mod log;
mod options;
mod server;

pub use options::ServeArgs;
pub use server::run;
