//! AMX: blocks of 2 x 2 tiles, 32 rows of activations by 2 strips, bf16 products summed in f32.
//!
//! A tile of a strip is 16 lines, 1 KiB, contiguous in the dense layout: the B operand as it is. Tiles 0 to 3 sum (row block r,
//! strip t in tile 2 r + t), 4 and 5 hold activations, 6 and 7 weights.

use sparamx_format::{LINE_BYTES, LINE_ELEMS_BF16, STRIP_ROWS};

use super::block::{MR, TILE_BYTES, Used, pairs, store_sums};
use crate::amx::tile::{self, ROW_BYTES, ROWS, TileScope};
use crate::linear::activation::ROW_GROUP;
use crate::linear::avx512::bf16::{expand, expand_lines, sparse_source};
use crate::linear::chunk::Chunk;

/// k of a tile.
const TILE_K: usize = 32;
/// Elements of a tile of weights.
const TILE_ELEMS: usize = ROWS * LINE_ELEMS_BF16;
/// Tiles of a strip that are expanded before they are multiplied. Two strips take 16 KiB, a third of the L1 cache; while one
/// group is multiplied the next is expanded, and stores have left the store buffer when the tile is loaded (`tileloadd` cannot
/// take from it).
const GROUP_TILES: usize = 8;

/// Scratch of the kernels that keep a pair of strips expanded.
pub(crate) fn panel_pair_bytes(k_padded: usize) -> usize {
    TILE_BYTES + 2 * k_padded * STRIP_ROWS * 2
}

/// Scratch of the kernel that expands group by group, and of the dense one.
pub(crate) fn group_bytes(_k_padded: usize) -> usize {
    TILE_BYTES + 2 * GROUP_TILES * TILE_ELEMS * 2
}

/// Dense bf16 weights.
///
/// # Safety
/// AMX-BF16; a chunk as its documentation says.
pub(crate) unsafe fn dense_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, _) = scratch.split_at_mut(TILE_BYTES);
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        let lines = pair.map(|s| s.map(|s| chunk.dense_strip(s)));
        for first in (0..chunk.m).step_by(MR) {
            // SAFETY: the caller's promise; the scope is there.
            unsafe {
                block(chunk, pair, first, sums, |tiles| {
                    multiply(chunk, first, tiles, lines)
                })
            };
        }
    }
}

/// Packed bf16 weights for up to 32 rows: tiles are expanded into the L1 cache just before use (again for each 32 rows).
///
/// # Safety
/// AMX-BF16; a chunk as its documentation says.
pub(crate) unsafe fn sparse_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, lines) = scratch.split_at_mut(TILE_BYTES);
    let (a, b) = bytemuck::cast_slice_mut(lines).split_at_mut(GROUP_TILES * TILE_ELEMS);
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        for first in (0..chunk.m).step_by(MR) {
            // SAFETY: the caller's promise; the scope is there.
            unsafe {
                block(chunk, pair, first, sums, |tiles| {
                    expand_and_multiply(chunk, pair, first, tiles, [&mut *a, &mut *b])
                })
            };
        }
    }
}

/// Packed bf16 weights for many rows: a pair of strips is expanded once, into the L2 cache.
///
/// # Safety
/// AMX-BF16; a chunk as its documentation says.
pub(crate) unsafe fn sparse_panel_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, lines) = scratch.split_at_mut(TILE_BYTES);
    let (a, b) = bytemuck::cast_slice_mut::<u8, u16>(lines).split_at_mut(chunk.strip_elems());
    let b = &mut b[..chunk.strip_elems()];
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        for (s, panel) in pair.iter().zip([&mut *a, &mut *b]) {
            if let Some(s) = *s {
                let (masks, values) = chunk.sparse_strip(s);
                // SAFETY: AMX includes AVX-512, by the caller's promise; strips are valid.
                unsafe { expand(masks, values, panel) };
            }
        }
        let lines = [Some(&*a), pair[1].map(|_| &*b)];
        for first in (0..chunk.m).step_by(MR) {
            // SAFETY: the caller's promise; the scope is there.
            unsafe {
                block(chunk, pair, first, sums, |tiles| {
                    multiply(chunk, first, tiles, lines)
                })
            };
        }
    }
}

/// Computes up to 32 rows of a pair of strips: sums set to zero, `work` called, sums written out.
///
/// # Safety
/// Inside a [`TileScope`]; row `first` exists; `work` leaves the sums in tiles 0 to 3.
unsafe fn block(
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    sums: &mut [u8],
    work: impl FnOnce(Used),
) {
    let used = Used::of(chunk, pair, first);
    // SAFETY: the caller's promise.
    unsafe {
        tile::zero::<0>();
        tile::zero::<1>();
        tile::zero::<2>();
        tile::zero::<3>();
    }
    work(used);
    for (t, s) in pair.into_iter().enumerate() {
        let Some(s) = s else { continue };
        for r in 0..1 + usize::from(used.second_rows) {
            let start = first + r * ROWS;
            // SAFETY: as above; the rows below M and the strip are the chunk's.
            unsafe {
                store_sums(2 * r + t, sums);
                put(chunk, start..chunk.m.min(start + ROWS), s, sums);
            }
        }
    }
}

