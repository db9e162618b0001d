//! Blocks of 2 x 2 tiles of sums.

use crate::amx::tile::{self, ROW_BYTES, ROWS};
use crate::linear::chunk::Chunk;

/// Bytes of a tile.
pub(super) const TILE_BYTES: usize = ROWS * ROW_BYTES;
/// Rows of a 2 x 2 block.
pub(super) const MR: usize = 2 * ROWS;

/// The chunk's strips, two by two; the last may be alone.
pub(super) fn pairs(chunk: &Chunk<'_>) -> impl Iterator<Item = [Option<usize>; 2]> {
    let end = chunk.strips.end;
    chunk
        .strips
        .clone()
        .step_by(2)
        .map(move |s| [Some(s), (s + 1 < end).then_some(s + 1)])
}

/// Which tiles of a block are used: a multiplication by tiles that nobody needs takes as long as any.
#[derive(Clone, Copy)]
pub(super) struct Used {
    pub second_rows: bool,
    pub second_strip: bool,
}

impl Used {
    /// By the block of up to 32 rows from `first` on.
    pub fn of(chunk: &Chunk<'_>, pair: [Option<usize>; 2], first: usize) -> Self {
        Self {
            second_rows: first + ROWS < chunk.m,
            second_strip: pair[1].is_some(),
        }
    }
}

/// # Safety
/// Inside a [`TileScope`]; `sums` takes a tile.
pub(super) unsafe fn store_sums(number: usize, sums: &mut [u8]) {
    assert_eq!(sums.len(), TILE_BYTES);
    let to = sums.as_mut_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        match number {
            0 => tile::store::<0>(to, ROW_BYTES),
            1 => tile::store::<1>(to, ROW_BYTES),
            2 => tile::store::<2>(to, ROW_BYTES),
            _ => tile::store::<3>(to, ROW_BYTES),
        }
    }
}
