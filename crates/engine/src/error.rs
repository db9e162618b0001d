//! What can be wrong with a tokenizer, a template, a request or a sequence.

use std::fmt;
use std::path::PathBuf;

use sparamx_format::BothEnds;
use sparamx_kernels::KernelError;
use sparamx_model::ModelError;

/// Errors of this crate. Every message names the file or the field, and where there is one the way out.
#[derive(Debug)]
pub enum EngineError {
    /// A file cannot be read.
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file of the model's folder is not the JSON it should be.
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, or what is in the file's place.
        error: String,
    },
    /// A folder has no `tokenizer.json`.
    NoTokenizer {
        /// The folder.
        dir: PathBuf,
    },
    /// `tokenizer.json` is not one that the tokenizers crate accepts.
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizers crate said.
        error: String,
    },
    /// A text has a token that the model has no row for.
    Vocabulary {
        /// Its id.
        id: u32,
        /// The token.
        token: String,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// The tokenizers crate failed on a text or on ids.
    Coding {
        /// What it said.
        error: String,
    },
    /// A chat template has a syntax error, failed while it ran, or refused the conversation.
    Template {
        /// The file it came from.
        path: PathBuf,
        /// The line in the template, counted from 1; none when the template engine does not say.
        line: Option<usize>,
        /// What the template engine, or the template itself, said.
        error: String,
    },
    /// A grammar that cannot be followed.
    Grammar {
        /// What is wrong with it: the keyword that cannot be kept, the place of a syntax error, the limit.
        error: String,
    },
    /// A parameter is outside what it may be.
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A logit is NaN or plus infinity, so that no probabilities follow from the row.
    Logit {
        /// The token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is minus infinity: no token is possible.
    NoToken,
    /// A prompt without a token, for a tokenizer without a BOS token.
    EmptyPrompt,
    /// A prompt that leaves no room for a single new token.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit in the context.
        context: usize,
    },
    /// A text so long that it is certain to leave no room for a single new token.
    TextTooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Tokens that fit in the context.
        context: usize,
    },
    /// The system has too little memory for more pages of the KV cache.
    CacheMemory {
        /// Bytes wanted.
        needed_bytes: u64,
        /// Bytes to be had.
        available_bytes: u64,
    },
    /// The budget of the KV cache has too little left for more pages.
    PoolFull {
        /// Bytes wanted.
        needed_bytes: u64,
        /// Bytes that no sequence holds.
        free_bytes: u64,
        /// Bytes of the budget.
        budget_bytes: u64,
    },
    /// As many requests as a host takes at a time.
    Busy {
        /// How many that is.
        requests: usize,
    },
    /// More requests at once than a host takes at a time.
    TooMany {
        /// How many they are.
        requests: usize,
        /// How many a host takes.
        most: usize,
    },
    /// Work on a template or a grammar takes longer than it may, or the system gives no thread for it.
    Overload {
        /// What takes how long.
        error: String,
    },
    /// The host takes no more requests: it is about to end.
    Draining,
    /// The engine's thread ended by a panic, which is a fault of ours.
    Panicked {
        /// What it said.
        message: String,
    },
    /// The model refused.
    Model(ModelError),
    /// A kernel refused its operands.
    Kernel(KernelError),
}

impl EngineError {
    /// The same for `more` bytes, which were to be had and are wanted too.
    pub(crate) fn with_bytes(self, more: u64) -> Self {
        match self {
            Self::CacheMemory {
                needed_bytes,
                available_bytes,
            } => Self::CacheMemory {
                needed_bytes: needed_bytes + more,
                available_bytes: available_bytes + more,
            },
            Self::PoolFull {
                needed_bytes,
                free_bytes,
                budget_bytes,
            } => Self::PoolFull {
                needed_bytes: needed_bytes + more,
                free_bytes: free_bytes + more,
                budget_bytes,
            },
            other => other,
        }
    }

