//! The forward pass: one for all families.

pub(crate) mod cache;
pub(crate) mod context;
pub(crate) mod decoder;
mod forward;
pub(crate) mod layers;
pub(crate) mod model;
pub(crate) mod profile;
pub(crate) mod rope;
pub(crate) mod workspace;
