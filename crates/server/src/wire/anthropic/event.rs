//! Events of an answer that is streamed.

use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{AnswerBlock, MessageAnswer, MessageUsage};
use super::error::AnthropicErrorBody;

/// An event. Its type is also the name on the line `event:`. An event `ping` may come between any two.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// The first event.
    MessageStart {
        /// The answer, empty.
        message: MessageAnswer,
    },
    /// A block begins.
    ContentBlockStart {
        /// Its place.
        index: usize,
        /// The block, empty.
        content_block: AnswerBlock,
    },
    /// More of a block.
    ContentBlockDelta {
        /// Its place.
        index: usize,
        /// What is new.
        delta: BlockDelta,
    },
    /// A block ends.
    ContentBlockStop {
        /// Its place.
        index: usize,
    },
    /// The answer ends.
    MessageDelta {
        /// Why.
        delta: MessageDelta,
        /// What it took.
        usage: MessageUsage,
    },
    /// The last event.
    MessageStop,
    /// The last event of an answer that failed.
    Error {
        /// What is wrong.
        error: AnthropicErrorBody,
    },
}

impl MessageEvent {
    /// Its type.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Error { .. } => "error",
        }
    }
}

/// What is new in a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum BlockDelta {
    /// Of a text.
    #[serde(rename = "text_delta")]
    Text {
        /// The piece.
        text: String,
    },
    /// Of thinking.
    #[serde(rename = "thinking_delta")]
    Thinking {
        /// The piece.
        thinking: String,
    },
    /// Of the arguments of a call.
    #[serde(rename = "input_json_delta")]
    InputJson {
        /// A piece of a JSON object.
        partial_json: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageDelta {
    /// As in the answer.
    pub stop_reason: Option<&'static str>,
    /// As in the answer.
    pub stop_sequence: Option<String>,
}
