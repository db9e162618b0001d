//! AVX-512: one file for each kind of weight.

pub(crate) mod bf16;
pub(crate) mod int;
pub(crate) mod int4;
pub(crate) mod int8;

/// How far ahead of use weights are prefetched; see avx2/mod.rs.
const PREFETCH_BYTES: isize = 4096;
