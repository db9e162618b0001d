//! AVX-512 VNNI: int8 and int4 weights by int8 activations.
//!
//! `vpdpbusd` multiplies unsigned bytes by signed ones, and only the signed operand can be a quad of activations broadcast from
//! memory. So weights are made unsigned by an offset: `sum (w + offset) x = sum w x + offset sum x`, and the sum of x is known.
//! int8 levels take the offset 128, int4 levels 8, which their codes nearly have already.

use std::arch::x86_64::*;

use sparamx_cpu::avx512_vnni_fns;
use sparamx_format::{LINE_ELEMS_I8, STRIP_ROWS};

use crate::linear::chunk::{Chunk, I8Row, StripScales};
use crate::linear::loops::int_panel_bytes;

/// Most rows at a time: 8 rows x 2 sums take 16 of the 32 registers and keep the multiplier busy (latency 4 or 5 cycles).
const MR: usize = 8;

/// Lines of levels of a strip, two at a time: a strip has a multiple of 16 lines, and dense int4 lines lie in pairs.
pub(crate) trait Lines: Copy {
    /// What is added to each level.
    const OFFSET: i32;

    /// The next two lines.
    ///
    /// # Safety
    /// AVX-512 VNNI; there are two more lines, and what [`Chunk`] says of their strip. `#[inline(always)]`.
    unsafe fn next(&mut self) -> [__m512i; 2];
}

/// Lines of bytes, to which OFFSET was added before: panels.
#[derive(Clone, Copy)]
struct Bytes<const OFFSET: i32>(*const u8);

impl<const OFFSET: i32> Lines for Bytes<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: two lines of 64 bytes are there, as required.
        unsafe {
            let even = _mm512_loadu_si512(self.0.cast());
            let odd = _mm512_loadu_si512(self.0.add(LINE_ELEMS_I8).cast());
            self.0 = self.0.add(2 * LINE_ELEMS_I8);
            [even, odd]
        }
    }
}

/// Multiplies each strip straight from its bytes, again for each block of rows.
///
/// # Safety
/// AVX-512 VNNI; `lines` gives a source of all lines of a strip.
#[inline(always)]
pub(super) unsafe fn direct<'a, L: Lines>(
    chunk: &Chunk<'a>,
    lines: impl Fn(&Chunk<'a>, usize) -> L,
) {
    for s in chunk.strips.clone() {
        // SAFETY: the level is required, and that `lines` gives all of strip `s`, which is the chunk's.
        unsafe { in_row_blocks(chunk, lines(chunk, s), s) }
    }
}

/// Expands each strip once, to a panel of bytes in the L2 cache, for all rows.
///
/// # Safety
/// As for [`direct`].
#[inline(always)]
pub(super) unsafe fn panel<'a, L: Lines, const OFFSET: i32>(
    chunk: &Chunk<'a>,
    scratch: &mut [u8],
    lines: impl Fn(&Chunk<'a>, usize) -> L,
) {
    const { assert!(L::OFFSET == OFFSET, "bytes of another offset") };
    assert_eq!(scratch.len(), int_panel_bytes(chunk.k_padded), "scratch");
    for s in chunk.strips.clone() {
        // SAFETY: the level is required, and that `lines` gives all of strip `s`, which is the chunk's; `scratch` is as long as
        // its lines (`int_panel_bytes`, asserted above), and `expand` fills it.
        unsafe {
            expand(lines(chunk, s), scratch);
            in_row_blocks(chunk, Bytes::<OFFSET>(scratch.as_ptr()), s);
        }
    }
}

/// Calls `rows::<_, R>(chunk, lines, s, i)` for blocks of at most [`MR`] rows.
///
/// # Safety
/// AVX-512 VNNI; `lines` yields all of strip `s`, which is the chunk's.
#[inline(always)]
unsafe fn in_row_blocks<L: Lines>(chunk: &Chunk<'_>, lines: L, s: usize) {
    let mut i = 0;
    while i < chunk.m {
        // SAFETY: the level is required, and `lines` yields the strip; as many rows from `i` on are below M as each arm takes.
        i += unsafe {
            match chunk.m - i {
                1 => rows::<_, 1>(chunk, lines, s, i),
                2 => rows::<_, 2>(chunk, lines, s, i),
                3 => rows::<_, 3>(chunk, lines, s, i),
                4 => rows::<_, 4>(chunk, lines, s, i),
                5 => rows::<_, 5>(chunk, lines, s, i),
                6 => rows::<_, 6>(chunk, lines, s, i),
                7 => rows::<_, 7>(chunk, lines, s, i),
                _ => rows::<_, MR>(chunk, lines, s, i),
            }
        };
    }
}

