//! What a client is told when a request cannot be served.
//!
//! [`ApiError`] is the one type, and its `From<EngineError>` the one place where errors of the engine become statuses. It answers
//! in OpenAI's form; the value itself is an extension of the response, for those who speak another form and for the log.

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use sparamx_engine::EngineError;
use utoipa::ToSchema;

/// Characters of a value from a request that a message repeats.
pub const ECHO: usize = 200;
/// Characters of a whole message.
const MESSAGE: usize = 1000;
/// Seconds after which a client may try again.
const RETRY_S: u32 = 1;

/// An answer that says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`: what programs match on.
    pub code: Option<&'static str>,
    /// What is wrong and what would be right.
    pub message: String,
    /// The field that is wrong, as a path.
    pub param: Option<String>,
    /// Seconds after which the request may be sent again.
    pub retry_after: Option<u32>,
    /// What the log is told about a fault of this program, and the client is not.
    pub cause: Option<String>,
}

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "unavailable_error";

impl ApiError {
    /// Any other status than those below, with the type of a bad request.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: INVALID,
            code: None,
            message: cut(&message.into(), MESSAGE),
            param: None,
            retry_after: None,
            cause: None,
        }
    }

    fn coded(self, kind: &'static str, code: &'static str) -> Self {
        let code = Some(code);
        Self { kind, code, ..self }
    }

    fn after(self, seconds: u32) -> Self {
        let retry_after = Some(seconds);
        Self {
            retry_after,
            ..self
        }
    }

    /// 400: `param` is not what it may be.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(cut(&param.into(), ECHO)),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// 400: the request as a whole is not one.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a field that has a meaning, which this server does not offer.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).coded(INVALID, "unsupported_parameter")
    }

    /// 400: `prompt` tokens and `completion` more do not fit into `context`. Programs match the code, and the words.
    pub fn context_length(context: usize, prompt: usize, completion: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {} tokens ({prompt} in the messages, \
             {completion} in the completion). Please reduce the length of the messages or completion.",
            prompt.saturating_add(completion)
        );
        Self::malformed(message).coded(INVALID, "context_length_exceeded")
    }

    /// 400: a text of so many bytes is certain to have more tokens than the context.
    fn text_length(context: usize, bytes: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your messages have {bytes} bytes, which are more \
             tokens than that. Please reduce the length of the messages."
        );
        Self::malformed(message).coded(INVALID, "context_length_exceeded")
    }

    /// 401.
    pub fn key() -> Self {
        let message = "Incorrect API key provided: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'";
        Self::new(StatusCode::UNAUTHORIZED, message)
            .coded("authentication_error", "invalid_api_key")
    }

    /// 403: not from there.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self {
            kind: "permission_error",
            ..Self::new(StatusCode::FORBIDDEN, message)
        }
    }

    /// 404: no such path.
    pub fn no_path(path: &str) -> Self {
        let message = format!(
            "there is nothing at {}; /openapi.json lists the paths",
            cut(path, ECHO)
        );
        Self {
            kind: "not_found_error",
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    /// 404: a model that is not served.
    pub fn no_model(name: &str, served: &str) -> Self {
        let message = format!(
            "the model '{}' does not exist; '{served}' does, see /v1/models",
            cut(name, ECHO)
        );
        Self {
            param: Some("model".to_owned()),
            ..Self::new(StatusCode::NOT_FOUND, message).coded("not_found_error", "model_not_found")
        }
    }

    /// 408: a body that does not come.
    pub fn too_slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, message)
    }

    /// 413: a body of more than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        let message =
            format!("the body has more than {limit} bytes, which is the limit (--max-body)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 429: as many requests as are taken at a time.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            kind: "rate_limit_error",
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
        .after(RETRY_S)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: UNAVAILABLE,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
        .after(RETRY_S)
    }

    /// 500: a fault of this program.
    pub fn fault() -> Self {
        Self {
            kind: "server_error",
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a fault of the server ended this request; its log says more",
            )
        }
    }

    /// The same with a cause for the log.
    pub fn fault_of(cause: impl Into<String>) -> Self {
        Self {
            cause: Some(cut(&cause.into(), MESSAGE)),
            ..Self::fault()
        }
    }

    /// The body, in OpenAI's form.
    pub fn body(&self) -> String {
        let error = ErrorDetail {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        json!(ErrorBody { error }).to_string()
    }
}

/// An error on the wire.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// What is wrong.
    error: ErrorDetail<'a>,
}

/// What is wrong with a request.
#[derive(Serialize, ToSchema)]
struct ErrorDetail<'a> {
    /// What is wrong and what would be right.
    message: &'a str,
    /// The kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that is wrong, as a path.
    param: Option<&'a str>,
    /// What programs match on.
    code: Option<&'static str>,
}

/// The first characters of a text, so many at most.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Parameter { name, .. } => Self::invalid(name, message),
            EngineError::PromptTooLong { prompt, context } => {
                Self::context_length(context, prompt, 1)
            }
            EngineError::TextTooLong { bytes, context } => Self::text_length(context, bytes),
            EngineError::Template { .. } => Self::invalid("messages", template(error)),
            EngineError::Vocabulary { .. }
            | EngineError::Coding { .. }
            | EngineError::EmptyPrompt
            | EngineError::NoToken
            | EngineError::Grammar { .. } => Self::malformed(message),
            EngineError::Busy { .. } => Self::busy(message),
            EngineError::TooMany { .. } => Self::invalid("n", message),
            EngineError::Draining => Self::unavailable("the server is shutting down"),
            // It does not fit into all of the cache.
            EngineError::PoolFull {
                needed_bytes,
                budget_bytes,
                ..
            } if needed_bytes > budget_bytes => {
                Self::malformed(message).coded(INVALID, "context_length_exceeded")
            }
            EngineError::Overload { .. }
            | EngineError::PoolFull { .. }
            | EngineError::CacheMemory { .. } => Self::unavailable(message),
            EngineError::Io { .. }
            | EngineError::Json { .. }
            | EngineError::NoTokenizer { .. }
            | EngineError::Tokenizer { .. }
            | EngineError::Logit { .. }
            | EngineError::Panicked { .. }
            | EngineError::Model(_)
            | EngineError::Kernel(_) => Self::fault_of(message),
        }
    }
}

/// What a template said, without the path of its file.
fn template(error: EngineError) -> String {
    match error {
        EngineError::Template { error, .. } => {
            format!(
                "the chat template refuses the messages: {}",
                cut(&error, ECHO)
            )
        }
        other => other.to_string(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_fits_into_the_cache_is_a_fault_of_the_request() {
        let of = |needed_bytes| {
            ApiError::from(EngineError::PoolFull {
                needed_bytes,
                free_bytes: 0,
                budget_bytes: 100,
            })
        };
        let (never, later) = (of(101), of(100));
        assert_eq!(never.status, StatusCode::BAD_REQUEST);
        assert_eq!(never.code, Some("context_length_exceeded"));
        assert_eq!(never.retry_after, None);
        assert_eq!(later.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_may_succeed_later_is_no_fault_of_the_request() {
        let error = "the chat template takes more than 2 seconds".to_owned();
        let later = ApiError::from(EngineError::Overload { error });
        assert_eq!(later.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(later.retry_after.is_some() && later.message.contains("2 seconds"));
    }
}
