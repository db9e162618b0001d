//! AVX2: int8 weights by int8 activations.
//!
//! Both are widened to 16 bits: `vpmaddwd` makes exact 32-bit sums of two products. To multiply bytes, `vpmaddubsw` wants one
//! operand unsigned and its 16-bit sums widened at once: four instructions for 32 products as well, and on Zen 4 6.4 cycles for
//! four such quadruples where eight pairs of `vpmaddwd` and `vpaddd` take 5.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use sparamx_cpu::avx2_fns;
use sparamx_format::LINE_ELEMS_I8;

use super::avx2_int::{ROW_BYTES, RowSums, end_group, no_sums, prefetch, put, scales_of, spread};
use super::chunk::Chunk;
use super::schedule::{BLOCK_LINES, BLOCK_ROWS, Blocked, Span, blocked};

/// Lines between prefetches: a line has 8 bytes of mask, and to ask for them each time is a load that M = 1 has no room for.
/// Strips and groups of scales are whole times 8 lines.
const UNROLL: usize = 4;

/// Bytes of scratch of the kernels here: a block of lines in 16 bits, then the sums of its rows.
pub(crate) fn block_bytes(_k_padded: usize) -> usize {
    BLOCK_LINES * LINE_ELEMS_I8 * 2 + BLOCK_ROWS * ROW_BYTES
}

/// Registers of a line of 16-bit levels: 16 lanes are 4 outputs x 4 k.
const GROUPS: usize = 4;

/// Most rows of 16-bit activations at a time: 3 rows x 4 sums, their activations and a product are all 16 registers.
const MR: usize = 3;

/// Lines of a strip as 16-bit levels, register after register.
trait Wide: Copy {
    /// Asks for what comes later. To be called every [`UNROLL`] lines.
    fn prefetch(&self);

    /// The next 16 elements.
    ///
    /// # Safety
    /// AVX2 level; there are more.
    unsafe fn next(&mut self) -> __m256i;
}

/// [`Wide`] lines of a weight.
trait Strip: Wide {
    /// The first line of strip `s`.
    fn new(chunk: &Chunk<'_>, s: usize) -> Self;
}

/// Dense int8.
#[derive(Clone, Copy)]
struct Dense(*const i8);

impl Wide for Dense {
    #[inline(always)]
    fn prefetch(&self) {
        for line in 0..UNROLL {
            prefetch(self.0, line * LINE_ELEMS_I8);
        }
    }

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let levels = _mm_loadu_si128(self.0.cast());
            self.0 = self.0.add(16);
            _mm256_cvtepi8_epi16(levels)
        }
    }
}

impl Strip for Dense {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self(chunk.dense_i8_strip(s).as_ptr())
    }
}

/// Packed int8.
#[derive(Clone, Copy)]
struct Sparse {
    /// Bytes of masks, the first with the lowest bits: x86 stores them so.
    bits: *const u8,
    value: *const i8,
}

impl Wide for Sparse {
    /// Up to half of the values there can be.
    #[inline(always)]
    fn prefetch(&self) {
        prefetch(self.bits, 0);
        prefetch(self.value, 0);
        prefetch(self.value, 64);
    }

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: 64 bytes from any value of a strip, or from behind its last, are in the tensor.
        unsafe { _mm256_cvtepi8_epi16(spread(&mut self.value, &mut self.bits)) }
    }
}

impl Strip for Sparse {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        let (masks, values) = chunk.sparse_i8_strip(s);
        Self {
            bits: masks.as_ptr().cast(),
            value: values.as_ptr(),
        }
    }
}

/// Lines kept in 16 bits.
#[derive(Clone, Copy)]
struct Kept(*const i16);

impl Wide for Kept {
    #[inline(always)]
    fn prefetch(&self) {}

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let levels = _mm256_loadu_si256(self.0.cast());
            self.0 = self.0.add(16);
            levels
        }
    }
}

/// Dense int8 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn dense_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &Words::<Dense>::new(chunk, scratch),
        )
    }
}

/// Packed int8 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &Words::<Sparse>::new(chunk, scratch),
        )
    }
}

/// The kernel for weights whose lines are `L`.
struct Words<'a, L> {
    chunk: &'a Chunk<'a>,
    /// Room for [`BLOCK_LINES`].
    keep: *mut i16,
    /// Room for [`BLOCK_ROWS`].
    sums: *mut RowSums,
    lines: PhantomData<L>,
}

impl<'a, L> Words<'a, L> {
    /// # Panics
    /// If the scratch is not of [`block_bytes`].
    fn new(chunk: &'a Chunk<'a>, scratch: &'a mut [u8]) -> Self {
        assert_eq!(scratch.len(), block_bytes(chunk.k_padded), "scratch");
        let (keep, sums) = scratch.split_at_mut(BLOCK_LINES * LINE_ELEMS_I8 * 2);
        let sums: *mut RowSums = sums.as_mut_ptr().cast();
        assert!(sums.is_aligned(), "scratch");
        Self {
            chunk,
            keep: keep.as_mut_ptr().cast(),
            sums,
            lines: PhantomData,
        }
    }
}

