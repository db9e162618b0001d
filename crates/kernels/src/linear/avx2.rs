//! AVX2 and FMA: activations stay f32, bf16 weights are widened to f32 by putting them into the upper halves of the lanes.
//!
//! One loop nest serves every M, dense and packed weights alike:
//!
//! ```text
//! for each block of rows, strip, block of k:
//!     multiply the first rows, widening each line in registers; if more rows follow, keep the lines as f32 in the L1 cache
//!     multiply the other rows by the lines kept
//! ```
//!
//! Between blocks of k the sums wait in memory as they are, so each output is summed up in one order whatever M is.

use std::arch::x86_64::*;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_ELEMS_BF16, STRIP_ROWS};

use super::chunk::Chunk;

/// How far ahead of use weights are asked for. The hardware's own prefetcher stays behind when a thread reads two streams of
/// different speed, masks and values: without this, packed decode is a fifth slower (Zen 3).
const PREFETCH_BYTES: usize = 4096;

/// Most rows at a time: 3 rows x 4 sums, 3 pairs of activations and one weight are all 16 registers.
const MR: usize = 3;

/// Lines of a block of k: 16 KiB as f32, half of the L1 cache, and the activations of three rows beside them.
const BLOCK_LINES: usize = 128;

/// Rows of a block: their sums take 32 KiB, and expanding a line again for each block is a fiftieth of the work on it.
const BLOCK_ROWS: usize = 256;

/// Registers of a line, and of the sums of a row: 8 lanes are 4 outputs x 2 k.
const GROUPS: usize = 4;

/// The sums of a row and strip: lane 2j + p of all is output j, even k (p = 0) or odd (p = 1).
type Sums = [__m256; GROUPS];

/// Floats of a line, and of the sums of a row.
const LINE_FLOATS: usize = LINE_ELEMS_BF16;

/// Bytes of scratch of all kernels here: the lines of a block, then the sums of its rows.
pub(crate) fn block_bytes(_k_padded: usize) -> usize {
    (BLOCK_LINES + BLOCK_ROWS) * LINE_FLOATS * size_of::<f32>()
}

/// Lines of a strip, one after the other, as f32.
trait Lines {
    /// Where a line is.
    type Line: Copy;

    /// The next line.
    ///
    /// # Safety
    /// AVX2 level; there is a next line.
    unsafe fn next(&mut self) -> Self::Line;

    /// Eight elements of a line: register `group` in the order of [`Sums`]. One at a time, as there are registers for one.
    ///
    /// # Safety
    /// AVX2 level; `group` is less than [`GROUPS`].
    unsafe fn group(line: Self::Line, group: usize) -> __m256;
}

/// Controls of `vpshufb` that put the r-th value of a 16-byte load, which lies in both halves of the register, into the upper
/// half of the f32 lane of the r-th set bit of a mask byte, and zero into all others. 8 KiB, a quarter of the L1 cache.
#[repr(align(64))]
struct Controls([[u8; 32]; 256]);

