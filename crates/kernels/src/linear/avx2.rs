//! AVX2 and FMA: activations stay f32, bf16 weights are widened to f32 by putting them into the upper halves of the lanes.

#![expect(
    clippy::needless_range_loop,
    reason = "the sums of a row are picked by the number of a half or a group"
)]

use std::arch::x86_64::*;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_ELEMS_BF16, STRIP_ROWS};

use super::chunk::Chunk;
use super::schedule::{dense, panels};

/// How far ahead of use weights are asked for. The hardware's own prefetcher stays behind when a thread reads two streams of
/// different speed, masks and values: without this, packed decode is a fifth slower (Zen 3).
const PREFETCH_BYTES: usize = 4096;

/// Rows of a dense multiplication: 3 rows x 4 sums fill 12 of the 16 registers.
const MR: usize = 3;

/// Dense bf16 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn dense_3x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { dense(chunk, multiply) }
}

/// Packed bf16 weights, expanded once to panels, for many rows.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_panel_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { panels(chunk, scratch, expand, multiply) }
}

/// Packed bf16 weights straight from the packed bytes, one or two rows at a time.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_2x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    for s in chunk.strips.clone() {
        let mut i = 0;
        while i < chunk.m {
            // SAFETY: the caller's promise; rows i.. exist.
            i += unsafe {
                match chunk.m - i {
                    1 => sparse_rows::<1>(chunk, s, i),
                    _ => sparse_rows::<2>(chunk, s, i),
                }
            };
        }
    }
}

/// [`super::schedule::Multiply`]
unsafe fn multiply(chunk: &Chunk<'_>, lines: &[u16], s: usize) {
    let mut i = 0;
    while i < chunk.m {
        // SAFETY: AVX2 by the caller's promise; rows i.. exist.
        i += unsafe {
            match chunk.m - i {
                1 => dense_rows::<1>(chunk, lines, s, i),
                2 => dense_rows::<2>(chunk, lines, s, i),
                _ => dense_rows::<MR>(chunk, lines, s, i),
            }
        };
    }
}

