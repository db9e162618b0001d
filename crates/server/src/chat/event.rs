//! What happens to a chat, in no API's form.

use sparamx_engine::{FinishReason, StoppedBy};

use crate::error::ApiError;
use crate::wire::openai::chat::ChatLogprob;

/// What happens to the texts of a chat, in order. `index` names the text.
#[derive(Debug)]
pub enum ChatEvent {
    /// More of the answer. `text` is empty where tokens of something else have log probabilities.
    Content {
        /// The text.
        index: usize,
        /// What is new.
        text: String,
        /// The log probabilities of new tokens, if asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// More of what the model thinks before it answers.
    Reasoning {
        /// The text.
        index: usize,
        /// What is new.
        text: String,
    },
    /// A call of a tool begins.
    ToolCall {
        /// The text.
        index: usize,
        /// Which of its calls, from 0.
        call: usize,
        /// The name of the call.
        id: String,
        /// The name of the tool.
        name: String,
    },
    /// More of the arguments of a call, which are the text of a JSON object.
    ToolArguments {
        /// The text.
        index: usize,
        /// Which of its calls.
        call: usize,
        /// What is new.
        text: String,
    },
    /// A text ends.
    Finished {
        /// The text.
        index: usize,
        /// Why.
        reason: Finish,
        /// What ended it.
        stopped_by: Option<StoppedBy>,
    },
    /// The chat ends, and not well.
    Failed(ApiError),
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string or token did.
    Stop,
    /// As many tokens as were asked for, or as fit in the context.
    Length,
    /// The model waits for what its tools say.
    ToolCalls,
}

impl Finish {
    /// OpenAI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl TryFrom<FinishReason> for Finish {
    type Error = ApiError;

    /// 503 for a text that the server ended: its client is there, or nobody would ask.
    fn try_from(reason: FinishReason) -> Result<Self, ApiError> {
        match reason {
            FinishReason::Stop => Ok(Self::Stop),
            FinishReason::Length | FinishReason::Context => Ok(Self::Length),
            FinishReason::Cancelled => {
                let message = "the server stopped before the text ended";
                Err(ApiError::unavailable(message))
            }
        }
    }
}

impl ChatEvent {
    /// The text it belongs to.
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Content { index, .. }
            | Self::Reasoning { index, .. }
            | Self::ToolCall { index, .. }
            | Self::ToolArguments { index, .. }
            | Self::Finished { index, .. } => Some(*index),
            Self::Failed(_) => None,
        }
    }
    /// Takes in an event that goes on with this one; gives back any other.
    pub fn join(&mut self, more: ChatEvent) -> Option<ChatEvent> {
        match (self, more) {
            (
                Self::Content { text, logprobs, .. },
                Self::Content {
                    text: more,
                    logprobs: new,
                    ..
                },
            ) => {
                text.push_str(&more);
                logprobs.extend(new);
            }
            (Self::Reasoning { text, .. }, Self::Reasoning { text: more, .. }) => {
                text.push_str(&more);
            }
            (
                Self::ToolArguments { text, call, .. },
                Self::ToolArguments {
                    text: more,
                    call: same,
                    ..
                },
            ) if *call == same => text.push_str(&more),
            (_, other) => return Some(other),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_the_server_ended_is_no_answer() {
        let error = Finish::try_from(FinishReason::Cancelled).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after), (503, Some(1)));
        assert_eq!(Finish::try_from(FinishReason::Context), Ok(Finish::Length));
    }
}
