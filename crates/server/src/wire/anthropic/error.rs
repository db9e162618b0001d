//! Errors in Anthropic's form.

use serde::Serialize;
use utoipa::ToSchema;

/// An answer or an event that says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename = "error")]
pub struct AnthropicError {
    /// What is wrong.
    pub error: AnthropicErrorBody,
    /// What the log calls the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AnthropicErrorBody {
    /// `invalid_request_error` and so on.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people.
    pub message: String,
}
