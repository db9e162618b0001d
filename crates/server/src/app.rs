//! All paths, and what every request passes before it gets to one.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::metrics::{answers, orca};
use crate::observe::observe;
use crate::routes::{
    chat_completions, completions, detokenize, health, messages, metrics, models, openapi, page,
    responses, tokenize, tokenizer_info, version,
};
use crate::security;
use crate::state::App;

/// The service of a server.
pub fn router(app: &App) -> Router {
    let paths = Router::new()
        .route("/detokenize", post(detokenize::post))
        .route("/health", get(health::get))
        .route("/ping", get(health::get).post(health::get))
        .route("/tokenize", post(tokenize::post))
        .route("/tokenizer_info", get(tokenizer_info::get))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::get))
        .route("/v1/chat/completions", post(chat_completions::post))
        .route("/v1/completions", post(completions::post))
        .route("/v1/messages", post(messages::post))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/responses", post(responses::post))
        .route("/metrics", get(metrics::get))
        .route("/openapi.json", get(openapi::get))
        .route("/version", get(version::get))
        .merge(page::routes())
        .fallback(no_path)
        .method_not_allowed_fallback(no_method);
    guarded(paths, app).with_state(app.clone())
}

/// What every request passes before it gets to a path. Layers that come later are passed earlier.
pub(crate) fn guarded(paths: Router<App>, app: &App) -> Router<App> {
    let state = || app.clone();
    let paths = paths
        .layer(from_fn_with_state(state(), orca::layer))
        .layer(from_fn_with_state(state(), security::keyed));
    // What a browser asks for a page has no key.
    let paths = match security::origins(&app.options().allowed_origins) {
        Some(origins) => paths.layer(origins),
        None => paths,
    };
    paths
        .layer(from_fn_with_state(state(), security::named))
        .layer(from_fn_with_state(state(), answers::layer))
        .layer(from_fn(messages::in_form))
        .layer(from_fn_with_state(state(), observe))
}

async fn no_path(request: Request) -> ApiError {
    ApiError::no_path(request.uri().path())
}

async fn no_method(request: Request) -> ApiError {
    let message = format!("{} is not allowed here", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

#[cfg(test)]
mod tests {
    use crate::testing::server;

    #[test]
    fn what_is_not_there_is_told_so_in_json() {
        let server = server();
        for (method, path, status) in [
            ("GET", "/nothing", 404),
            ("GET", "/v1", 404),
            ("GET", "/v1/models/", 404),
            ("POST", "/..%2fetc/passwd", 404),
            ("DELETE", "/v1/models", 405),
            ("GET", "/tokenize", 405),
            ("PATCH", "/v1/chat/completions", 405),
        ] {
            let answer = server.request(method, path, &[], b"");
            assert_eq!(answer.status, status, "{method} {path}");
            assert!(answer.json()["error"]["message"].is_string());
            assert_eq!(answer.header("allow").is_some(), status == 405, "{path}");
        }
        let long = format!("/{}", "x".repeat(20_000));
        let answer = server.get(&long);
        assert_eq!(answer.status, 404);
        assert!(answer.body.len() < 600);
    }
}
