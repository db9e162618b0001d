//! AMX-INT8: int8 and int4 weights by int8 activations, in blocks of 2 x 2 tiles as in bf16.rs.
//!
//! A tile of a strip is 16 lines of signed levels, 64 k. Sums of a group of scales are exact in the tiles; at its end they are
//! stored, scaled and added to f32 sums in memory. Where a group has only 8 lines (32 k) a tile is filled up with zeros.

use std::arch::x86_64::*;

use sparamx_cpu::avx512_vnni_fns;
use sparamx_format::{LINE_BYTES, STRIP_ROWS};

use super::block::{MR, TILE_BYTES, Used, pairs, store_sums};
use crate::amx::tile::{self, ROW_BYTES, ROWS, TileScope};
use crate::linear::activation::ROW_GROUP;
use crate::linear::avx512::int::{Lines, expand, scales_of};
use crate::linear::chunk::{Chunk, StripScales};

/// k of a line.
const LINE_K: usize = 4;
/// Tiles of a strip that are expanded before they are multiplied, as in bf16.rs.
const BATCH_TILES: usize = 8;
/// A stored tile of exact sums, and f32 sums of 32 rows of two strips.
const SUMS_BYTES: usize = TILE_BYTES + 2 * MR * STRIP_ROWS * 4;

/// Scratch of the kernels that expand some tiles at a time, and of the dense one.
pub(crate) fn batch_bytes(_k_padded: usize) -> usize {
    SUMS_BYTES + 2 * BATCH_TILES * TILE_BYTES
}

/// Scratch of the kernels that keep a pair of strips expanded. With 8 lines to a tile a strip takes twice its bytes.
pub(crate) fn panel_pair_bytes(k_padded: usize) -> usize {
    SUMS_BYTES + 2 * tiles_bytes(k_padded)
}

fn tiles_bytes(k_padded: usize) -> usize {
    2 * k_padded * STRIP_ROWS
}

/// Where the tiles of a strip lie in its groups of scales.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    lines: usize,
    group_lines: usize,
    /// Lines of a tile: 16, or the 8 of a short group.
    pub tile_lines: usize,
}

impl Groups {
    pub fn of(chunk: &Chunk<'_>) -> Self {
        let group_lines = chunk.group_lines();
        Self {
            lines: chunk.int_lines(),
            group_lines,
            tile_lines: ROWS.min(group_lines),
        }
    }

    fn tiles(self) -> usize {
        self.lines / self.tile_lines
    }

    fn tiles_per_group(self) -> usize {
        self.group_lines / self.tile_lines
    }
}

pub(super) fn tile_of(lines: &[u8], t: usize) -> &[u8] {
    &lines[t * TILE_BYTES..][..TILE_BYTES]
}

/// Expands [`BATCH_TILES`] tiles of both strips at a time.
///
/// # Safety
/// AMX-INT8; `lines` yields the strips of the chunk.
pub(super) unsafe fn by_batches<'a, L: Lines>(
    chunk: &Chunk<'a>,
    scratch: &mut [u8],
    lines: impl Fn(&Chunk<'a>, usize) -> L,
) {
    let (sums, batch) = scratch.split_at_mut(SUMS_BYTES);
    let groups = Groups::of(chunk);
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        for first in (0..chunk.m).step_by(MR) {
            let mut lines = pair.map(|s| s.map(|s| lines(chunk, s)));
            let (a, b) = batch.split_at_mut(BATCH_TILES * TILE_BYTES);
            let tiles = |t: usize| {
                if t.is_multiple_of(BATCH_TILES) {
                    let count = BATCH_TILES.min(groups.tiles() - t);
                    for (lines, out) in lines.iter_mut().zip([&mut *a, &mut *b]) {
                        // SAFETY: AMX, and so AVX-512 VNNI; `block` asks for each tile once, in order.
                        *lines = lines.map(|l| unsafe { expand_tiles(l, groups, count, out) });
                    }
                }
                [&*a, &*b].map(|l| tile_of(l, t % BATCH_TILES).as_ptr())
            };
            // SAFETY: the caller's promise; the scope is there.
            unsafe { block(chunk, pair, first, sums, tiles) };
        }
    }
}

/// Expands each pair of strips once for all rows.
///
/// # Safety
/// As for [`by_batches`].
pub(super) unsafe fn by_panels<'a, L: Lines>(
    chunk: &Chunk<'a>,
    scratch: &mut [u8],
    lines: impl Fn(&Chunk<'a>, usize) -> L,
) {
    let (sums, panels) = scratch.split_at_mut(SUMS_BYTES);
    let groups = Groups::of(chunk);
    let (a, b) = panels.split_at_mut(tiles_bytes(chunk.k_padded));
    // SAFETY: the caller's promise.
    let _tiles = unsafe { TileScope::new() };
    for pair in pairs(chunk) {
        for (s, out) in pair.into_iter().zip([&mut *a, &mut *b]) {
            if let Some(s) = s {
                // SAFETY: AMX, and so AVX-512 VNNI; a strip has that many tiles.
                unsafe { expand_tiles(lines(chunk, s), groups, groups.tiles(), out) };
            }
        }
        for first in (0..chunk.m).step_by(MR) {
            let tiles = |t: usize| [&*a, &*b].map(|l| tile_of(l, t).as_ptr());
            // SAFETY: the caller's promise; the scope is there.
            unsafe { block(chunk, pair, first, sums, tiles) };
        }
    }
}