impl<L: Strip> Blocked for Words<'_, L> {
    type Lines = L;

    const ONE_PASS_LINES: usize = usize::MAX;

    /// Two rows keep the multiplier as busy as three and leave registers free (16 rows: 4.2 and 4.5 ms for 4096 x 4096, Zen 4);
    /// where there are but three, one pass is better (0.90 and 1.24 ms).
    fn rows_of(rest: usize) -> usize {
        match rest {
            MR => MR,
            _ => rest.min(2),
        }
    }

    fn lines(&self, s: usize) -> L {
        L::new(self.chunk, s)
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut L, i: usize, count: usize, keep: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            match (count, keep) {
                (1, _) => self.multiply::<L, 1, false>(span, i, lines),
                (2, false) => self.multiply::<L, 2, false>(span, i, lines),
                (2, true) => self.multiply::<L, 2, true>(span, i, lines),
                _ => self.multiply::<L, MR, false>(span, i, lines),
            }
        }
    }

    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match count {
                1 => self.multiply::<_, 1, false>(span, i, &mut Kept(self.keep)),
                2 => self.multiply::<_, 2, false>(span, i, &mut Kept(self.keep)),
                _ => self.multiply::<_, MR, false>(span, i, &mut Kept(self.keep)),
            }
        }
    }
}

impl<S> Words<'_, S> {
    avx2_fns!(
        /// `R` rows from `i` on; KEEP writes the lines to `keep`.
        ///
        /// # Safety
        /// As [`Blocked::fresh`]; `place` is the first line of the span and then the one after the last.
        unsafe fn multiply<L: Wide, const R: usize, const KEEP: bool>(
            &self,
            span: &Span,
            i: usize,
            place: &mut L,
        ) {
            let x = self.chunk.i16_rows::<R>(i);
            let (all, group_lines) = (self.chunk.int_lines(), self.chunk.group_lines());
            let scales = self.chunk.strip_scales(span.s);
            let at = self.sums.wrapping_add(i - span.first_row);
            let (mut lines, mut keep) = (*place, self.keep);
            let mut from = span.from;
            while from < span.to {
                let g = from / group_lines;
                let to = span.to.min((g + 1) * group_lines);
                let mut acc = [[_mm256_setzero_si256(); GROUPS]; R];
                let mut before = [_mm256_setzero_si256(); R];
                for first in (from..to).step_by(UNROLL) {
                    lines.prefetch();
                    for l in first..first + UNROLL {
                        // SAFETY: the caller's promise: groups, and so spans, are whole times 8 lines; elements 4 l .. 4 l + 4
                        // are in each row.
                        unsafe {
                            let quad = x.map(|x| {
                                let quad = x.q.add(4 * l).cast::<i64>();
                                _mm256_set1_epi64x(quad.read_unaligned())
                            });
                            for group in 0..GROUPS {
                                let w = lines.next();
                                if KEEP {
                                    _mm256_storeu_si256(keep.add(16 * group).cast(), w);
                                }
                                let now: [__m256i; R] = quad.map(|quad| _mm256_madd_epi16(w, quad));
                                let last = (group + GROUPS - 1) % GROUPS;
                                for r in 0..R {
                                    acc[r][last] = _mm256_add_epi32(acc[r][last], before[r]);
                                }
                                before = now;
                            }
                            if KEEP {
                                keep = keep.add(LINE_ELEMS_I8);
                            }
                        }
                    }
                }
                for r in 0..R {
                    acc[r][GROUPS - 1] = _mm256_add_epi32(acc[r][GROUPS - 1], before[r]);
                }
                for (r, acc) in acc.into_iter().enumerate() {
                    // SAFETY: the caller's promise; row and strip are the chunk's.
                    unsafe {
                        let sums = &mut *at.add(r);
                        if from == 0 {
                            *sums = no_sums();
                        }
                        for half in 0..2 {
                            let outputs = _mm256_permute4x64_epi64::<0b11_01_10_00>(
                                _mm256_hadd_epi32(acc[2 * half], acc[2 * half + 1]),
                            );
                            sums.exact[half] = _mm256_add_epi32(sums.exact[half], outputs);
                        }
                        if to == all || to == (g + 1) * group_lines {
                            end_group(sums, 0, scales_of(scales, g));
                        }
                        if to == all {
                            put(self.chunk, i + r, span.s, sums, x[r].scale());
                        }
                    }
                }
                from = to;
            }
            *place = lines;
        }
    );
}
