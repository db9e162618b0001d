//! AVX2: int4 weights by int8 activations.
//!
//! Levels plus 8 are unsigned bytes, of at most 16, so `vpmaddubsw` multiplies them: eight 16-bit sums of two products are at most
//! 8 * 2 * 16 * 127 < 2^15, and are widened only then. What the 8 adds is 8 times the sum of the activations, which is known.

#![expect(
    clippy::needless_range_loop,
    reason = "a group is a register of a line and of the sums"
)]

use std::arch::x86_64::*;

use sparamx_cpu::avx2_fns;
use sparamx_format::LINE_ELEMS_I8;

use super::int::{ROW_BYTES, RowSums, end_group, no_sums, prefetch, put, scales_of, spread};
use crate::linear::chunk::Chunk;
use crate::linear::loops::{BLOCK_LINES, BLOCK_ROWS, Blocked, Span, blocked};

/// Bytes of scratch of the kernels here: a block of lines in bytes, the codes of one, then the sums of its rows.
pub(crate) fn block_bytes(_k_padded: usize) -> usize {
    BLOCK_LINES * LINE_ELEMS_I8 + CODES_BYTES + BLOCK_ROWS * ROW_BYTES
}

/// Pairs of lines of a strip, one after the other, as bytes, which are levels plus 8.
trait Bytes: Copy {
    /// The next two lines, the registers of the even one first.
    ///
    /// # Safety
    /// AVX2 level; there are two more lines, and what [`Chunk`] says of their strip.
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2];
}

/// Lines of 16-bit sums: 2 * 127 * 16 * 8 < 2^15.
const SHORT_LINES: usize = 8;

/// Most rows of int8 activations at a time.
const MR: usize = 4;

/// Bytes of codes of a block, and what vectors read beyond.
const CODES_BYTES: usize = BLOCK_LINES * LINE_ELEMS_I8 + 64;

/// Dense int4: the codes are the bytes.
#[derive(Clone, Copy)]
struct Dense(*const u8);

impl Bytes for Dense {
    #[inline(always)]
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2] {
        prefetch(self.0, 0);
        // SAFETY: two lines, in 64 bytes, are there, as required.
        unsafe {
            let low = _mm256_set1_epi8(15);
            let load = |at| _mm256_loadu_si256(self.0.add(at).cast());
            let (first, second) = (load(0), load(32));
            let even = |codes| _mm256_and_si256(codes, low);
            let odd = |codes| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
            self.0 = self.0.add(LINE_ELEMS_I8);
            [[even(first), even(second)], [odd(first), odd(second)]]
        }
    }
}

/// Lines kept as bytes.
#[derive(Clone, Copy)]
struct Kept(*const u8);

impl Bytes for Kept {
    #[inline(always)]
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2] {
        // SAFETY: two lines of 64 bytes were kept, as required.
        unsafe {
            let load = |at| _mm256_loadu_si256(self.0.add(at).cast());
            let pair = [[load(0), load(32)], [load(64), load(96)]];
            self.0 = self.0.add(2 * LINE_ELEMS_I8);
            pair
        }
    }
}

/// A place in packed int4.
struct Sparse {
    mask: *const u64,
    values: *const u8,
    /// Values behind, from `values` on.
    at: usize,
}

/// Dense int4 weights.
///
/// # Safety
/// AVX2 level.
pub(crate) unsafe fn dense_4x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; strips have `int_lines` lines.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &DenseCodes(Codes::new(chunk, scratch)),
        )
    }
}

/// Packed int4 weights.
///
/// # Safety
/// AVX2 level.
pub(crate) unsafe fn sparse_4x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; strips have `int_lines` lines.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &SparseCodes(Codes::new(chunk, scratch)),
        )
    }
}

/// What the kernels for int4 share.
struct Codes<'a> {
    chunk: &'a Chunk<'a>,
    /// Room for [`BLOCK_LINES`].
    keep: *mut u8,
    /// Room for [`CODES_BYTES`].
    codes: *mut u8,
    /// Room for [`BLOCK_ROWS`].
    sums: *mut RowSums,
}

struct DenseCodes<'a>(Codes<'a>);
struct SparseCodes<'a>(Codes<'a>);

impl<'a> Codes<'a> {
    /// # Panics
    /// If the scratch is not of [`block_bytes`].
    fn new(chunk: &'a Chunk<'a>, scratch: &'a mut [u8]) -> Self {
        assert_eq!(scratch.len(), block_bytes(chunk.k_padded), "scratch");
        let (keep, rest) = scratch.split_at_mut(BLOCK_LINES * LINE_ELEMS_I8);
        let (codes, sums) = rest.split_at_mut(CODES_BYTES);
        let sums: *mut RowSums = sums.as_mut_ptr().cast();
        assert!(sums.is_aligned(), "scratch");
        Self {
            chunk,
            keep: keep.as_mut_ptr(),
            codes: codes.as_mut_ptr(),
            sums,
        }
    }

