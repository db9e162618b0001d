//! Linear layers over packed weights, attention and vector operations, for every instruction set.
//!
//! Words: activations are `[M, K]`, weights `[N, K]` (out, in), outputs `[M, N]`, row-major. A *strip* is 16 output rows of a
//! weight, a *line* 64 bytes of it (see `docs/weight-format.md`); a *panel* is a strip expanded to dense lines.
//!
//! [`linear()`] multiplies; which kernel does it is looked up in the [`catalog`] by weight format, CPU and M.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        reason = "only the kernels of x86-64 use all that kernels share"
    )
)]

#[cfg(target_arch = "x86_64")]
mod amx;
mod error;
mod pool;
mod rows;
mod runtime;
mod simd;
mod spec;

pub mod attention;
pub mod bandwidth;
pub mod catalog;
pub mod linear;
pub mod tolerance;
pub mod vecops;

pub use error::KernelError;
pub use linear::{Linear, LinearJob, Weight, WeightFormat, linear};
pub use pool::{Lender, Pool};
pub use rows::{Rows, RowsMut};
pub use runtime::{Runtime, Scratch};
