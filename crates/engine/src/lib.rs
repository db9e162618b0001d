//! Text from a model: tokenizer, chat template, sampling, KV cache and generation.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use sparamx_engine::{Event, GenerateParams, Host, HostOptions, Message};
//! # use sparamx_kernels::Runtime;
//!
//! # fn chat(runtime: Arc<Runtime>) -> Result<(), Box<dyn std::error::Error>> {
//! let dir = Path::new("a/folder/in/hugging/face/layout");
//! let host = Host::open(dir, runtime, HostOptions::default(), &mut |report| eprintln!("{report:?}"))?;
//! let tokenizer = &host.loaded().tokenizer;
//! let prompt = match &host.loaded().template {
//!     // The rendered template holds the special tokens already.
//!     Some(template) => tokenizer.encode(&template.render(&[Message::new("user", "Hi")], true)?, false)?,
//!     None => tokenizer.encode_prompt("Once upon a time")?,
//! };
//! let params = GenerateParams { sampling: host.loaded().defaults.params(), ..GenerateParams::default() };
//! let outcome = host.generate(&prompt, &params, &mut |event| {
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
//! Where things are: [`Host`] opens a model and runs requests on a thread of its own; [`BatchEngine`] is the engine it steps.
//! [`Tokenizer`] and [`StreamDecoder`] turn text into ids and back, the latter piece by piece and never
//! half a character. [`ChatTemplate`] makes a prompt of a conversation. [`Sampler`] chooses a token from logits;
//! [`StopMatcher`] ends a text at a string. [`PagedCache`] holds keys and values, in pages of a [`PagePool`].

#![forbid(unsafe_code)]

mod added;
mod apart;
mod batch;
mod chat;
mod defaults;
mod error;
mod folder;
mod foreign;
mod grammar;
mod host;
mod kv;
mod logprobs;
pub mod open;
mod room;
mod sampler;
mod stop;
mod stream;
mod token_bytes;
mod tokenizer;
mod writer;

pub use batch::{
    BatchEngine, Engine, EngineOptions, Event, FinishReason, Finished, GenerateParams,
    MAX_ALTERNATIVES, Request, RequestId, Speculation, Stats, StepReport, StoppedBy, TokenLogprob,
    Usage,
};
pub use chat::{ChatTemplate, Conversation, Message};
pub use defaults::SamplingDefaults;
pub use error::EngineError;
pub use foreign::panic_message;
pub use grammar::{Grammar, GrammarCompiler, GrammarSpec};
pub use host::{Cancel, Handle, Host, HostOptions, Outcome, Sink};
pub use kv::{KvOptions, KvShape, PagePool, PagedCache, PoolUsage, UNDO_TOKENS};
pub use logprobs::negative_log_likelihood;
pub use open::{Loaded, Opening};
pub use sampler::{LogitsProcessor, Sampler, SamplingParams};
pub use sparamx_kernels::attention::{PageDtype as KvPrecision, PruneRule as KvRule};
pub use stop::{Passed, StopMatcher};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
