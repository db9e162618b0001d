//! What routes get of a request: who calls, and a checked body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bodies::{FREE_BYTES, Held};
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
    /// The memory of its body.
    pub held: Held,
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

/// A body of JSON that nobody has read yet, for those who read it in two ways.
#[derive(Debug)]
pub struct Unread(pub Bytes);

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let Unread(bytes) = Unread::from_request(request, app).await?;
        read(app, bytes).await.map(Json)
    }
}

impl FromRequest<App> for Unread {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_type(&request)?;
        let caller = request.extensions().get::<Caller>();
        let held = caller.map(|caller| caller.held.clone()).unwrap_or_default();
        let mut body = request.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(read_error)?.into_data() {
                app.hold(&held, bytes.len() + data.len())?;
                bytes.extend_from_slice(&data);
            }
        }
        let bytes = Bytes::from(bytes);
        if app.options().log_requests {
            app.log(&format!("body: {}", String::from_utf8_lossy(&bytes)));
        }
        Ok(Self(bytes))
    }
}

/// Reads JSON of any length, a long one where others do not wait for it.
///
/// # Errors
/// As [`parse`].
pub async fn read<T: DeserializeOwned + Send + 'static>(
    app: &App,
    bytes: Bytes,
) -> Result<T, ApiError> {
    if bytes.len() <= FREE_BYTES {
        return parse(&bytes);
    }
    app.work().run(move || parse(&bytes)).await?
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
    // In fields that nobody reads, the parser would let other bytes pass.
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ApiError::malformed("the body is not JSON: it is not UTF-8"))?;
    let mut json = serde_json::Deserializer::from_str(text);
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::routes::detokenize::DetokenizeRequest;
    use crate::routes::tokenize::TokenizeRequest;
    use crate::testing::{damage, numbers};
    use crate::wire::openai::{ChatRequest, CompletionRequest};

    #[derive(Debug, Deserialize)]
    struct Wanted {
        #[expect(dead_code, reason = "only read")]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    struct Item {
        #[expect(dead_code, reason = "only read")]
        size: u8,
    }

    #[test]
    fn an_error_names_the_field_and_repeats_little() {
        let long = "x".repeat(100_000);
        for (body, param) in [
            (json!({}), Some("items")),
            (json!({"items": 5}), Some("items")),
            (
                json!({"items": [{"size": 1}, {"size": -1}]}),
                Some("items[1].size"),
            ),
            (json!({"items": [{}]}), Some("items[0].size")),
            (json!({"items": [{"size": long}]}), Some("items[0].size")),
            (json!([]), None),
            (json!(long), None),
        ] {
            let error = parse::<Wanted>(body.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert_eq!(error.param.as_deref(), param, "{error:?}");
            assert!(error.message.len() < 400, "{}", error.message.len());
        }
        for text in [
            "",
            "{",
            "{\"items\": []} x",
            "\u{feff}{}",
            "{'items': []}",
            "{\"items\": [01]}",
        ] {
            let error = parse::<Wanted>(text.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status, error.param),
                (StatusCode::BAD_REQUEST, None),
                "{text}"
            );
        }
        assert!(
            parse::<Wanted>(b"{\"items\": [{\"size\": 1, \"other\": null}], \"more\": {}}").is_ok()
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_wherever_they_are() {
        let error = parse::<Wanted>(b"{\"items\": [], \"other\": \"\xff\"}").unwrap_err();
        assert!(error.message.contains("UTF-8"), "{error:?}");
    }

    #[test]
    fn depth_has_a_limit() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse::<Value>(nested(DEPTH).as_bytes()).is_ok());
        let error = parse::<Value>(nested(DEPTH + 1).as_bytes()).unwrap_err();
        assert!(error.message.contains("64"), "{error:?}");
        // Brackets in texts are none, and those that never end are no reason to overflow.
        assert!(parse::<Value>(format!("\"\\\"{}\"", "[".repeat(1000)).as_bytes()).is_ok());
        assert!(parse::<Value>("[".repeat(10_000_000).as_bytes()).is_err());
    }

    /// Requests that are damaged at random: 10,000 of each, or as many as `SPARAMX_DAMAGED` says.
    #[test]
    fn damaged_requests_are_refused_or_understood() {
        let cases = std::env::var("SPARAMX_DAMAGED")
            .ok()
            .and_then(|cases| cases.parse().ok());
        let cases = cases.unwrap_or(10_000);
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hé\n"}]},
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
            "temperature": 0.5, "n": 2, "stop": ["a", "b"], "logit_bias": {"5": -1.5}, "stream": true, "seed": -1,
            "stream_options": {"include_usage": true}, "response_format": {"type": "json_schema", "json_schema":
            {"name": "s", "schema": {"type": "object"}}}, "tool_choice": {"type": "function", "function": {"name": "f"}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]});
        let completion = json!({"prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 5, "echo": true, "stop": "x"});
        refuses_or_understands::<ChatRequest>(&chat, cases);
        refuses_or_understands::<CompletionRequest>(&completion, cases);
        refuses_or_understands::<TokenizeRequest>(
            &json!({"prompt": "a", "add_special_tokens": false}),
            cases,
        );
        refuses_or_understands::<DetokenizeRequest>(
            &json!({"tokens": [1, 2, 4294967295u32]}),
            cases,
        );
    }

    fn refuses_or_understands<T: DeserializeOwned>(request: &Value, cases: u64) {
        let text = request.to_string();
        parse::<T>(text.as_bytes()).unwrap_or_else(|error| panic!("{error:?}"));
        for seed in 0..cases {
            let bytes = damage(text.as_bytes(), &mut numbers(seed));
            if let Err(error) = parse::<T>(&bytes) {
                assert_eq!(error.status, StatusCode::BAD_REQUEST, "seed {seed}");
                assert!(error.message.chars().count() <= 1001, "seed {seed}");
            }
        }
    }
}
