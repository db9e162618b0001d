//! GET /health: whether a request would be answered now. It never waits for the engine.

use axum::extract::State;

use crate::error::ApiError;
use crate::state::App;

/// 200 without a body, or 503.
pub async fn get(State(app): State<App>) -> Result<(), ApiError> {
    app.served().map(|_| ())
}
