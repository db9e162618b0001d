//! What routes get of a request: who calls, and a checked body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ECHO, cut};
use crate::net::BodyFault;
use crate::state::App;

/// How deep lists and objects of a body may lie in each other.
const DEPTH: usize = 64;

/// Who calls. Every request has one.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Whose share of the engine the request counts to: the index of its key.
    pub tenant: u64,
    /// What the log and the answer's `X-Request-Id` call the request.
    pub request_id: String,
    /// What the request took, for the log.
    pub tally: Arc<Tally>,
}

/// Tokens of a request, over all its choices.
#[derive(Debug, Default)]
pub struct Tally {
    prompt: AtomicUsize,
    generated: AtomicUsize,
}

impl Tally {
    /// More tokens of the prompt.
    pub fn add_prompt(&self, tokens: usize) {
        self.prompt.fetch_add(tokens, Ordering::Relaxed);
    }

    /// More new tokens.
    pub fn add_generated(&self, tokens: usize) {
        self.generated.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Tokens of the prompt and new ones.
    pub fn tokens(&self) -> (usize, usize) {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (of(&self.prompt), of(&self.generated))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or_else(ApiError::fault)
    }
}

/// A body of JSON, of a request or of an answer.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(_) => ApiError::fault().into_response(),
        }
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_type(&request)?;
        let body = request.into_body().collect().await.map_err(read_error)?;
        let bytes = body.to_bytes();
        if app.options().log_requests {
            app.log(&format!("body: {}", String::from_utf8_lossy(&bytes)));
        }
        parse(&bytes).map(Json)
    }
}

/// A text/plain POST is what any page can make a browser send, without asking.
fn check_type(request: &Request) -> Result<(), ApiError> {
    let value = request.headers().get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!(
        "the Content-Type is '{}', and application/json is needed",
        cut(value, ECHO)
    );
    Err(ApiError {
        code: Some("unsupported_content_type"),
        ..ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    })
}

fn read_error(error: axum::Error) -> ApiError {
    match BodyFault::of(&error) {
        Some(BodyFault::TooLarge { limit }) => ApiError::too_large(limit),
        Some(BodyFault::Stalled { time }) => ApiError::too_slow(format!(
            "no byte of the body came for {} seconds, which is the limit",
            time.as_secs_f32()
        )),
        None => ApiError::malformed("the body ends early, or its chunks are damaged"),
    }
}

/// Reads JSON.
///
/// # Errors
/// 400 that names the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::malformed("the body is empty, and JSON is needed"));
    }
    if depth(bytes) > DEPTH {
        return Err(ApiError::malformed(format!(
            "the body nests deeper than {DEPTH} lists and objects"
        )));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        wrong_field(&path, error.inner())
    })?;
    match json.end() {
        Ok(()) => Ok(value),
        Err(error) => Err(wrong_field(".", &error)),
    }
}

fn wrong_field(path: &str, error: &serde_json::Error) -> ApiError {
    // Messages repeat values of any length, and end with a place that helps only if they are short.
    let message = cut(&error.to_string(), ECHO);
    if !error.is_data() {
        return ApiError::malformed(format!("the body is not JSON: {message}"));
    }
    let missing = message.strip_prefix("missing field `");
    let missing = missing.and_then(|rest| rest.split('`').next());
    let path = match (path, missing) {
        (".", None) => return ApiError::malformed(message),
        (".", Some(field)) => field.to_owned(),
        (path, Some(field)) => format!("{path}.{field}"),
        (path, None) => path.to_owned(),
    };
    ApiError::invalid(path.clone(), format!("{}: {message}", cut(&path, ECHO)))
}

/// How deep lists and objects lie in each other, whatever else is wrong with the text.
fn depth(bytes: &[u8]) -> usize {
    let (mut deepest, mut depth, mut quoted, mut escaped) = (0, 0usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
