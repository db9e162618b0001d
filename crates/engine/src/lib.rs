//! Text from a model: tokenizer, chat template, sampling, KV cache and generation.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use sparamx_engine::{ChatTemplate, EngineOptions, Event, GenerateParams, Message, Session, Tokenizer};
//! # use sparamx_kernels::Runtime;
//! # use sparamx_model::Model;
//!
//! # fn chat(rt: &Runtime, model: &Model) -> Result<(), Box<dyn std::error::Error>> {
//! let dir = Path::new("a/folder/in/hugging/face/layout");
//! let tokenizer = Tokenizer::from_dir(dir, model.config().vocab_size)?;
//! let prompt = match ChatTemplate::from_dir(dir)? {
//!     // The rendered template holds the special tokens already.
//!     Some(template) => tokenizer.encode(&template.render(&[Message::new("user", "Hi")], true)?, false)?,
//!     None => tokenizer.encode_prompt("Once upon a time")?,
//! };
//! let mut session = Session::new(rt, model, &tokenizer, EngineOptions::default())?;
//! let outcome = session.generate(&prompt, &GenerateParams::default(), &mut |event| {
//!     if let Event::Token { text, .. } | Event::Finished { text, .. } = event {
//!         print!("{text}");
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n[{}: {:.1} tokens/s]", outcome.finish_reason, outcome.decode_tokens_per_s);
//! # Ok(())
//! # }
//! ```
//!
//! Where things are: [`Tokenizer`] and [`StreamDecoder`] turn text into ids and back, the latter piece by piece and never
//! half a character. [`ChatTemplate`] makes a prompt of a conversation. [`Sampler`] chooses a token from logits;
//! [`StopMatcher`] ends a text at a string. [`PagedCache`] holds keys and values, in pages
//! of a [`PagePool`]. [`Session`] brings them together for one
//! sequence at a time.

#![forbid(unsafe_code)]

mod added;
mod batch;
mod chat;
mod error;
mod folder;
mod foreign;
mod generate;
mod kv;
mod logprobs;
mod room;
mod sampler;
mod stop;
mod stream;
mod tokenizer;
mod writer;

pub use batch::{
    BatchEngine, Engine, EngineOptions, Event, MAX_ALTERNATIVES, Request, RequestId, Speculation,
    Stats, TokenLogprob, Usage,
};
pub use chat::{ChatTemplate, Message};
pub use error::{EngineError, OneLine};
pub use generate::{FinishReason, GenerateParams, Outcome, Session};
pub use kv::{KvOptions, KvShape, PagePool, PagedCache, PoolUsage, UNDO_TOKENS};
pub use logprobs::negative_log_likelihood;
pub use sampler::{Sampler, SamplingParams};
pub use sparamx_kernels::attention::{Precision as KvPrecision, PruneRule as KvRule};
pub use stop::{Passed, StopMatcher};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