static WIDEN: Controls = {
    let mut table = [[0x80; 32]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut place, mut rank) = (0, 0);
        while place < 8 {
            if mask >> place & 1 == 1 {
                table[mask][4 * place + 2] = 2 * rank;
                table[mask][4 * place + 3] = 2 * rank + 1;
                rank += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    Controls(table)
};

/// Dense bf16.
struct Dense(*const u16);

impl Lines for Dense {
    type Line = *const u16;

    #[inline(always)]
    unsafe fn next(&mut self) -> Self::Line {
        let line = self.0;
        // SAFETY: the caller's promise. A prefetch may name any address.
        unsafe {
            self.0 = line.add(LINE_ELEMS_BF16);
            _mm_prefetch::<_MM_HINT_T0>(line.cast::<i8>().wrapping_add(PREFETCH_BYTES));
        }
        line
    }

    /// No constant is needed, for which there is no register.
    #[inline(always)]
    unsafe fn group(line: Self::Line, group: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(line.add(8 * group).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
}

/// Packed bf16: one table look-up and one shuffle for 8 elements.
struct Sparse {
    mask: *const u32,
    value: *const u16,
}

impl Lines for Sparse {
    /// The mask, and where the values start.
    type Line = (usize, *const u16);

    #[inline(always)]
    unsafe fn next(&mut self) -> Self::Line {
        // SAFETY: the caller's promise. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.mask.cast::<i8>().wrapping_add(PREFETCH_BYTES));
            _mm_prefetch::<_MM_HINT_T0>(self.value.cast::<i8>().wrapping_add(PREFETCH_BYTES));
            let line = (*self.mask as usize, self.value);
            self.mask = self.mask.add(1);
            self.value = self.value.add(line.0.count_ones() as usize);
            line
        }
    }

    #[inline(always)]
    unsafe fn group((mask, value): Self::Line, group: usize) -> __m256 {
        let skip = (mask & ((1 << (8 * group)) - 1)).count_ones() as usize;
        // SAFETY: the load begins at a value of the strip or one past its last, and 64 bytes from there are in the tensor;
        // the table has an entry for each byte.
        unsafe {
            let values = _mm256_broadcastsi128_si256(_mm_loadu_si128(value.add(skip).cast()));
            let control = WIDEN.0[mask >> (8 * group) & 255].as_ptr();
            _mm256_castsi256_ps(_mm256_shuffle_epi8(
                values,
                _mm256_load_si256(control.cast()),
            ))
        }
    }
}

/// Lines kept as f32.
struct Kept(*const f32);

impl Lines for Kept {
    type Line = *const f32;

    #[inline(always)]
    unsafe fn next(&mut self) -> Self::Line {
        let line = self.0;
        // SAFETY: the caller's promise.
        self.0 = unsafe { line.add(LINE_FLOATS) };
        line
    }

    #[inline(always)]
    unsafe fn group(line: Self::Line, group: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(line.add(8 * group)) }
    }
}

/// Dense bf16 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn dense_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { strips(chunk, scratch, |s| Dense(chunk.dense_strip(s).as_ptr())) }
}

/// Packed bf16 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let lines = |s| {
        let (masks, values) = chunk.sparse_strip(s);
        Sparse {
            mask: masks.as_ptr(),
            value: values.as_ptr(),
        }
    };
    // SAFETY: the caller's promise.
    unsafe { strips(chunk, scratch, lines) }
}

/// How many of `rest` rows to take at a time. A single row, with four sums under way, would wait for its own sums, so it is
/// avoided.
fn rows_of(rest: usize) -> usize {
    match rest {
        1 | 2 => rest,
        4 => 2,
        _ => MR,
    }
}

/// The loop nest.
///
/// # Safety
/// AVX2 level; `lines` gives all lines of a strip.
unsafe fn strips<L: Lines>(chunk: &Chunk<'_>, scratch: &mut [u8], lines: impl Fn(usize) -> L) {
    assert_eq!(scratch.len(), block_bytes(chunk.k_padded));
    let (kept, sums) =
        bytemuck::cast_slice_mut::<u8, f32>(scratch).split_at_mut(BLOCK_LINES * LINE_FLOATS);
    for first in (0..chunk.m).step_by(BLOCK_ROWS) {
        let end = chunk.m.min(first + BLOCK_ROWS);
        for s in chunk.strips.clone() {
            // SAFETY: the caller's promise; the rows are there, and their sums and a block of lines fit the scratch.
            unsafe { row_block(chunk, s, first..end, lines(s), kept, sums) }
        }
    }
}

