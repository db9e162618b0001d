//! The matrix extensions of Intel CPUs from Sapphire Rapids on.

pub(crate) mod tile;
