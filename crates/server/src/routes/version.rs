//! GET /version.

use serde::Serialize;
use utoipa::ToSchema;

use crate::extract::Json;

/// A version.
#[derive(Serialize, ToSchema)]
pub struct Version {
    /// The version of this program.
    version: &'static str,
}

/// The version of this program.
pub async fn get() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}
