//! GET /metrics: what Prometheus reads.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::error::ApiError;
use crate::metrics;
use crate::state::App;

/// All metrics as text. It never waits for the engine, and works while the server shuts down.
///
/// # Errors
/// 503 until the model is there.
pub async fn get(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let served = app
        .model()
        .ok_or_else(|| ApiError::unavailable("the model is being loaded"))?;
    let text = served
        .metrics
        .render(&served.host.stats(), app.connections());
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}
