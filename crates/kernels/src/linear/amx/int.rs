//! AMX-INT8: int8 and int4 weights by int8 activations, in blocks of 2 x 2 tiles as in bf16.rs.
//!
//! A tile of a strip is 16 lines of signed levels, 64 k. Sums of a group of scales are exact in the tiles; at its end they are
//! stored, scaled and added to f32 sums in memory. Where a group has only 8 lines (32 k) a tile is filled up with zeros.

use std::arch::x86_64::*;

use sparamx_cpu::avx512_vnni_fns;
use sparamx_format::{LINE_BYTES, STRIP_ROWS};

use super::block::{BlockRows, MR, Used, pairs, step, store_sums, tiles_of, zero_sums};
use crate::amx::tile::{ROW_BYTES, ROWS, TILE_BYTES, Tile, TileScope};
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

/// The tiles of a pair of strips, one after the other.
trait Tiles {
    /// The `t`-th tile of each strip. What it gives for a strip that is not there is not used.
    ///
    /// # Safety
    /// AVX-512 VNNI; called for each tile of the strips once, in order.
    unsafe fn pair(&mut self, t: usize) -> [&Tile; 2];
}

/// Tiles that lie in memory.
struct Kept<'a>([&'a [Tile]; 2]);

impl Tiles for Kept<'_> {
    #[inline(always)]
    unsafe fn pair(&mut self, t: usize) -> [&Tile; 2] {
        self.0.map(|tiles| &tiles[t])
    }
}

/// Tiles that are expanded [`BATCH_TILES`] at a time.
struct Batches<'a, L> {
    groups: Groups,
    /// Sources of whole strips.
    lines: [Option<L>; 2],
    out: [&'a mut [u8]; 2],
}

impl<L: Lines> Tiles for Batches<'_, L> {
    #[inline(always)]
    unsafe fn pair(&mut self, t: usize) -> [&Tile; 2] {
        if t.is_multiple_of(BATCH_TILES) {
            let count = BATCH_TILES.min(self.groups.tiles() - t);
            for (lines, out) in self.lines.iter_mut().zip(&mut self.out) {
                // SAFETY: AVX-512 VNNI is required. The sources were of whole strips, and tiles are asked for in order, as
                // required, so `count` are left.
                *lines = lines.map(|l| unsafe { expand_tiles(l, self.groups, count, out) });
            }
        }
        let [a, b] = &self.out;
        [a, b].map(|out| &tiles_of(out)[t % BATCH_TILES])
    }
}

/// Multiplies tiles where they lie: `lines` gives those of a strip.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI.
#[inline(never)] // bench/mca finds its loops by its name.
pub(super) unsafe fn dense<'a>(
    chunk: &Chunk<'a>,
    scratch: &mut [u8],
    lines: impl Fn(usize) -> &'a [u8],
) {
    let tiles = TileScope::new(chunk.amx_int8().amx());
    for pair in pairs(chunk) {
        let first_strip = pair[0].expect("a pair has a first strip");
        let lines = pair.map(|s| tiles_of(lines(s.unwrap_or(first_strip))));
        for first in (0..chunk.m).step_by(MR) {
            // SAFETY: the levels are there, as required.
            unsafe { block(&tiles, chunk, pair, first, scratch, Kept(lines)) };
        }
    }
}

