//! Who may ask what: the key of a request, the `Host` it gives, and the pages whose scripts may read answers.

mod hosts;
mod origins;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::extract::Caller;
use crate::routes::page;
use crate::state::App;

pub use origins::layer as origins;

/// What a page may load and whom it may talk to: this server, and nothing written into the page itself.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                   base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                   require-trusted-types-for 'script'; trusted-types 'none'";

/// Refuses requests that came by a name this server does not go by, as those of a page do whose name was made to lead here.
pub async fn named(State(app): State<App>, request: Request, next: Next) -> Response {
    match hosts::check(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Refuses requests without a key, and those whose body says that it is too large. No byte of the body is read before.
pub async fn keyed(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let open = path == "/health" || (app.options().public_page && page::is_file(path));
    let tenant = match app.keys().tenant(request.headers()) {
        Some(tenant) => tenant,
        None if open => 0,
        None => return ApiError::key().into_response(),
    };
    let limit = app.options().limits.body_bytes;
    if length(request.headers()).is_some_and(|length| length > limit as u64) {
        return ApiError::too_large(limit).into_response();
    }
    if let Some(caller) = request.extensions_mut().get_mut::<Caller>() {
        caller.tenant = tenant;
    }
    next.run(request).await
}

fn length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    length.parse().ok()
}

/// Keeps browsers from taking an answer for what it is not.
pub fn protect(headers: &mut HeaderMap) {
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(CSP),
    );
}

#[cfg(test)]
mod tests;
