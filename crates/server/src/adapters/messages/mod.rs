//! `/v1/messages` over chat.

mod content;
mod request;
mod writer;

pub use request::{FIELDS, chat_request};
pub use writer::MessageWriter;

use axum::http::StatusCode;

use crate::error::ApiError;
use crate::wire::anthropic::AnthropicErrorBody;

/// An error in Anthropic's form.
pub fn error_body(error: &ApiError) -> AnthropicErrorBody {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let message = error.message.clone();
    AnthropicErrorBody { kind, message }
}