/// Expands `count` tiles one after the other, and fills up those of short groups with zeros.
///
/// # Safety
/// AVX-512 VNNI; `lines` yields that many.
unsafe fn expand_tiles<L: Lines>(mut lines: L, groups: Groups, count: usize, out: &mut [u8]) -> L {
    if groups.tile_lines == ROWS {
        // SAFETY: the caller's promise.
        return unsafe { expand(lines, &mut out[..count * TILE_BYTES]) };
    }
    for tile in out.chunks_exact_mut(TILE_BYTES).take(count) {
        let (filled, rest) = tile.split_at_mut(groups.tile_lines * LINE_BYTES);
        // SAFETY: the caller's promise.
        lines = unsafe { expand(lines, filled) };
        rest.fill(0);
    }
    lines
}

/// Computes up to 32 rows of a pair of strips. `tiles(t)` gives the t-th tile of each strip; it is called once for each, in
/// order, and what it gives for a strip that is not there is loaded by nobody.
///
/// # Safety
/// Inside a [`TileScope`]; row `first` exists; the pointers are to whole tiles.
#[inline(always)]
pub(super) unsafe fn block(
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    scratch: &mut [u8],
    mut tiles: impl FnMut(usize) -> [*const u8; 2],
) {
    let used = Used::of(chunk, pair, first);
    let groups = Groups::of(chunk);
    let [x, ..] = chunk.i8_rows::<ROW_GROUP>(first);
    let scales = pair.map(|s| s.map(|s| chunk.strip_scales(s)));
    let (exact, sums) = scratch[..SUMS_BYTES].split_at_mut(TILE_BYTES);
    let sums: &mut [[f32; STRIP_ROWS]] = bytemuck::cast_slice_mut(sums);
    sums.fill([0.0; STRIP_ROWS]);
    let per_group = groups.tiles_per_group();
    for (g, start) in (0..groups.tiles()).step_by(per_group).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            tile::zero::<0>();
            tile::zero::<1>();
            tile::zero::<2>();
            tile::zero::<3>();
            for t in start..groups.tiles().min(start + per_group) {
                let x =
                    x.q.cast::<u8>()
                        .wrapping_add(t * groups.tile_lines * LINE_K);
                step(x, chunk.x.stride, used, tiles(t));
            }
        }
        for (quarter, sums) in sums.chunks_exact_mut(ROWS).enumerate() {
            let (r, t) = (quarter / 2, quarter % 2);
            if let Some(scales) = scales[t]
                && (r == 0 || used.second_rows)
            {
                // SAFETY: the caller's promise; AMX includes AVX-512.
                unsafe {
                    store_sums(quarter, exact);
                    add_scaled(exact, scales, g, sums);
                }
            }
        }
    }
    for (quarter, sums) in sums.chunks_exact(ROWS).enumerate() {
        let (start, t) = (first + quarter / 2 * ROWS, quarter % 2);
        let Some(s) = pair[t] else { continue };
        for (i, sums) in (start..chunk.m.min(start + ROWS)).zip(sums) {
            let [x] = chunk.i8_rows::<1>(i);
            // SAFETY: row and strip are the chunk's.
            unsafe { chunk.out.put(i, s, sums.map(|sum| sum * x.scale())) };
        }
    }
}

/// Activations of one tile, rows `stride` bytes apart, times a tile of each strip.
///
/// # Safety
/// As for [`block`]; `x` is of whole groups of 16 rows, as many as `used` says.
#[inline(always)]
unsafe fn step(x: *const u8, stride: usize, used: Used, weights: [*const u8; 2]) {
    // SAFETY: the caller's promise; int8 activations come in whole groups of 16 rows. A short group's tile reads 32 k more
    // than it has, by zeros: they are the next group's or, after the last, the scale and the sums behind the elements.
    unsafe {
        tile::load::<4>(x, stride);
        tile::load::<6>(weights[0], LINE_BYTES);
        tile::dot_i8::<0, 4, 6>();
        if used.second_strip {
            tile::load::<7>(weights[1], LINE_BYTES);
            tile::dot_i8::<1, 4, 7>();
        }
        if used.second_rows {
            tile::load::<5>(x.wrapping_add(ROWS * stride), stride);
            tile::dot_i8::<2, 5, 6>();
            if used.second_strip {
                tile::dot_i8::<3, 5, 7>();
            }
        }
    }
}

avx512_vnni_fns!(
    /// `sums[i][j] += exact[i][j] * scale[j]` with the scales of group `g`.
    fn add_scaled(exact: &[u8], scales: StripScales<'_>, g: usize, sums: &mut [[f32; STRIP_ROWS]]) {
        let scale = scales_of(scales, g);
        for (sums, exact) in sums.iter_mut().zip(exact.chunks_exact(ROW_BYTES)) {
            // SAFETY: 16 values of 4 bytes each.
            unsafe {
                let exact = _mm512_cvtepi32_ps(_mm512_loadu_si512(exact.as_ptr().cast()));
                let scaled = _mm512_mul_ps(exact, scale);
                let sum = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), scaled);
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
);