/// # Safety
/// The rows and the strip are the chunk's.
unsafe fn put(chunk: &Chunk<'_>, rows: std::ops::Range<usize>, s: usize, sums: &[u8]) {
    for (i, row) in rows.zip(bytemuck::cast_slice::<u8, [f32; STRIP_ROWS]>(sums)) {
        // SAFETY: the caller's promise.
        unsafe { chunk.out.put(i, s, *row) };
    }
}

/// All of K from lines that are expanded already.
///
/// The bounds are checked here, so that `work` of [`block`] can be a safe closure around it; AMX is the callers' promise.
fn multiply(chunk: &Chunk<'_>, first: usize, used: Used, lines: [Option<&[u16]>; 2]) {
    let a = lines[0].expect("a pair has a first strip");
    // A strip that is not there is not read: any pointer will do.
    let b = lines[1].unwrap_or(a);
    let x = rows(chunk, first);
    for t in 0..chunk.k_padded / TILE_K {
        let at = t * TILE_ELEMS;
        // SAFETY: AMX as said; the slices hold whole tiles.
        unsafe {
            step(
                x.tile(t),
                used,
                [&a[at..][..TILE_ELEMS], &b[at..][..TILE_ELEMS]],
            )
        };
    }
}

/// All of K from packed strips, expanded group by group into `scratch`.
fn expand_and_multiply(
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    used: Used,
    scratch: [&mut [u16]; 2],
) {
    let [a, b] = scratch;
    let mut sources = pair.map(|s| s.map(|s| sparse_source(chunk, s)));
    let x = rows(chunk, first);
    let tiles = chunk.k_padded / TILE_K;
    for group in (0..tiles).step_by(GROUP_TILES) {
        let count = GROUP_TILES.min(tiles - group);
        for (source, out) in sources.iter_mut().zip([&mut *a, &mut *b]) {
            let out = &mut out[..count * TILE_ELEMS];
            // SAFETY: AMX, and so AVX-512, as said; strips are valid and have that many tiles more.
            *source = source.map(|source| unsafe { expand_lines(source, out) });
        }
        for t in 0..count {
            let at = t * TILE_ELEMS;
            let weights = [&a[at..][..TILE_ELEMS], &b[at..][..TILE_ELEMS]];
            // SAFETY: as in `multiply`.
            unsafe { step(x.tile(group + t), used, weights) };
        }
    }
}

/// Activations of a block: the first row, and the bytes to the next.
#[derive(Clone, Copy)]
struct BlockRows {
    ptr: *const u8,
    stride: usize,
}

/// The activations from row `first` on, whole groups of rows.
fn rows(chunk: &Chunk<'_>, first: usize) -> BlockRows {
    let [x, ..] = chunk.bf16_rows::<ROW_GROUP>(first);
    BlockRows {
        ptr: x.cast(),
        stride: chunk.x.stride * 2,
    }
}

impl BlockRows {
    /// The rows from tile `t` of K on.
    fn tile(self, t: usize) -> Self {
        Self {
            ptr: self.ptr.wrapping_add(t * ROW_BYTES),
            ..self
        }
    }
}

/// 32 k: activations times one tile of each strip.
///
/// # Safety
/// Inside a [`TileScope`]; `x` are whole groups of 16 rows, as many as `used` says; `weights` are whole tiles.
#[inline(always)]
unsafe fn step(x: BlockRows, used: Used, weights: [&[u16]; 2]) {
    let BlockRows { ptr: x, stride } = x;
    // SAFETY: the caller's promise; bf16 activations come in whole groups of 16 rows, of K rounded up to whole tiles.
    unsafe {
        tile::load::<4>(x, stride);
        tile::load::<6>(weights[0].as_ptr().cast(), LINE_BYTES);
        tile::dot_bf16::<0, 4, 6>();
        if used.second_strip {
            tile::load::<7>(weights[1].as_ptr().cast(), LINE_BYTES);
            tile::dot_bf16::<1, 4, 7>();
        }
        if used.second_rows {
            tile::load::<5>(x.wrapping_add(ROWS * stride), stride);
            tile::dot_bf16::<2, 5, 6>();
            if used.second_strip {
                tile::dot_bf16::<3, 5, 7>();
            }
        }
    }
}