/// Expands [`BATCH_TILES`] tiles of both strips at a time.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI; `lines` gives a source of all lines of a strip.
#[inline(never)] // bench/mca finds its loops by its name.
pub(super) unsafe fn by_batches<'a, L: Lines>(
    chunk: &Chunk<'a>,
    scratch: &mut [u8],
    lines: impl Fn(&Chunk<'a>, usize) -> L,
) {
    let (sums, batch) = scratch.split_at_mut(SUMS_BYTES);
    let groups = Groups::of(chunk);
    let tiles = TileScope::new(chunk.amx_int8().amx());
    for pair in pairs(chunk) {
        for first in (0..chunk.m).step_by(MR) {
            let (a, b) = batch.split_at_mut(BATCH_TILES * TILE_BYTES);
            let batches = Batches {
                groups,
                lines: pair.map(|s| s.map(|s| lines(chunk, s))),
                out: [a, b],
            };
            // SAFETY: the levels are there, and `lines` gives whole strips, as required.
            unsafe { block(&tiles, chunk, pair, first, sums, batches) };
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
    let tiles = TileScope::new(chunk.amx_int8().amx());
    for pair in pairs(chunk) {
        for (s, out) in pair.into_iter().zip([&mut *a, &mut *b]) {
            if let Some(s) = s {
                // SAFETY: AVX-512 VNNI is required, and that `lines` gives all lines of the strip, which are so many tiles.
                unsafe { expand_tiles(lines(chunk, s), groups, groups.tiles(), out) };
            }
        }
        for first in (0..chunk.m).step_by(MR) {
            let panels = Kept([&*a, &*b].map(tiles_of));
            // SAFETY: the levels are there, as required.
            unsafe { block(&tiles, chunk, pair, first, sums, panels) };
        }
    }
}

/// Expands `count` tiles one after the other, and fills up those of short groups with zeros.
///
/// # Safety
/// AVX-512 VNNI; `lines` yields that many.
unsafe fn expand_tiles<L: Lines>(mut lines: L, groups: Groups, count: usize, out: &mut [u8]) -> L {
    if groups.tile_lines == ROWS {
        // SAFETY: AVX-512 VNNI and the lines of `count` tiles are required.
        return unsafe { expand(lines, &mut out[..count * TILE_BYTES]) };
    }
    for tile in out.chunks_exact_mut(TILE_BYTES).take(count) {
        let (filled, rest) = tile.split_at_mut(groups.tile_lines * LINE_BYTES);
        // SAFETY: as above; `tile_lines` of each tile.
        lines = unsafe { expand(lines, filled) };
        rest.fill(0);
    }
    lines
}

/// Computes up to 32 rows of a pair of strips.
///
/// # Safety
/// AMX-INT8 and AVX-512 VNNI; `weights` are the tiles of the strips from the first on.
#[inline(always)]
unsafe fn block(
    tiles: &TileScope,
    chunk: &Chunk<'_>,
    pair: [Option<usize>; 2],
    first: usize,
    scratch: &mut [u8],
    mut weights: impl Tiles,
) {
    let used = Used::of(chunk, pair, first);
    let (dot, groups) = (chunk.amx_int8(), Groups::of(chunk));
    let [x, ..] = chunk.i8_rows::<ROW_GROUP>(first);
    let x = BlockRows {
        ptr: x.q().cast(),
        stride: chunk.x.stride,
    };
    let scales = pair.map(|s| s.map(|s| chunk.strip_scales(s)));
    let (exact, sums) = scratch[..SUMS_BYTES]
        .split_first_chunk_mut::<TILE_BYTES>()
        .expect("scratch begins with a tile of sums");
    let sums: &mut [[f32; STRIP_ROWS]] = bytemuck::cast_slice_mut(sums);
    sums.fill([0.0; STRIP_ROWS]);
    let per_group = groups.tiles_per_group();
    for (g, start) in (0..groups.tiles()).step_by(per_group).enumerate() {
        zero_sums(tiles);
        for t in start..groups.tiles().min(start + per_group) {
            let x = x.after(t * groups.tile_lines * LINE_K);
            // SAFETY: tiles are asked for once, in order. `i8_rows` gave a whole group of 16 rows, and if the second is used
            // there are more than 16 rows, and so another whole group. A short group's tile reads 32 k more than it has, by
            // zeros: they are the next group's or, after the last, the scale and the sums behind the elements, which
            // `Activation::row_bytes` fills up to whole lines.
            unsafe { step(tiles, dot, x, used, weights.pair(t)) };
        }
        for (quarter, sums) in sums.chunks_exact_mut(ROWS).enumerate() {
            let (r, t) = (quarter / 2, quarter % 2);
            if let Some(scales) = scales[t]
                && (r == 0 || used.second_rows)
            {
                store_sums(tiles, quarter, exact);
                // SAFETY: AVX-512 VNNI is required.
                unsafe { add_scaled(exact, scales, g, sums) };
            }
        }
    }
    for (quarter, sums) in sums.chunks_exact(ROWS).enumerate() {
        let (start, t) = (first + quarter / 2 * ROWS, quarter % 2);
        let Some(s) = pair[t] else { continue };
        for (i, sums) in (start..chunk.m.min(start + ROWS)).zip(sums) {
            let [x] = chunk.i8_rows::<1>(i);
            chunk.put(i, s, sums.map(|sum| sum * x.scale()));
        }
    }
}

avx512_vnni_fns!(
    /// `sums[i][j] += exact[i][j] * scale[j]` with the scales of group `g`.
    fn add_scaled(exact: &Tile, scales: StripScales<'_>, g: usize, sums: &mut [[f32; STRIP_ROWS]]) {
        let scale = scales_of(scales, g);
        for (sums, exact) in sums.iter_mut().zip(exact.chunks_exact(ROW_BYTES)) {
            // SAFETY: `exact` and `sums` are 64 bytes each, by their types and by `chunks_exact`.
            unsafe {
                let exact = _mm512_cvtepi32_ps(_mm512_loadu_si512(exact.as_ptr().cast()));
                let scaled = _mm512_mul_ps(exact, scale);
                let sum = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), scaled);
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
);