/// Controls of `vpshufb` that put the r-th value of a load into the place of the r-th set bit of a mask byte, zero elsewhere.
/// `WIDEN`: the load lies in both halves of the register and values go to the upper halves of eight f32 lanes.
const fn controls<const BYTES: usize>(widen: bool) -> [[u8; BYTES]; 256] {
    let mut table = [[0x80; BYTES]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut place, mut rank) = (0, 0);
        while place < 8 {
            if mask >> place & 1 == 1 {
                let at = if widen { 4 * place + 2 } else { 2 * place };
                table[mask][at] = 2 * rank;
                table[mask][at + 1] = 2 * rank + 1;
                rank += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    table
}

#[repr(align(64))]
struct Table<T>(T);
/// 8 KiB, a quarter of the L1 cache.
static WIDEN: Table<[[u8; 32]; 256]> = Table(controls(true));
/// 4 KiB.
static SPREAD: Table<[[u8; 16]; 256]> = Table(controls(false));

avx2_fns!(
    /// `R` rows from `i` on times a dense strip; returns `R`. Sums: per row and 8 outputs one of even k and one of odd k.
    ///
    /// # Safety
    /// `lines` is a strip of the chunk's K.
    unsafe fn dense_rows<const R: usize>(
        chunk: &Chunk<'_>,
        lines: &[u16],
        s: usize,
        i: usize,
    ) -> usize {
        assert_eq!(lines.len(), chunk.strip_elems());
        let x = chunk.f32_rows::<R>(i);
        let odd_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut acc = [[_mm256_setzero_ps(); 4]; R];
        for l in 0..chunk.lines() {
            // SAFETY: line l is in `lines`, elements 2 l and 2 l + 1 in each row. A prefetch may name any address.
            unsafe {
                let line = lines.as_ptr().add(l * LINE_ELEMS_BF16);
                _mm_prefetch::<_MM_HINT_T0>(line.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                for half in 0..2 {
                    let w = _mm256_loadu_si256(line.add(16 * half).cast());
                    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
                    let odd = _mm256_castsi256_ps(_mm256_and_si256(w, odd_half));
                    for r in 0..R {
                        acc[r][2 * half] = _mm256_fmadd_ps(
                            even,
                            _mm256_broadcast_ss(&*x[r].add(2 * l)),
                            acc[r][2 * half],
                        );
                        acc[r][2 * half + 1] = _mm256_fmadd_ps(
                            odd,
                            _mm256_broadcast_ss(&*x[r].add(2 * l + 1)),
                            acc[r][2 * half + 1],
                        );
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let halves = [_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])];
            // SAFETY: two registers of 8 floats are 16 floats. Row and strip are the chunk's.
            unsafe {
                chunk.out.put(
                    i + r,
                    s,
                    std::mem::transmute::<[__m256; 2], [f32; STRIP_ROWS]>(halves),
                )
            };
        }
        R
    }

    /// `R` rows from `i` on times packed strip `s`; returns `R`.
    ///
    /// A line goes in four groups of 8 elements (4 outputs x 2 k): one table look-up, one shuffle, and per row one FMA with the
    /// k-pair in all lanes. So even and odd k are summed in alternate lanes, in the same order as in `dense_rows`.
    ///
    /// # Safety
    /// The strip is valid: as many values as bits, and 64 bytes of slack.
    unsafe fn sparse_rows<const R: usize>(chunk: &Chunk<'_>, s: usize, i: usize) -> usize {
        let (masks, values) = chunk.sparse_strip(s);
        let x = chunk.f32_rows::<R>(i);
        let mut value = values.as_ptr();
        let mut acc = [[_mm256_setzero_ps(); 4]; R];
        for (l, mask_ref) in masks.iter().enumerate() {
            let mask = *mask_ref as usize;
            // SAFETY: loads begin at a value of the strip or one past its last, and 64 bytes from there are in the tensor;
            // elements 2 l and 2 l + 1 are in each row.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(
                    (&raw const *mask_ref)
                        .cast::<i8>()
                        .wrapping_add(PREFETCH_BYTES),
                );
                _mm_prefetch::<_MM_HINT_T0>(value.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                let pair: [__m256; R] = std::array::from_fn(|r| {
                    _mm256_castpd_ps(_mm256_broadcast_sd(
                        &x[r].add(2 * l).cast::<f64>().read_unaligned(),
                    ))
                });
                for group in 0..4 {
                    let skip = (mask & ((1 << (8 * group)) - 1)).count_ones() as usize;
                    let load = _mm256_broadcastsi128_si256(_mm_loadu_si128(value.add(skip).cast()));
                    let control =
                        _mm256_load_si256(WIDEN.0[mask >> (8 * group) & 255].as_ptr().cast());
                    let w = _mm256_castsi256_ps(_mm256_shuffle_epi8(load, control));
                    for r in 0..R {
                        acc[r][group] = _mm256_fmadd_ps(w, pair[r], acc[r][group]);
                    }
                }
                value = value.add(mask.count_ones() as usize);
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            // SAFETY: four registers of 8 floats are 32 floats.
            let lanes = unsafe { std::mem::transmute::<[__m256; 4], [f32; 2 * STRIP_ROWS]>(*acc) };
            // SAFETY: row and strip are the chunk's.
            unsafe {
                chunk.out.put(
                    i + r,
                    s,
                    std::array::from_fn(|j| lanes[2 * j] + lanes[2 * j + 1]),
                )
            };
        }
        R
    }

    /// [`super::schedule::Expand`]: 8 elements at a time.
    ///
    /// # Safety
    /// AVX2 level; the strip is valid.
    unsafe fn expand(masks: &[u32], values: &[u16], panel: &mut [u16]) {
        assert_eq!(panel.len(), masks.len() * LINE_ELEMS_BF16);
        let mut value = values.as_ptr();
        for (mask_ref, line) in masks.iter().zip(panel.chunks_exact_mut(LINE_ELEMS_BF16)) {
            let mask = *mask_ref as usize;
            // SAFETY: as in `sparse_rows`; a line takes four stores of 16 bytes.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(
                    (&raw const *mask_ref)
                        .cast::<i8>()
                        .wrapping_add(PREFETCH_BYTES),
                );
                _mm_prefetch::<_MM_HINT_T0>(value.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                for group in 0..4 {
                    let skip = (mask & ((1 << (8 * group)) - 1)).count_ones() as usize;
                    let load = _mm_loadu_si128(value.add(skip).cast());
                    let control =
                        _mm_load_si128(SPREAD.0[mask >> (8 * group) & 255].as_ptr().cast());
                    _mm_storeu_si128(
                        line.as_mut_ptr().add(8 * group).cast(),
                        _mm_shuffle_epi8(load, control),
                    );
                }
                value = value.add(mask.count_ones() as usize);
            }
        }
    }
);
