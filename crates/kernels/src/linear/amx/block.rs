//! Blocks of 2 x 2 tiles of sums: 32 rows of activations by 2 strips.
//!
//! Tiles 0 to 3 sum (row block r, strip t in tile 2 r + t), 4 and 5 hold activations, 6 and 7 weights.

use sparamx_cpu::{Amx, AmxInt8};

use crate::amx::tile::{ROW_BYTES, ROWS, TILE_BYTES, Tile, TileScope};
use crate::linear::chunk::Chunk;

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

/// `lines` as whole tiles; what is left over is left out.
pub(super) fn tiles_of(lines: &[u8]) -> &[Tile] {
    lines.as_chunks::<TILE_BYTES>().0
}

/// Sets the sums to zero.
#[inline(always)]
pub(super) fn zero_sums(tiles: &TileScope) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
}

/// Stores the sums of tile `number`.
pub(super) fn store_sums(tiles: &TileScope, number: usize, sums: &mut Tile) {
    match number {
        0 => tiles.store::<0>(sums),
        1 => tiles.store::<1>(sums),
        2 => tiles.store::<2>(sums),
        _ => tiles.store::<3>(sums),
    }
}

/// How tiles are multiplied: the proof that the CPU can.
pub(super) trait Dot: Copy {
    fn dot<const C: u8, const A: u8, const B: u8>(self, tiles: &TileScope);
}

impl Dot for Amx {
    #[inline(always)]
    fn dot<const C: u8, const A: u8, const B: u8>(self, tiles: &TileScope) {
        tiles.dot_bf16::<C, A, B>();
    }
}

impl Dot for AmxInt8 {
    #[inline(always)]
    fn dot<const C: u8, const A: u8, const B: u8>(self, tiles: &TileScope) {
        tiles.dot_i8::<C, A, B>(self);
    }
}

/// Activations of a block: the first row, and the bytes to the next.
#[derive(Clone, Copy)]
pub(super) struct BlockRows {
    pub ptr: *const u8,
    pub stride: usize,
}

impl BlockRows {
    /// The rows from `bytes` bytes later on.
    pub fn after(self, bytes: usize) -> Self {
        Self {
            ptr: self.ptr.wrapping_add(bytes),
            ..self
        }
    }
}

/// A tile's k: activations times one tile of each strip. The tile of a strip that is not used is not read.
///
/// # Safety
/// `x` is 16 rows, with `used.second_rows` 32, of which [`ROW_BYTES`] can be read.
#[inline(always)]
pub(super) unsafe fn step(
    tiles: &TileScope,
    dot: impl Dot,
    x: BlockRows,
    used: Used,
    weights: [&Tile; 2],
) {
    let BlockRows { ptr: x, stride } = x;
    // SAFETY: the first 16 rows are there, as required.
    unsafe { tiles.load_rows::<4>(x, stride) };
    tiles.load::<6>(weights[0]);
    dot.dot::<0, 4, 6>(tiles);
    if used.second_strip {
        tiles.load::<7>(weights[1]);
        dot.dot::<1, 4, 7>(tiles);
    }
    if used.second_rows {
        // SAFETY: 16 more rows are there, as required.
        unsafe { tiles.load_rows::<5>(x.wrapping_add(ROWS * stride), stride) };
        dot.dot::<2, 5, 6>(tiles);
        if used.second_strip {
            dot.dot::<3, 5, 7>(tiles);
        }
    }
}

const _: () = assert!(
    ROW_BYTES == sparamx_format::LINE_BYTES,
    "a row of a tile of weights is a line"
);
