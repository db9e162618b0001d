//! GET /version.

use serde_json::{Value, json};

use crate::extract::Json;

/// The version of this program.
pub async fn get() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
