//! What tests of several crates share: matrices, the skip policy, folders, and a hub on this machine.

#![forbid(unsafe_code)]

mod folders;
mod matrix;
mod rows;

#[cfg(feature = "hub")]
pub mod hub;

use sparamx_cpu::{Cpu, ISA_VARIABLE};

pub use folders::{content, names, shared};
pub use matrix::{Canary, Density, Random, activations, levels, round_bf16, to_f32, weights};
pub use rows::RowReport;

/// The CPU, up to the level that `SPARAMX_ISA` allows.
///
/// # Panics
/// If the variable holds no level, or one that this machine does not reach.
pub fn cpu() -> Cpu {
    let limit = std::env::var_os(ISA_VARIABLE);
    Cpu::detect_up_to(limit.as_deref()).unwrap_or_else(|error| panic!("{error}"))
}

/// True where tests should choose fewer sizes: in the emulator, a few hundred times slower than a CPU (`SPARAMX_TEST_FAST=1`).
pub fn fast() -> bool {
    std::env::var_os("SPARAMX_TEST_FAST").is_some_and(|v| v == "1")
}
