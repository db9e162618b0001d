//! One file per path.

pub mod health;
pub mod models;
pub mod version;