    pub(crate) fn parameter(
        name: &'static str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Parameter {
            name,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    pub(crate) fn coding(error: tokenizers::Error) -> Self {
        Self::Coding {
            error: error.to_string(),
        }
    }
}

impl From<ModelError> for EngineError {
    fn from(e: ModelError) -> Self {
        Self::Model(e)
    }
}

impl From<KernelError> for EngineError {
    fn from(e: KernelError) -> Self {
        Self::Kernel(e)
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Json { path, error } => write!(f, "{}: {}", path.display(), BothEnds(error)),
            Self::NoTokenizer { dir } => write!(
                f,
                "{}: there is no tokenizer.json: take it from where the weights come from, or make it from \
                 tokenizer.model with the `convert_slow_tokenizer` of Transformers",
                dir.display()
            ),
            Self::Tokenizer { path, error } => {
                write!(
                    f,
                    "{}: not a tokenizer: {}",
                    path.display(),
                    BothEnds(error)
                )
            }
            Self::Template { path, line, error } => match line {
                Some(line) => write!(
                    f,
                    "{}, line {line} of the template: {}",
                    path.display(),
                    BothEnds(error)
                ),
                None => write!(f, "{}: {}", path.display(), BothEnds(error)),
            },
            other => other.fmt_request(f),
        }
    }
}

impl EngineError {
    /// Messages about a request or a sequence rather than a file.
    fn fmt_request(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coding { error } => {
                write!(f, "the tokenizer fails on this text: {}", BothEnds(error))
            }
            Self::Vocabulary {
                id,
                token,
                vocab_size,
            } => write!(
                f,
                "the text has the token '{}' with id {id}, and the model has ids below {vocab_size} only: leave it out, or \
                 take the tokenizer that belongs to the model",
                BothEnds(token)
            ),
            Self::Parameter {
                name,
                value,
                allowed,
            } => write!(f, "{name} is {}, allowed is {allowed}", BothEnds(value)),
            Self::Logit { id, value } => write!(
                f,
                "the logit of token {id} is {value}: the weights are damaged or their values too large"
            ),
            Self::Grammar { error } => write!(f, "the grammar: {}", BothEnds(error)),
            Self::NoToken => write!(f, "every logit is minus infinity: no token is possible"),
            Self::EmptyPrompt => write!(
                f,
                "the prompt is empty and the tokenizer has no BOS token to start from: give a prompt"
            ),
            Self::PromptTooLong { prompt, context } => write!(
                f,
                "the prompt has {prompt} tokens and the context {context}, of which one is for the answer: shorten the prompt"
            ),
            Self::TextTooLong { bytes, context } => write!(
                f,
                "the prompt has {bytes} bytes, more than fit in the context of {context} tokens: shorten the prompt"
            ),
            Self::Model(e) => write!(f, "{e}"),
            Self::Kernel(e) => write!(f, "{e}"),
            other => other.fmt_limit(f),
        }
    }

    /// Messages about memory and the engine.
    fn fmt_limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CacheMemory {
                needed_bytes,
                available_bytes,
            } => write!(
                f,
                "the KV cache needs {needed_bytes} bytes more and the system has {available_bytes}: \
                 choose a smaller context"
            ),
            Self::PoolFull {
                needed_bytes,
                free_bytes,
                budget_bytes,
            } => write!(
                f,
                "the KV cache needs {needed_bytes} bytes more and of its {budget_bytes} bytes {free_bytes} are left: \
                 choose a smaller context, fewer sequences at a time, or more memory for the cache"
            ),
            Self::Busy { requests } => write!(
                f,
                "{requests} requests run or wait, which is as many as are taken at a time: try again later"
            ),
            Self::TooMany { requests, most } => write!(
                f,
                "{requests} texts are asked for at once, allowed are at most {most}: n, or n for each prompt"
            ),
            Self::Overload { error } => write!(f, "{error}: try again later"),
            Self::Draining => write!(f, "no more requests are taken: it ends soon"),
            Self::Panicked { message } => {
                write!(f, "a fault of the engine ended it: {}", BothEnds(message))
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Model(e) => Some(e),
            Self::Kernel(e) => Some(e),
            _ => None,
        }
    }
}
