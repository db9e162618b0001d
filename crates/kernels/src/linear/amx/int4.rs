//! AMX-INT8: int4 weights.

use super::int::{by_batches, by_panels};
use crate::linear::avx512::int4::{DenseI4, SparseI4};
use crate::linear::chunk::Chunk;

/// Dense int4 weights, unpacked just before use.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn dense_i4_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the levels are there, as required; a source is made of each strip by `DenseI4::new`.
    unsafe { by_batches(chunk, scratch, DenseI4::<0>::new) }
}

/// Packed int4 weights for up to 32 rows, as packed int8 ones.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn sparse_i4_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the levels are there, as required; a source is made of each strip by `SparseI4::new`.
    unsafe { by_batches(chunk, scratch, SparseI4::<0>::new) }
}

/// Packed int4 weights for many rows, as packed int8 ones.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn sparse_panel_i4_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the levels are there, as required; a source is made of each strip by `SparseI4::new`.
    unsafe { by_panels(chunk, scratch, SparseI4::<0>::new) }
}
