//! All paths, and what every request passes before it gets to one.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::routes::{chat_completions, completions, health, models, version};
use crate::security;
use crate::state::App;

/// The service of a server. Layers that come later are passed earlier.
pub fn router(app: &App) -> Router {
    let with = |app: &App| app.clone();
    Router::new()
        .route("/health", get(health::get))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::get))
        .route("/v1/chat/completions", post(chat_completions::post))
        .route("/v1/completions", post(completions::post))
        .route("/version", get(version::get))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(with(app), security::guard))
        .with_state(app.clone())
}

async fn no_path(State(_): State<App>, request: Request) -> ApiError {
    ApiError::no_path(request.uri().path())
}

async fn no_method(request: Request) -> ApiError {
    let message = format!("{} is not allowed here", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}
