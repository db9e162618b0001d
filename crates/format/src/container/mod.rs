//! Packed and dense tensors in safetensors files.
//!
//! A file is opened as a map and its tensors are used in place: [`write()`] starts every tensor whose size allows
//! it on a 64-byte boundary. A packed bf16 weight `NAME` (by custom `<module>.weight`) is three tensors,
//! `NAME.mask`, `NAME.values` and `NAME.offsets`, and an entry `NAME.shape` of the header's `__metadata__` that gives
//! the logical shape as `[n, k]`. An int8 or int4 weight has a tensor `NAME.scale` too, an entry `NAME.format`, and
//! `NAME.group` if groups of columns share a scale; without `NAME.mask` and `NAME.offsets` it is dense. See
//! `docs/weight-format.md`.

mod header;
pub(crate) mod loose;
mod packed;
pub(crate) mod read;
mod write;

pub use packed::{PackedWeight, packed_weight, packed_weights};
pub use read::{TensorFile, TensorView};
pub use safetensors::Dtype;
pub use write::{TensorOut, write};
