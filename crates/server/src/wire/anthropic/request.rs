//! What a client of the Messages API sends.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::wire::text_or::TextOr;

/// A request to `/v1/messages`, or to `count_tokens` without `max_tokens`. Fields that are not listed are ignored.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct MessagesRequest {
    /// Name of the model; the one that is served if left out.
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<InputMessage>,
    /// Tokens to generate at most. Required, but for counting. The context may end the text earlier.
    #[schema(minimum = 1)]
    pub max_tokens: Option<i64>,
    /// A system message before all others: a text, or blocks of type `text`.
    pub system: Option<TextOr<Block>>,
    /// Strings that end the text, 16 at most.
    pub stop_sequences: Option<Vec<String>>,
    /// 0 is greedy.
    #[schema(minimum = 0)]
    pub temperature: Option<f64>,
    /// Share of the probability that is sampled from.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// So many of the most probable tokens are sampled from.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Whether to answer by events.
    pub stream: Option<bool>,
    /// Whether the model is to think first, where its chat template can say so.
    pub thinking: Option<Thinking>,
    /// Functions that the model may call. Tools that a server would run are left out.
    pub tools: Option<Vec<MessageTool>>,
    /// Whether the model has to call one.
    pub tool_choice: Option<MessageToolChoice>,
    /// The form of the text.
    pub output_config: Option<OutputConfig>,
}

/// A turn of the conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// A text, or blocks.
    pub content: TextOr<Block>,
}

/// A block of a message, of the system message or of a result.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Block {
    /// `text`, `tool_use`, `tool_result`, `thinking` or `redacted_thinking`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of `text`.
    pub text: Option<String>,
    /// Of `thinking`.
    pub thinking: Option<String>,
    /// Of `tool_use`: what its result names.
    pub id: Option<String>,
    /// Of `tool_use`: the function.
    pub name: Option<String>,
    /// Of `tool_use`: the arguments.
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    /// Of `tool_result`: the call.
    pub tool_use_id: Option<String>,
    /// Of `tool_result`: a text, or blocks of type `text`.
    #[schema(no_recursion)]
    pub content: Option<TextOr<Block>>,
}

/// Whether the model is to think first.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Thinking {
    /// `enabled`, `adaptive`, `between_tools` or `disabled`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A tool that the client offers.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct MessageTool {
    /// `custom` if left out. Tools of other types are left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Name of the function.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub input_schema: Option<Value>,
    /// Whether arguments have to follow the schema.
    pub strict: Option<bool>,
}

/// Whether the model has to call a function.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct MessageToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of `tool`: its name.
    pub name: Option<String>,
    /// Whether an answer may hold one call only.
    pub disable_parallel_tool_use: Option<bool>,
}

/// The form of the text, and how much the model is to think.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct OutputConfig {
    /// Plain text if left out.
    pub format: Option<JsonFormat>,
    /// As `reasoning_effort` of chat completions.
    pub effort: Option<String>,
}

/// JSON by a schema.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct JsonFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}