    /// [`Blocked::kept`]
    ///
    /// # Safety
    /// As there.
    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: *rows* and *span* are required, and that the lines were kept.
        unsafe { self.multiply_rows::<_, false>(span, i, count, &mut Kept(self.keep)) }
    }

    /// # Safety
    /// As [`Self::multiply`]; `count` is at most [`MR`].
    unsafe fn multiply_rows<L: Bytes, const KEEP: bool>(
        &self,
        span: &Span,
        i: usize,
        count: usize,
        lines: &mut L,
    ) {
        // SAFETY: the same is required; `count` is at most MR, so as many as each arm takes.
        unsafe {
            match count {
                1 => self.multiply::<L, 1, KEEP>(span, i, lines),
                2 => self.multiply::<L, 2, KEEP>(span, i, lines),
                3 => self.multiply::<L, 3, KEEP>(span, i, lines),
                _ => self.multiply::<L, MR, KEEP>(span, i, lines),
            }
        }
    }

    avx2_fns!(
        /// `R` rows from `i` on; KEEP writes the lines to `keep`.
        ///
        /// # Safety
        /// As [`Blocked::fresh`], with `R` for `count`; `place` is the first line of the span and then the one after the last.
        unsafe fn multiply<L: Bytes, const R: usize, const KEEP: bool>(
            &self,
            span: &Span,
            i: usize,
            place: &mut L,
        ) {
            let x = self.chunk.i8_rows::<R>(i);
            let (all, group_lines) = (self.chunk.int_lines(), self.chunk.group_lines());
            let scales = self.chunk.strip_scales(span.s);
            let at = self.sums.wrapping_add(i - span.first_row);
            let mut sums = [no_sums(); R];
            if span.from > 0 {
                // SAFETY: `new` made room for the sums of BLOCK_ROWS, of which these are (*rows*), and the span before put them
                // there (*span*).
                sums = std::array::from_fn(|r| unsafe { at.add(r).read() });
            }
            let (mut lines, mut keep) = (*place, self.keep);
            let mut end_of_group = (span.from / group_lines + 1) * group_lines;
            for from in (span.from..span.to).step_by(SHORT_LINES) {
                let mut short = [[_mm256_setzero_si256(); 2]; R];
                for l in (from..from + SHORT_LINES).step_by(2) {
                    // SAFETY: the span's lines are left (*span*), whole times 8 of them, as BLOCK_LINES and strips are; each row,
                    // which `i8_rows` gave, has their quads (`Chunk`, *rows*); `keep` has room for BLOCK_LINES (`new`).
                    unsafe {
                        let pair = lines.next();
                        for (parity, line) in pair.into_iter().enumerate() {
                            if KEEP {
                                for (half, w) in line.into_iter().enumerate() {
                                    _mm256_storeu_si256(keep.add(32 * half).cast(), w);
                                }
                                keep = keep.add(LINE_ELEMS_I8);
                            }
                            for r in 0..R {
                                let quad = x[r].q().cast::<i32>().add(l + parity).read_unaligned();
                                let quad = _mm256_set1_epi32(quad);
                                for half in 0..2 {
                                    let products = _mm256_maddubs_epi16(line[half], quad);
                                    short[r][half] = _mm256_add_epi16(short[r][half], products);
                                }
                            }
                        }
                    }
                }
                let to = from + SHORT_LINES;
                for (sums, short) in sums.iter_mut().zip(short) {
                    for half in 0..2 {
                        let wide = _mm256_madd_epi16(short[half], _mm256_set1_epi16(1));
                        sums.exact[half] = _mm256_add_epi32(sums.exact[half], wide);
                    }
                }
                if to == end_of_group || to == all {
                    let first = end_of_group - group_lines;
                    let scales = scales_of(scales, first / group_lines);
                    for (sums, x) in sums.iter_mut().zip(x) {
                        // SAFETY: `to` is in the span (*span*): at most a quarter of K rounded up.
                        let offset = unsafe { x.sum(4 * first..4 * to) }.wrapping_mul(8);
                        end_group(sums, offset, scales);
                    }
                    end_of_group += group_lines;
                }
            }
            *place = lines;
            for r in 0..R {
                // SAFETY: the rows are below M (*rows*), the strip is the chunk's (*span*); there is room for the sums of
                // BLOCK_ROWS (`new`), of which these are (*rows*).
                unsafe {
                    if span.to == all {
                        put(self.chunk, i + r, span.s, &sums[r], x[r].scale());
                    } else {
                        at.add(r).write(sums[r]);
                    }
                }
            }
        }

        /// Writes `lines` packed lines to `keep`: the codes of all, one to a byte, then for every 8 elements a table look-up and
        /// half a shuffle.
        ///
        /// # Safety
        /// There are so many lines from `from` on, and what [`Chunk`] says of their strip; they are no more than
        /// [`BLOCK_LINES`].
        unsafe fn expand(&self, from: &mut Sparse, lines: usize) {
            // SAFETY: so many lines, and so masks, are there, as required.
            let masks = unsafe { std::slice::from_raw_parts(from.mask, lines) };
            let values: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
            // Codes 0..8 are levels -8..0, the others 1..=8: turned over in bit 3, the bytes that the multiplication wants are
            // not 0, as places without a value are before they are turned.
            let turned = _mm256_setr_epi8(
                8, 9, 10, 11, 12, 13, 14, 15, 1, 2, 3, 4, 5, 6, 7, 24, 8, 9, 10, 11, 12, 13, 14,
                15, 1, 2, 3, 4, 5, 6, 7, 24,
            );
            let low = _mm256_set1_epi8(15);
            let odd = from.at % 2;
            for byte in (0..(odd + values).div_ceil(2)).step_by(16) {
                // SAFETY: 64 bytes from any value of a strip can be read (`Chunk`, *values*); there is room for the codes of
                // BLOCK_LINES and 64 bytes beyond (`new`).
                unsafe {
                    let source = from.values.add(from.at / 2 + byte);
                    prefetch(source, 0);
                    // Each byte to a 16-bit lane: its high nibble moves to the upper byte.
                    let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(source.cast()));
                    let codes = _mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes));
                    let levels = _mm256_shuffle_epi8(turned, _mm256_and_si256(codes, low));
                    _mm256_storeu_si256(self.codes.add(2 * byte).cast(), levels);
                }
            }
            let mut value = self.codes.wrapping_add(odd).cast_const();
            for (l, mask_ref) in masks.iter().enumerate() {
                prefetch(mask_ref, 0);
                // SAFETY: loads begin at a code or one past the last, from where 64 bytes are there (`new`); a mask is 8 bytes;
                // `keep` has room for BLOCK_LINES (`new`), which are no fewer.
                unsafe {
                    let mut bits = (&raw const *mask_ref).cast::<u8>();
                    for part in 0..4 {
                        let levels = spread(&mut value, &mut bits);
                        let to = self.keep.add(l * LINE_ELEMS_I8 + 16 * part);
                        _mm_storeu_si128(to.cast(), _mm_xor_si128(levels, _mm_set1_epi8(8)));
                    }
                }
            }
            from.mask = from.mask.wrapping_add(lines);
            from.at += values;
        }
    );
}

