//! AMX: bf16 products summed in f32, in blocks of 2 x 2 tiles.
//!
//! A tile of a strip is 16 lines, 1 KiB, contiguous in the dense layout: the B operand as it is.

use sparamx_format::{LINE_ELEMS_BF16, STRIP_ROWS};

use super::block::{BlockRows, MR, Used, pairs, step, store_sums, tiles_of, zero_sums};
use crate::amx::tile::{ROW_BYTES, ROWS, TILE_BYTES, Tile, TileScope};
use crate::linear::activation::ROW_GROUP;
use crate::linear::avx512::bf16::{SparseLines, expand, expand_lines, sparse_source};
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
/// AMX-BF16.
pub(crate) unsafe fn dense_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, _) = split(scratch);
    let tiles = TileScope::new(chunk.amx());
    for pair in pairs(chunk) {
        let lines = pair.map(|s| s.map(|s| chunk.dense_strip(s)));
        for first in (0..chunk.m).step_by(MR) {
            block(&tiles, chunk, pair, first, sums, |used| {
                multiply(&tiles, chunk, first, used, lines)
            });
        }
    }
}

/// Packed bf16 weights for up to 32 rows: tiles are expanded into the L1 cache just before use (again for each 32 rows).
///
/// # Safety
/// AMX-BF16.
pub(crate) unsafe fn sparse_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, lines) = split(scratch);
    let (a, b) = bytemuck::cast_slice_mut(lines).split_at_mut(GROUP_TILES * TILE_ELEMS);
    let tiles = TileScope::new(chunk.amx());
    for pair in pairs(chunk) {
        for first in (0..chunk.m).step_by(MR) {
            block(&tiles, chunk, pair, first, sums, |used| {
                expand_and_multiply(&tiles, chunk, pair, first, used, [&mut *a, &mut *b])
            });
        }
    }
}

/// Packed bf16 weights for many rows: a pair of strips is expanded once, into the L2 cache.
///
/// # Safety
/// AMX-BF16.
pub(crate) unsafe fn sparse_panel_32x32(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let (sums, lines) = split(scratch);
    let (a, b) = bytemuck::cast_slice_mut::<u8, u16>(lines).split_at_mut(chunk.strip_elems());
    let b = &mut b[..chunk.strip_elems()];
    let tiles = TileScope::new(chunk.amx());
    for pair in pairs(chunk) {
        for (s, panel) in pair.iter().zip([&mut *a, &mut *b]) {
            if let Some(s) = *s {
                let (masks, values) = chunk.sparse_strip(s);
                // SAFETY: `chunk.amx` proved AMX, which includes AVX-512; masks and values are a strip's (`Chunk`, *values*).
                unsafe { expand(masks, values, panel) };
            }
        }
        let lines = [Some(&*a), pair[1].map(|_| &*b)];
        for first in (0..chunk.m).step_by(MR) {
            block(&tiles, chunk, pair, first, sums, |used| {
                multiply(&tiles, chunk, first, used, lines)
            });
        }
    }
}

/// Room for a tile of sums, and the rest.
fn split(scratch: &mut [u8]) -> (&mut Tile, &mut [u8]) {
    scratch
        .split_first_chunk_mut()
        .expect("scratch begins with a tile of sums")
}

/// Computes up to 32 rows of a pair of strips: sums set to zero, `work` called, which adds to them, sums written out.
fn block(
    tiles: &TileScope,
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    sums: &mut Tile,
    work: impl FnOnce(Used),
) {
    let used = Used::of(chunk, pair, first);
    zero_sums(tiles);
    work(used);
    for (t, s) in pair.into_iter().enumerate() {
        let Some(s) = s else { continue };
        for r in 0..1 + usize::from(used.second_rows) {
            let start = first + r * ROWS;
            store_sums(tiles, 2 * r + t, sums);
            let rows = start..chunk.m.min(start + ROWS);
            let sums: &[[f32; STRIP_ROWS]] = bytemuck::cast_slice(sums.as_slice());
            for (i, row) in rows.zip(sums) {
                chunk.put(i, s, *row);
            }
        }
    }
}

/// All of K from lines that are expanded already.
fn multiply(
    tiles: &TileScope,
    chunk: &Chunk<'_>,
    first: usize,
    used: Used,
    lines: [Option<&[u16]>; 2],
) {
    let a = lines[0].expect("a pair has a first strip");
    // A strip that is not there is not read: any tile will do.
    let b = lines[1].unwrap_or(a);
    let [a, b] = [a, b].map(|lines| tiles_of(bytemuck::cast_slice(lines)));
    let (dot, x) = (chunk.amx(), rows(chunk, first, used));
    let count = chunk.k_padded / TILE_K;
    for (t, (a, b)) in a[..count].iter().zip(&b[..count]).enumerate() {
        // SAFETY: `rows` gives whole groups of 16 rows, two if the second is used, of K rounded up to whole tiles.
        unsafe { step(tiles, dot, x.after(t * ROW_BYTES), used, [a, b]) };
    }
}

/// All of K from packed strips, expanded group by group into `scratch`.
fn expand_and_multiply(
    tiles: &TileScope,
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    used: Used,
    scratch: [&mut [u16]; 2],
) {
    let [a, b] = scratch;
    let mut sources = pair.map(|s| s.map(|s| sparse_source(chunk, s)));
    let (dot, x) = (chunk.amx(), rows(chunk, first, used));
    let count = chunk.k_padded / TILE_K;
    for group in (0..count).step_by(GROUP_TILES) {
        let count = GROUP_TILES.min(count - group);
        for (source, out) in sources.iter_mut().zip([&mut *a, &mut *b]) {
            let out = &mut out[..count * TILE_ELEMS];
            // SAFETY: `chunk.amx` proved AMX, which includes AVX-512; a strip has K / 32 tiles (`Chunk`, *lines* and *values*),
            // and those up to `group` are behind.
            let next = |source: SparseLines| unsafe { expand_lines(source, out) };
            *source = source.map(next);
        }
        let [a, b] = [&*a, &*b].map(|lines| tiles_of(bytemuck::cast_slice(lines)));
        for (t, (a, b)) in a[..count].iter().zip(&b[..count]).enumerate() {
            let x = x.after((group + t) * ROW_BYTES);
            // SAFETY: as in `multiply`.
            unsafe { step(tiles, dot, x, used, [a, b]) };
        }
    }
}

/// The activations from row `first` on: a group of 16 rows, two if the second is used.
fn rows(chunk: &Chunk<'_>, first: usize, used: Used) -> BlockRows {
    assert!(!used.second_rows || first + ROWS < chunk.m, "second rows");
    let [x, ..] = chunk.bf16_rows::<ROW_GROUP>(first);
    BlockRows {
        ptr: x.cast(),
        stride: chunk.x.stride * 2,
    }
}
