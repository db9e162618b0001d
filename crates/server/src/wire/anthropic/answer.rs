//! What the Messages API answers.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What the model wrote.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MessageAnswer {
    /// `msg_…`
    pub id: String,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Always `assistant`.
    pub role: &'static str,
    /// The model.
    pub model: String,
    /// Text, thinking and calls, in their order.
    pub content: Vec<AnswerBlock>,
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use` or `model_context_window_exceeded`; none before the end.
    pub stop_reason: Option<&'static str>,
    /// The stop sequence that ended the text.
    pub stop_sequence: Option<String>,
    /// What it took.
    pub usage: MessageUsage,
}

/// A block of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerBlock {
    /// Text for the user.
    Text {
        /// The text.
        text: String,
    },
    /// What the model thought before it answered.
    Thinking {
        /// The text.
        thinking: String,
        /// Always empty.
        signature: String,
    },
    /// A function to call.
    ToolUse {
        /// What its result has to name.
        id: String,
        /// The function.
        name: String,
        /// The arguments. Empty if they were cut.
        #[schema(value_type = Object)]
        input: Map<String, Value>,
    },
}

/// What an answer took, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageUsage {
    /// Of the prompt, without those of the prefix cache.
    pub input_tokens: usize,
    /// Always 0: writing to the prefix cache has no price.
    pub cache_creation_input_tokens: usize,
    /// Of the prompt, found in the prefix cache.
    pub cache_read_input_tokens: usize,
    /// New ones.
    pub output_tokens: usize,
}

/// The length of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct TokenCount {
    /// Its tokens.
    pub input_tokens: usize,
}