avx512_vnni_fns!(
    /// Writes all lines of a strip, or of whole tiles of it, one after the other: as many as `out` takes.
    ///
    /// # Safety
    /// `lines` yields that many, see [`Lines::next`].
    pub(crate) unsafe fn expand<L: Lines>(mut lines: L, out: &mut [u8]) -> L {
        for out in out.chunks_exact_mut(2 * LINE_ELEMS_I8) {
            // SAFETY: `lines` yields two lines for each of `out`, as required, which are its 128 bytes.
            unsafe {
                let [even, odd] = lines.next();
                _mm512_storeu_si512(out.as_mut_ptr().cast(), even);
                _mm512_storeu_si512(out.as_mut_ptr().add(LINE_ELEMS_I8).cast(), odd);
            }
        }
        lines
    }

    /// `R` rows from `i` on times strip `s`; returns `R`. Even and odd lines are summed apart, so that few rows do not wait for
    /// their own sums; the sums are exact in any order.
    ///
    /// # Safety
    /// `lines` yields all of strip `s`, which is the chunk's; `R` rows from `i` on are below M.
    unsafe fn rows<L: Lines, const R: usize>(
        chunk: &Chunk<'_>,
        mut lines: L,
        s: usize,
        i: usize,
    ) -> usize {
        let x = chunk.i8_rows::<R>(i);
        let (all, group) = (chunk.int_lines(), chunk.group_lines());
        let scales = chunk.strip_scales(s);
        let mut sums = [_mm512_setzero_ps(); R];
        for (g, first) in (0..all).step_by(group).enumerate() {
            let end = all.min(first + group);
            let mut acc = [[_mm512_setzero_si512(); 2]; R];
            for l in (first..end).step_by(2) {
                // SAFETY: `lines` yields lines l and l + 1, as required, and each row, which `i8_rows` gave, has their quads
                // (`Chunk`, *rows*).
                unsafe {
                    let w = lines.next();
                    for (acc, x) in acc.iter_mut().zip(x) {
                        for (parity, acc) in acc.iter_mut().enumerate() {
                            let quad = x.q().cast::<i32>().add(l + parity).read_unaligned();
                            *acc = _mm512_dpbusd_epi32(*acc, w[parity], _mm512_set1_epi32(quad));
                        }
                    }
                }
            }
            let scale = scales_of(scales, g);
            for r in 0..R {
                // SAFETY: `end` is at most `all`, which is a quarter of K rounded up (`Chunk::int_lines`).
                let sum = unsafe { x[r].sum(4 * first..4 * end) };
                let offset = L::OFFSET.wrapping_mul(sum);
                let exact = _mm512_sub_epi32(
                    _mm512_add_epi32(acc[r][0], acc[r][1]),
                    _mm512_set1_epi32(offset),
                );
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
                sums[r] = _mm512_add_ps(sums[r], scaled);
            }
        }
        // SAFETY: the rows are below M and strip `s` is the chunk's, as required.
        unsafe { put(chunk, x, sums, s, i) };
        R
    }

    /// The 16 scales of group `g`.
    pub(crate) fn scales_of(scales: StripScales<'_>, g: usize) -> __m512 {
        match scales {
            StripScales::F32(scales) => {
                let group: &[f32; STRIP_ROWS] = scales.as_chunks().0.get(g).expect("a group");
                // SAFETY: `group` is 16 floats, by its type.
                unsafe { _mm512_loadu_ps(group.as_ptr()) }
            }
            StripScales::Bf16(bits) => {
                let group: &[u16; STRIP_ROWS] = bits.as_chunks().0.get(g).expect("a group");
                // SAFETY: `group` is 32 bytes, by its type.
                let bits = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            }
        }
    }

    /// # Safety
    /// The `R` rows from `i` on are below M; strip `s` is the chunk's.
    unsafe fn put<const R: usize>(
        chunk: &Chunk<'_>,
        x: [I8Row<'_>; R],
        sums: [__m512; R],
        s: usize,
        i: usize,
    ) {
        for r in 0..R {
            // SAFETY: row and strip are the chunk's, as required, and so is that part of the output; a register holds 16 floats.
            unsafe {
                let y = _mm512_mul_ps(sums[r], _mm512_set1_ps(x[r].scale()));
                chunk.out.put(
                    i + r,
                    s,
                    std::mem::transmute::<__m512, [f32; STRIP_ROWS]>(y),
                );
            }
        }
    }
);
