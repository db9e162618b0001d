//! AVX2: int8 and int4 weights by int8 activations.
//!
//! int8 levels and activations are widened to 16 bits: `vpmaddwd` makes exact 32-bit sums of two products. (Multiplying bytes,
//! `vpmaddubsw`, takes one unsigned operand and makes 16-bit sums: with signs moved from one operand to the other and sums widened
//! at once it costs as many instructions.)
//!
//! int4 codes are small enough for bytes: levels plus 8 are at most 16, so eight 16-bit sums of two products are at most
//! 8 * 2 * 16 * 127 < 2^15, and are widened only then. What the 8 adds is 8 times the sum of the activations, which is known.

#![expect(
    clippy::needless_range_loop,
    reason = "a group is a register of a line and of the sums"
)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_ELEMS_I8, STRIP_ROWS};

use super::chunk::{Chunk, StripScales};
use super::schedule::{BLOCK_LINES, BLOCK_ROWS, Blocked, Span, blocked};

/// How far ahead of use weights are asked for; see avx2.rs.
const PREFETCH_BYTES: usize = 4096;

/// Lines between prefetches. Strips and groups of scales are whole times 8 lines.
const UNROLL: usize = 4;

/// Asks for the bytes `at` bytes from `from` on, and [`PREFETCH_BYTES`] later.
#[inline(always)]
fn prefetch(from: *const i8, at: usize) {
    // SAFETY: SSE is part of x86-64; a prefetch may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(PREFETCH_BYTES + at)) }
}

/// Bytes of scratch of a row: its [`RowSums`].
const ROW_BYTES: usize = size_of::<RowSums>();

/// Bytes of scratch of int8 kernels: a block of lines in 16 bits, then the sums of its rows.
pub(crate) fn i8_bytes(_k_padded: usize) -> usize {
    BLOCK_LINES * LINE_ELEMS_I8 * 2 + BLOCK_ROWS * ROW_BYTES
}

/// Bytes of scratch of int4 kernels: a block of lines in bytes, the codes of one, then the sums of its rows.
pub(crate) fn i4_bytes(_k_padded: usize) -> usize {
    BLOCK_LINES * LINE_ELEMS_I8 + CODES_BYTES + BLOCK_ROWS * ROW_BYTES
}

/// 16 outputs of a row, in two registers.
#[derive(Clone, Copy)]
#[repr(C)]
struct RowSums {
    /// Sums of the group of scales under way.
    exact: [__m256i; 2],
    /// Scaled sums of the groups before.
    scaled: [__m256; 2],
}

avx2_fns!(
    fn no_sums() -> RowSums {
        RowSums {
            exact: [_mm256_setzero_si256(); 2],
            scaled: [_mm256_setzero_ps(); 2],
        }
    }

    /// Ends a group: its sums, less `offset`, times its scales are added to those before.
    fn end_group(sums: &mut RowSums, offset: i32, scales: [__m256; 2]) {
        for half in 0..2 {
            let exact = _mm256_sub_epi32(sums.exact[half], _mm256_set1_epi32(offset));
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scales[half]);
            sums.scaled[half] = _mm256_add_ps(sums.scaled[half], scaled);
            sums.exact[half] = _mm256_setzero_si256();
        }
    }

    /// The 16 scales of group `g`.
    fn scales_of(scales: StripScales<'_>, g: usize) -> [__m256; 2] {
        match scales {
            StripScales::F32(scales) => {
                let group: &[f32; STRIP_ROWS] = scales.as_chunks().0.get(g).expect("a group");
                // SAFETY: 16 floats.
                [0, 8].map(|at| unsafe { _mm256_loadu_ps(group.as_ptr().add(at)) })
            }
            StripScales::Bf16(bits) => {
                let group: &[u16; STRIP_ROWS] = bits.as_chunks().0.get(g).expect("a group");
                [0, 8].map(|at| {
                    // SAFETY: 16 elements.
                    let bits = unsafe { _mm_loadu_si128(group.as_ptr().add(at).cast()) };
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
                })
            }
        }
    }

    /// # Safety
    /// Row `i` and strip `s` are the chunk's.
    unsafe fn put(chunk: &Chunk<'_>, i: usize, s: usize, sums: &RowSums, scale: f32) {
        let y = sums
            .scaled
            .map(|sum| _mm256_mul_ps(sum, _mm256_set1_ps(scale)));
        // SAFETY: two registers of 8 floats are 16 floats; the caller's promise.
        unsafe {
            let y = std::mem::transmute::<[__m256; 2], [f32; STRIP_ROWS]>(y);
            chunk.out.put(i, s, y)
        }
    }
);

