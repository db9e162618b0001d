//! What reading and writing a header have in common.

use safetensors::Dtype;

/// Longest header that is read or written, as in the safetensors crate.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes of the header's length in front of it.
pub(super) const HEADER_LENGTH_BYTES: usize = 8;

/// Bytes of a tensor, or `None` if they overflow or are not whole.
pub(super) fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