/// Rows `rows` times strip `s`.
///
/// # Safety
/// AVX2 level; `lines` yields the strip; `kept` takes a block of lines and `sums` the sums of the rows.
unsafe fn row_block<L: Lines>(
    chunk: &Chunk<'_>,
    s: usize,
    rows: std::ops::Range<usize>,
    mut lines: L,
    kept: &mut [f32],
    sums: &mut [f32],
) {
    let all = chunk.lines();
    let first_rows = rows_of(rows.len());
    let one_pass = first_rows == rows.len();
    let block_lines = if one_pass { all } else { BLOCK_LINES };
    for from in (0..all).step_by(block_lines) {
        let to = all.min(from + block_lines);
        let mut block = Block {
            chunk,
            s,
            from,
            to,
            first_row: rows.start,
            sums: sums.as_mut_ptr(),
        };
        // SAFETY: the caller's promise: there are to - from more lines, and room for them unless one pass is all.
        unsafe {
            let mut i = rows.start;
            let keep = kept.as_mut_ptr();
            match (first_rows, one_pass) {
                (1, _) => block.multiply::<L, 1, false>(i, &mut lines, keep),
                (2, true) => block.multiply::<L, 2, false>(i, &mut lines, keep),
                (2, false) => block.multiply::<L, 2, true>(i, &mut lines, keep),
                (_, true) => block.multiply::<L, MR, false>(i, &mut lines, keep),
                (_, false) => block.multiply::<L, MR, true>(i, &mut lines, keep),
            }
            i += first_rows;
            while i < rows.end {
                let mut lines = Kept(keep);
                let count = rows_of(rows.end - i);
                match count {
                    1 => block.multiply::<_, 1, false>(i, &mut lines, keep),
                    2 => block.multiply::<_, 2, false>(i, &mut lines, keep),
                    _ => block.multiply::<_, MR, false>(i, &mut lines, keep),
                }
                i += count;
            }
        }
    }
}

/// Lines `from..to` of strip `s`.
struct Block<'a> {
    chunk: &'a Chunk<'a>,
    s: usize,
    from: usize,
    to: usize,
    /// The row whose sums come first in `sums`.
    first_row: usize,
    sums: *mut f32,
}

impl Block<'_> {
    avx2_fns!(
        /// `R` rows from `i` on; KEEP writes the lines to `keep` too.
        ///
        /// # Safety
        /// `lines` yields the lines of the block; `keep` takes them; the sums of the rows are in `sums`.
        unsafe fn multiply<L: Lines, const R: usize, const KEEP: bool>(
            &mut self,
            i: usize,
            lines: &mut L,
            keep: *mut f32,
        ) {
            let x = self.chunk.f32_rows::<R>(i);
            let at = |r: usize| {
                self.sums
                    .wrapping_add((i - self.first_row + r) * LINE_FLOATS)
            };
            let mut acc = [[_mm256_setzero_ps(); GROUPS]; R];
            if self.from > 0 {
                // SAFETY: the caller's promise.
                acc = std::array::from_fn(|r| {
                    std::array::from_fn(|g| unsafe { Kept::group(at(r), g) })
                });
            }
            let mut keep = keep;
            for l in self.from..self.to {
                // SAFETY: the caller's promise; elements 2 l and 2 l + 1 are in each row.
                unsafe {
                    let line = lines.next();
                    let pair: [__m256; R] = std::array::from_fn(|r| {
                        _mm256_castpd_ps(_mm256_broadcast_sd(
                            &x[r].add(2 * l).cast::<f64>().read_unaligned(),
                        ))
                    });
                    for group in 0..GROUPS {
                        let w = L::group(line, group);
                        if KEEP {
                            _mm256_storeu_ps(keep.add(8 * group), w);
                        }
                        for r in 0..R {
                            acc[r][group] = _mm256_fmadd_ps(w, pair[r], acc[r][group]);
                        }
                    }
                    if KEEP {
                        keep = keep.add(LINE_FLOATS);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                // SAFETY: the caller's promise; row and strip are the chunk's.
                unsafe {
                    if self.to == self.chunk.lines() {
                        self.chunk.out.put(i + r, self.s, outputs(acc));
                    } else {
                        for (group, acc) in acc.into_iter().enumerate() {
                            _mm256_storeu_ps(at(r).add(8 * group), acc);
                        }
                    }
                }
            }
        }
    );
}

avx2_fns!(
    /// Even and odd k of each output added.
    fn outputs(sums: Sums) -> [f32; STRIP_ROWS] {
        let [a, b, c, d] = sums;
        let halves = [_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)].map(|pairs| {
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(
                pairs,
            )))
        });
        // SAFETY: two registers of 8 floats are 16 floats.
        unsafe { std::mem::transmute::<[__m256; 2], [f32; STRIP_ROWS]>(halves) }
    }
);
