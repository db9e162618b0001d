//! AMX-INT8: int8 weights.

use super::block::{MR, pairs};
use super::int::{Groups, block, by_batches, by_panels, tile_of};
use crate::amx::tile::{ROWS, TileScope};
use crate::linear::avx512::int8::{DenseI8, SparseI8};
use crate::linear::chunk::Chunk;

/// Dense int8 weights: tiles are loaded where they lie, unless groups are short.
///
/// # Safety
/// AMX-INT8; a chunk as its documentation says.
pub(crate) unsafe fn dense_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    if Groups::of(chunk).tile_lines < ROWS {
        // SAFETY: the caller's promise.
        return unsafe { by_batches(chunk, scratch, DenseI8::<0>::new) };
    }
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        let lines = pair.map(|s| {
            let strip =
                chunk.dense_i8_strip(s.unwrap_or(pair[0].expect("a pair has a first strip")));
            bytemuck::cast_slice(strip)
        });
        for first in (0..chunk.m).step_by(MR) {
            // SAFETY: the caller's promise; the scope is there.
            unsafe {
                block(chunk, pair, first, scratch, |t| {
                    lines.map(|l| tile_of(l, t).as_ptr())
                })
            };
        }
    }
}

/// Packed int8 weights for up to 32 rows: tiles are expanded just before use (again for each 32 rows).
///
/// # Safety
/// AMX-INT8; a chunk as its documentation says.
pub(crate) unsafe fn sparse_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { by_batches(chunk, scratch, SparseI8::<0>::new) }
}

/// Packed int8 weights for many rows: a pair of strips is expanded once, into the L2 cache.
///
/// # Safety
/// AMX-INT8; a chunk as its documentation says.
pub(crate) unsafe fn sparse_panel_i8_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { by_panels(chunk, scratch, SparseI8::<0>::new) }
}
