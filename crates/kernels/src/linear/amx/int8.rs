//! AMX-INT8: int8 weights.

use super::int::{Groups, by_batches, by_panels, dense};
use crate::amx::tile::ROWS;
use crate::linear::avx512::int8::{DenseI8, SparseI8};
use crate::linear::chunk::Chunk;

/// Dense int8 weights: tiles are loaded where they lie, unless groups are short.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn dense_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    if Groups::of(chunk).tile_lines < ROWS {
        // SAFETY: the levels are there, as required; a source is made of each strip by `DenseI8::new`.
        return unsafe { by_batches(chunk, scratch, DenseI8::<0>::new) };
    }
    // SAFETY: as above.
    unsafe {
        dense(chunk, scratch, |s| {
            bytemuck::cast_slice(chunk.dense_i8_strip(s))
        })
    }
}

/// Packed int8 weights for up to 32 rows: tiles are expanded just before use (again for each 32 rows).
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn sparse_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the levels are there, as required; a source is made of each strip by `SparseI8::new`.
    unsafe { by_batches(chunk, scratch, SparseI8::<0>::new) }
}

/// Packed int8 weights for many rows: a pair of strips is expanded once, into the L2 cache.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
pub(crate) unsafe fn sparse_panel_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the levels are there, as required; a source is made of each strip by `SparseI8::new`.
    unsafe { by_panels(chunk, scratch, SparseI8::<0>::new) }
}
