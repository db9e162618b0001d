//! Packed and dense tensors in safetensors files.
//!
//! A file is opened as a map and its tensors are used in place: [`write()`] starts every tensor whose size allows
//! it on a 64-byte boundary. A packed bf16 weight `NAME` (by custom `<module>.weight`) is three tensors,
//! `NAME.mask`, `NAME.values` and `NAME.offsets`, and an entry `NAME.shape` of the header's `__metadata__` that gives
//! the logical shape as `[n, k]`. An int8 or int4 weight has a tensor `NAME.scale` too, an entry `NAME.format`, and
//! `NAME.group` if groups of columns share a scale; without `NAME.mask` and `NAME.offsets` it is dense. See
//! `docs/weight-format.md`.

mod packed;
pub(crate) mod read;
mod write;

pub use packed::{
    PackedFormat, PackedWeight, dense_i4, dense_i4_tensors, dense_i8, dense_i8_tensors,
    packed_weight, packed_weights, sparse_bf16, sparse_bf16_tensors, sparse_i4, sparse_i4_tensors,
    sparse_i8, sparse_i8_tensors,
};
pub use read::{TensorFile, TensorView};
pub use safetensors::Dtype;
pub use write::{TensorOut, write};

/// Longest header that is read or written, as in the safetensors crate.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes of the header's length in front of it.
const HEADER_LENGTH_BYTES: usize = 8;

/// Bytes of a tensor, or `None` if they overflow or are not whole.
fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