/// Registers of a line of 16-bit levels: 16 lanes are 4 outputs x 4 k.
const GROUPS: usize = 4;

/// Most rows of 16-bit activations at a time: 2 rows x 4 sums, a line, and the activations.
const MR_I8: usize = 2;

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
trait WideStrip: Wide {
    /// The first line of strip `s`.
    fn new(chunk: &Chunk<'_>, s: usize) -> Self;
}

/// Dense int8.
#[derive(Clone, Copy)]
struct DenseI8(*const i8);

impl Wide for DenseI8 {
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

impl WideStrip for DenseI8 {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self(chunk.dense_i8_strip(s).as_ptr())
    }
}

/// Controls of `vpshufb` that put the r-th byte of a load into the place of the r-th set bit of a mask byte, zero into all
/// others; the load is the `half`-th 8 bytes of a register.
const fn controls(half: u8) -> [[u8; 8]; 256] {
    let mut table = [[0x80; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut place, mut rank) = (0, 8 * half);
        while place < 8 {
            if mask >> place & 1 == 1 {
                table[mask][place] = rank;
                rank += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    table
}

/// 4 KiB, an eighth of the L1 cache.
#[repr(align(64))]
struct Controls([[[u8; 8]; 256]; 2]);
static SPREAD: Controls = Controls([controls(0), controls(1)]);

/// 16 bytes: those from `value` on in the places of the 16 bits at `bits`, zero elsewhere. Both move on. To load each byte of a
/// mask is cheaper than to shift it out of the mask: instructions are what there are too many of, and loads are not.
///
/// # Safety
/// AVX2 level; 16 bytes from `value` on and two from `bits` on can be read.
#[inline(always)]
unsafe fn spread<T>(value: &mut *const T, bits: &mut *const u8) -> __m128i {
    // SAFETY: the caller's promise, as a byte has at most 8 bits; the table has an entry for each byte.
    unsafe {
        let both = usize::from(bits.cast::<u16>().read_unaligned());
        let (first, second) = (both & 255, both >> 8);
        *bits = bits.add(2);
        let eight = |low: *const u8, high: *const u8| {
            let low = _mm_castsi128_pd(_mm_loadl_epi64(low.cast()));
            _mm_castpd_si128(_mm_loadh_pd(low, high.cast()))
        };
        let from = value.cast::<u8>();
        let middle = from.add(first.count_ones() as usize);
        *value = middle.add(second.count_ones() as usize).cast();
        let control = eight(SPREAD.0[0][first].as_ptr(), SPREAD.0[1][second].as_ptr());
        _mm_shuffle_epi8(eight(from, middle), control)
    }
}

/// Packed int8.
#[derive(Clone, Copy)]
struct SparseI8 {
    /// Bytes of masks, the first with the lowest bits: x86 stores them so.
    bits: *const u8,
    value: *const i8,
}

impl Wide for SparseI8 {
    /// Up to half of the values there can be.
    #[inline(always)]
    fn prefetch(&self) {
        prefetch(self.bits.cast(), 0);
        prefetch(self.value, 0);
        prefetch(self.value, 64);
    }

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: 64 bytes from any value of a strip, or from behind its last, are in the tensor.
        unsafe { _mm256_cvtepi8_epi16(spread(&mut self.value, &mut self.bits)) }
    }
}

impl WideStrip for SparseI8 {
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
struct KeptWide(*const i16);

impl Wide for KeptWide {
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
pub(crate) unsafe fn dense_i8_2x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &Words::<DenseI8>::new(chunk, scratch),
        )
    }
}

/// Packed int8 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_i8_2x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe {
        blocked(
            chunk,
            chunk.int_lines(),
            &Words::<SparseI8>::new(chunk, scratch),
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
    /// If the scratch is not of [`i8_bytes`].
    fn new(chunk: &'a Chunk<'a>, scratch: &'a mut [u8]) -> Self {
        assert_eq!(scratch.len(), i8_bytes(chunk.k_padded), "scratch");
        let (keep, sums) = scratch.split_at_mut(BLOCK_LINES * LINE_ELEMS_I8 * 2);
        Self {
            chunk,
            keep: keep.as_mut_ptr().cast(),
            sums: sums.as_mut_ptr().cast(),
            lines: PhantomData,
        }
    }
}

impl<L: WideStrip> Blocked for Words<'_, L> {
    type Lines = L;

    const ONE_PASS_LINES: usize = usize::MAX;

    fn rows_of(rest: usize) -> usize {
        rest.min(MR_I8)
    }

    fn lines(&self, s: usize) -> L {
        L::new(self.chunk, s)
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut L, i: usize, count: usize, keep: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            match (count, keep) {
                (1, _) => self.multiply::<L, 1, false>(span, i, lines),
                (_, false) => self.multiply::<L, MR_I8, false>(span, i, lines),
                (_, true) => self.multiply::<L, MR_I8, true>(span, i, lines),
            }
        }
    }

    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match count {
                1 => self.multiply::<_, 1, false>(span, i, &mut KeptWide(self.keep)),
                _ => self.multiply::<_, MR_I8, false>(span, i, &mut KeptWide(self.keep)),
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
                                for r in 0..R {
                                    let products = _mm256_madd_epi16(w, quad[r]);
                                    acc[r][group] = _mm256_add_epi32(acc[r][group], products);
                                }
                            }
                            if KEEP {
                                keep = keep.add(LINE_ELEMS_I8);
                            }
                        }
                    }
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

