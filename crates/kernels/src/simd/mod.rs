//! Vectors of f32 for every instruction set, so that an operation is written once.
//!
//! [`Lanes`] is the trait; its implementers are the tokens of the `cpu` crate, whose existence proves that the instructions
//! may be executed. An operation is a struct with [`VectorOp::eval`], generic over [`Lanes`]; [`dispatch()`] compiles it for
//! each level and runs the widest that the CPU has. What `eval` calls with vectors is `#[inline(always)]`: only code that is
//! inlined into the function with the `target_feature` attribute is compiled for that level.

mod dispatch;
mod exp;
mod lanes;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use dispatch::{VectorOp, dispatch};
pub(crate) use exp::exp;
pub(crate) use lanes::Lanes;
