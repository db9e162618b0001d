//! Who may ask what.

mod keys;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::extract::Caller;
use crate::ids;
use crate::state::App;

/// What every request passes first: it gets its [`Caller`].
pub async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let open = request.uri().path() == "/health";
    let tenant = match keys::tenant(&app.options().keys, request.headers()) {
        Some(tenant) => tenant,
        None if open => 0,
        None => return ApiError::key().into_response(),
    };
    request.extensions_mut().insert(Caller {
        tenant,
        request_id,
        ..Caller::default()
    });
    next.run(request).await
}

/// The client's name for the request if it has one, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.chars().all(plain) => id.to_owned(),
        _ => ids::unique(""),
    }
}
