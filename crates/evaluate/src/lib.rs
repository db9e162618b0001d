//! How good a model is: [`perplexity()`] measures by a text, [`evaluate`] by multiple-choice questions.

#![forbid(unsafe_code)]

mod error;
mod perplexity;
mod questions;
mod scorer;

pub use error::EvaluateError;
pub use perplexity::{Perplexity, Prediction, Scoring, perplexity};
pub use questions::{Answer, Choice, Evaluation, Question, Questions, Task, evaluate};
