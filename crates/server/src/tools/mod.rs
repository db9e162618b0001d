//! Calls of tools and reasoning in the text of a model: how to force them, and how to find them. No HTTP here.
//!
//! A [`ToolFormat`] is how a family of models writes calls. [`forced_grammar`] makes a grammar of the tools of a request;
//! [`OutputParser`] splits a text as it comes into content, reasoning and calls.

mod call;
mod definition;
mod force;
mod format;
mod json;
mod parser;
mod piece;
mod python;
mod reasoning;
mod step;
mod typed;
mod xml;

#[cfg(test)]
mod tests;

pub use definition::{ToolDefinition, ToolMode};
pub use force::{Forcing, after_reasoning, check_kept, check_size, forced_grammar};
pub use format::ToolFormat;
pub use parser::{OutputParser, ParserConfig};
pub use piece::Piece;
pub use reasoning::Reasoning;
