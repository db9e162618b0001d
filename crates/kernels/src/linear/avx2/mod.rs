//! AVX2 and FMA: one file for each kind of weight, one for pages of keys and values.

pub(crate) mod bf16;
mod int;
pub(crate) mod int4;
pub(crate) mod int8;
mod page;

/// How far ahead of use weights are asked for. The hardware's own prefetcher stays behind when a thread reads two streams of
/// different speed, masks and values: without this, packed decode is a fifth slower (Zen 3).
const PREFETCH_BYTES: usize = 4096;
