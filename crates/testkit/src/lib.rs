//! Oracles, matrix generators, tolerances and the skip policy of the tests.

#![forbid(unsafe_code)]

mod matrix;
mod rows;

pub mod attention;
pub mod vecops;

pub use matrix::{Canary, Density, Random, activations, levels, round_bf16, to_f32, weights};
pub use rows::RowReport;
pub use sparamx_kernels::tolerance::{BF16_EPS, sum_tolerance};

/// True where tests should choose fewer sizes: in the emulator, a few hundred times slower than a CPU (`SPARAMX_TEST_FAST=1`).
pub fn fast() -> bool {
    std::env::var_os("SPARAMX_TEST_FAST").is_some_and(|v| v == "1")
}
