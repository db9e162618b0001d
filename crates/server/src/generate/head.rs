//! What all parts of an answer carry.

use crate::ids::unique;
use crate::state::{Served, now};

/// The fields that are the same in all chunks of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Names the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, by the first of its names.
    pub model: String,
    /// Changes when the same request may give another text.
    pub fingerprint: String,
}

impl Head {
    /// Of a new answer, whose id begins with `prefix`.
    pub fn new(served: &Served, prefix: &str) -> Self {
        Self {
            id: unique(prefix),
            created: now(),
            model: served.name().to_owned(),
            fingerprint: served.fingerprint.clone(),
        }
    }
}
