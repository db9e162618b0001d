//! What the Responses API answers.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::wire::openai::chat::ChatLogprob;

use super::request::{Reasoning, ResponseTool, ResponseToolChoice, TextConfig};

/// A response, finished or on its way.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseObject {
    /// `resp_…`
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970, once it is complete.
    pub completed_at: Option<u64>,
    /// How far it is.
    pub status: ResponseStatus,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// What the model wrote.
    pub output: Vec<OutputItem>,
    /// What it took, at the end.
    pub usage: Option<ResponseUsage>,
    /// The model.
    pub model: String,
    /// Of the request.
    pub instructions: Option<String>,
    /// Of the request.
    pub max_output_tokens: Option<i64>,
    /// Of the request, or the default.
    pub temperature: f64,
    /// Of the request, or the default.
    pub top_p: f64,
    /// Of the request.
    pub presence_penalty: f64,
    /// Of the request.
    pub frequency_penalty: f64,
    /// Of the request.
    pub top_logprobs: i64,
    /// Of the request.
    pub parallel_tool_calls: bool,
    /// Of the request, or `auto`.
    pub tool_choice: ResponseToolChoice,
    /// The functions of the request.
    pub tools: Vec<ResponseTool>,
    /// Of the request.
    pub text: TextConfig,
    /// Of the request.
    pub reasoning: Reasoning,
    /// Of the request.
    pub metadata: BTreeMap<String, String>,
    /// Of the request.
    pub user: Option<String>,
    /// Always `disabled`.
    pub truncation: &'static str,
    /// Always false.
    pub store: bool,
    /// Always false.
    pub background: bool,
    /// Always null.
    pub previous_response_id: Option<String>,
    /// Always `default`.
    pub service_tier: &'static str,
}

/// How far a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// More is to come.
    InProgress,
    /// The model ended it.
    Completed,
    /// It was cut: see `incomplete_details`.
    Incomplete,
    /// See `error`.
    Failed,
}

/// Why a response failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResponseError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// Always `max_output_tokens`: as many tokens as were asked for, or as fit.
    pub reason: &'static str,
}

/// A piece of what the model wrote.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Text for the user.
    Message {
        /// `msg_…`
        id: String,
        /// How far it is.
        status: ItemStatus,
        /// Always `assistant`.
        role: &'static str,
        /// One part.
        content: Vec<OutputPart>,
    },
    /// A function to call.
    FunctionCall {
        /// `fc_…`
        id: String,
        /// How far it is.
        status: ItemStatus,
        /// What its result has to name.
        call_id: String,
        /// The function.
        name: String,
        /// A JSON object as text.
        arguments: String,
    },
    /// What the model thought before it answered.
    Reasoning {
        /// `rs_…`
        id: String,
        /// How far it is.
        status: ItemStatus,
        /// Always empty: the content is given out whole.
        summary: Vec<SummaryPart>,
        /// One part.
        content: Vec<ReasoningPart>,
        /// Always null.
        encrypted_content: Option<String>,
    },
}

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// More is to come.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut.
    Incomplete,
}

/// A part of a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename = "output_text")]
pub struct OutputPart {
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Annotation>,
    /// Of the tokens of the text, if asked for.
    pub logprobs: Vec<ChatLogprob>,
}

/// What a text refers to; there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Annotation {}

/// A part of reasoning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename = "reasoning_text")]
pub struct ReasoningPart {
    /// The text.
    pub text: String,
}

/// A summary of reasoning; there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename = "summary_text")]
pub struct SummaryPart {
    /// The text.
    pub text: String,
}

/// What a response took, in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Of the prompt.
    pub input_tokens: usize,
    /// Of the prompt.
    pub input_tokens_details: InputTokensDetails,
    /// New ones.
    pub output_tokens: usize,
    /// Of the new ones.
    pub output_tokens_details: OutputTokensDetails,
    /// Both.
    pub total_tokens: usize,
}

/// Tokens of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Those found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0: writing to the prefix cache has no price.
    pub cache_write_tokens: usize,
}

/// New tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Those of the reasoning, counted by tokenizing its text.
    pub reasoning_tokens: usize,
}
