//! Answers to what is no request, and to connections there is no room for.

use axum::http::StatusCode;

use crate::error::ApiError;
use crate::options::Limits;

/// The bytes of an answer after which the connection ends.
pub fn answer(error: &ApiError) -> Vec<u8> {
    let body = error.body();
    let retry = error.retry_after.map(|s| format!("retry-after: {s}\r\n"));
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n{}connection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        error.status,
        retry.unwrap_or_default(),
        body.len()
    )
    .into_bytes()
}

/// What is wrong with a request whose head could not be read.
pub fn head(status: StatusCode, limits: &Limits) -> ApiError {
    let message = match status {
        StatusCode::REQUEST_TIMEOUT => format!(
            "the head of the request did not end within {} seconds",
            limits.head.as_secs_f32()
        ),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => format!(
            "the head of the request has more than {} bytes or {} fields, which are the limits, or gives a length beyond all of them",
            limits.head_bytes, limits.fields
        ),
        StatusCode::URI_TOO_LONG => "the path is too long".to_owned(),
        _ => "the head of the request is not HTTP/1.1: its request line, a field or its length is damaged".to_owned(),
    };
    ApiError::new(status, message)
}

/// There are as many connections as there may be.
pub fn full(limits: &Limits) -> ApiError {
    ApiError::unavailable(format!(
        "{} connections are open, which is the limit",
        limits.connections
    ))
}