/// Pairs of lines of a strip, one after the other, as bytes, which are levels plus 8.
trait Bytes: Copy {
    /// The next two lines, the registers of the even one first.
    ///
    /// # Safety
    /// AVX2 level; there are two more lines.
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2];
}

/// Lines of 16-bit sums: 2 * 127 * 16 * 8 < 2^15.
const SHORT_LINES: usize = 8;

/// Most rows of int8 activations at a time.
const MR_I4: usize = 4;

/// Bytes of codes of a block, and what vectors read beyond.
const CODES_BYTES: usize = BLOCK_LINES * LINE_ELEMS_I8 + 64;

/// Dense int4: the codes are the bytes.
#[derive(Clone, Copy)]
struct DenseI4(*const u8);

impl Bytes for DenseI4 {
    #[inline(always)]
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2] {
        // SAFETY: the caller's promise. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.0.cast::<i8>().wrapping_add(PREFETCH_BYTES));
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
struct KeptBytes(*const u8);

impl Bytes for KeptBytes {
    #[inline(always)]
    unsafe fn next(&mut self) -> [[__m256i; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at| _mm256_loadu_si256(self.0.add(at).cast());
            let pair = [[load(0), load(32)], [load(64), load(96)]];
            self.0 = self.0.add(2 * LINE_ELEMS_I8);
            pair
        }
    }
}

/// A place in packed int4.
struct SparseI4 {
    mask: *const u64,
    values: *const u8,
    /// Values behind, from `values` on.
    at: usize,
}

/// Dense int4 weights.
///
/// # Safety
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn dense_i4_4x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
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
/// AVX2 level; a chunk as its documentation says.
pub(crate) unsafe fn sparse_i4_4x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
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
    /// If the scratch is not of [`i4_bytes`].
    fn new(chunk: &'a Chunk<'a>, scratch: &'a mut [u8]) -> Self {
        assert_eq!(scratch.len(), i4_bytes(chunk.k_padded), "scratch");
        let (keep, rest) = scratch.split_at_mut(BLOCK_LINES * LINE_ELEMS_I8);
        let (codes, sums) = rest.split_at_mut(CODES_BYTES);
        Self {
            chunk,
            keep: keep.as_mut_ptr(),
            codes: codes.as_mut_ptr(),
            sums: sums.as_mut_ptr().cast(),
        }
    }

    /// [`Blocked::kept`]
    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.multiply_rows::<_, false>(span, i, count, &mut KeptBytes(self.keep)) }
    }

    /// # Safety
    /// As [`Self::multiply`]; `count` is at most [`MR_I4`].
    unsafe fn multiply_rows<L: Bytes, const KEEP: bool>(
        &self,
        span: &Span,
        i: usize,
        count: usize,
        lines: &mut L,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match count {
                1 => self.multiply::<L, 1, KEEP>(span, i, lines),
                2 => self.multiply::<L, 2, KEEP>(span, i, lines),
                3 => self.multiply::<L, 3, KEEP>(span, i, lines),
                _ => self.multiply::<L, MR_I4, KEEP>(span, i, lines),
            }
        }
    }

    avx2_fns!(
        /// `R` rows from `i` on; KEEP writes the lines to `keep`.
        ///
        /// # Safety
        /// As [`Blocked::fresh`]; `place` is the first line of the span and then the one after the last.
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
                // SAFETY: the sums of the lines before were put there.
                sums = std::array::from_fn(|r| unsafe { at.add(r).read() });
            }
            let (mut lines, mut keep) = (*place, self.keep);
            let mut end_of_group = (span.from / group_lines + 1) * group_lines;
            for from in (span.from..span.to).step_by(SHORT_LINES) {
                let mut short = [[_mm256_setzero_si256(); 2]; R];
                for l in (from..from + SHORT_LINES).step_by(2) {
                    // SAFETY: the caller's promise: groups, and so spans, are whole times 8 lines; their quads are in each row.
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
                                let quad = x[r].q.cast::<i32>().add(l + parity).read_unaligned();
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
                        // SAFETY: the group is inside the row.
                        let offset = unsafe { x.sum(4 * first..4 * to) }.wrapping_mul(8);
                        end_group(sums, offset, scales);
                    }
                    end_of_group += group_lines;
                }
            }
            *place = lines;
            for r in 0..R {
                // SAFETY: the caller's promise; row and strip are the chunk's.
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
        /// There are so many lines from `from` on, and room for them.
        unsafe fn expand(&self, from: &mut SparseI4, lines: usize) {
            // SAFETY: the caller's promise.
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
                // SAFETY: 64 bytes from any value of a strip are in the tensor; 32 bytes beyond the codes are there.
                unsafe {
                    let source = from.values.add(from.at / 2 + byte);
                    _mm_prefetch::<_MM_HINT_T0>(source.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                    // Each byte to a 16-bit lane: its high nibble moves to the upper byte.
                    let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(source.cast()));
                    let codes = _mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes));
                    let levels = _mm256_shuffle_epi8(turned, _mm256_and_si256(codes, low));
                    _mm256_storeu_si256(self.codes.add(2 * byte).cast(), levels);
                }
            }
            let mut value = self.codes.wrapping_add(odd).cast_const();
            for (l, mask_ref) in masks.iter().enumerate() {
                // SAFETY: loads begin at a code or one past the last; the table has an entry for each byte.
                unsafe {
                    let ahead = (&raw const *mask_ref)
                        .cast::<i8>()
                        .wrapping_add(PREFETCH_BYTES);
                    _mm_prefetch::<_MM_HINT_T0>(ahead);
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
    type Lines = DenseI4;

    const ONE_PASS_LINES: usize = usize::MAX;

    fn rows_of(rest: usize) -> usize {
        rest.min(MR_I4)
    }

    fn lines(&self, s: usize) -> DenseI4 {
        DenseI4(self.0.chunk.dense_i4_strip(s).as_ptr())
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut DenseI4, i: usize, count: usize, keep: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            if keep {
                self.0.multiply_rows::<_, true>(span, i, count, lines);
            } else {
                self.0.multiply_rows::<_, false>(span, i, count, lines);
            }
        }
    }

    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.kept(span, i, count) }
    }
}

impl Blocked for SparseCodes<'_> {
    type Lines = SparseI4;

    /// Lines are kept for one row too.
    const ONE_PASS_LINES: usize = BLOCK_LINES;

    fn rows_of(rest: usize) -> usize {
        rest.min(MR_I4)
    }

    fn lines(&self, s: usize) -> SparseI4 {
        let (masks, values) = self.0.chunk.sparse_i4_strip(s);
        SparseI4 {
            mask: masks.as_ptr(),
            values: values.as_ptr(),
            at: 0,
        }
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut SparseI4, i: usize, count: usize, _keep: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            self.0.expand(lines, span.to - span.from);
            self.0.kept(span, i, count);
        }
    }

    unsafe fn kept(&self, span: &Span, i: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.kept(span, i, count) }
    }
}