impl Blocked for DenseCodes<'_> {
    type Lines = Dense;

    const ONE_PASS_LINES: usize = usize::MAX;

    fn rows_of(rest: usize) -> usize {
        rest.min(MR)
    }

    fn lines(&self, s: usize) -> Dense {
        Dense(self.0.chunk.dense_i4_strip(s).as_ptr())
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut Dense, i: usize, count: usize, keep: bool) {
        // SAFETY: *rows* and *span* are required, and `count` is of `rows_of`, at most MR.
        unsafe {
            if keep {
                self.0.multiply_rows::<_, true>(span, i, count, lines);
            } else {
                self.0.multiply_rows::<_, false>(span, i, count, lines);
            }
        }
    }

    unsafe fn kept(&self, span: &Span, _next: &Self::Lines, i: usize, count: usize) {
        // SAFETY: the same is required.
        unsafe { self.0.kept(span, i, count) }
    }
}

impl Blocked for SparseCodes<'_> {
    type Lines = Sparse;

    /// Lines are kept for one row too.
    const ONE_PASS_LINES: usize = BLOCK_LINES;

    fn rows_of(rest: usize) -> usize {
        rest.min(MR)
    }

    fn lines(&self, s: usize) -> Sparse {
        let (masks, values) = self.0.chunk.sparse_i4_strip(s);
        Sparse {
            mask: masks.as_ptr(),
            values: values.as_ptr(),
            at: 0,
        }
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut Sparse, i: usize, count: usize, _keep: bool) {
        // SAFETY: *rows* and *span* are required; a span is at most BLOCK_LINES, which is ONE_PASS_LINES too.
        unsafe {
            self.0.expand(lines, span.to - span.from);
            self.0.kept(span, i, count);
        }
    }

    unsafe fn kept(&self, span: &Span, _next: &Self::Lines, i: usize, count: usize) {
        // SAFETY: the same is required.
        unsafe { self.0.kept(span, i, count) }
    }
}
