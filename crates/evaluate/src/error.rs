//! What can be wrong with a text or a file of questions.

use std::fmt;
use std::path::PathBuf;

use sparamx_engine::EngineError;
use sparamx_format::BothEnds;

/// Errors of this crate.
#[derive(Debug)]
pub enum EvaluateError {
    /// A text with so few tokens that nothing can be scored.
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of the shortest text that has one to score.
        needed: usize,
    },
    /// A line of a file of questions is not a question.
    Question {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and what is expected.
        error: String,
    },
    /// A choice of a question cannot be scored.
    Choice {
        /// The question, counted from 1.
        question: usize,
        /// The choice, counted from 1.
        choice: usize,
        /// Why.
        error: &'static str,
    },
    /// A file cannot be read, a parameter is out of its range, or the model refused.
    Engine(EngineError),
}

impl From<EngineError> for EvaluateError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl fmt::Display for EvaluateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextTooShort { tokens, needed } => write!(
                f,
                "the text has {tokens} tokens and at least {needed} are needed: the first of a window are not scored"
            ),
            Self::Question { path, line, error } => {
                write!(f, "{}, line {line}: {}", path.display(), BothEnds(error))
            }
            Self::Choice {
                question,
                choice,
                error,
            } => write!(f, "question {question}, choice {choice}: {error}"),
            Self::Engine(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for EvaluateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Engine(error) => error.source(),
            _ => None,
        }
    }
}
