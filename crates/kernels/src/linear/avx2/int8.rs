//! AVX2: int8 weights by int8 activations.
//!
//! Both are widened to 16 bits: `vpmaddwd` makes exact 32-bit sums of two products. To multiply bytes, `vpmaddubsw` wants one
//! operand unsigned, so that signs have to be moved, and its 16-bit sums widened at once: four instructions for 32 products as
//! well, and slower on Zen 4. (With activations of 7 bits and no sign it would be three: 32 products a cycle instead of 26.)

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_BYTES, LINE_ELEMS_I8};

use super::int::{ROW_BYTES, RowSums, end_group, no_sums, prefetch, put, scales_of, spread};
use crate::linear::chunk::{Chunk, I16Row};
use crate::linear::loops::{BLOCK_LINES, BLOCK_ROWS, Blocked, Span, blocked};

/// Lines between prefetches: a line has 8 bytes of mask, and to prefetch them each time is a load that M = 1 has no room for.
/// Strips and groups of scales are whole times 8 lines.
const UNROLL: usize = 4;

/// Bytes of scratch of the kernels here: a block of lines in 16 bits, then the sums of its rows.
pub(crate) fn block_bytes(_k_padded: usize) -> usize {
    BLOCK_LINES * LINE_ELEMS_I8 * 2 + BLOCK_ROWS * ROW_BYTES
}

/// Registers of a line of 16-bit levels: 16 lanes are 4 outputs x 4 k.
const GROUPS: usize = 4;

/// Bytes of a line's mask.
const MASK_BYTES: usize = 8;

/// Rows that are multiplied by lines as they come, for more of which the lines are kept.
const FEW_ROWS: usize = 3;

/// Rows that are multiplied by kept lines at a time: 6 rows x 2 sums, 2 weights, the activations and a product are all 16
/// registers.
const KEPT_ROWS: usize = 6;

/// A place in a strip, whose lines are read as 16-bit levels, register after register.
trait Strip: Copy {
    /// The first line of strip `s`.
    fn new(chunk: &Chunk<'_>, s: usize) -> Self;

    /// Prefetches what comes later. To be called every [`UNROLL`] lines.
    fn prefetch(&self);

    /// Where the elements, or values, of the lines from here on are, and their masks if they have any.
    fn places(&self) -> [*const u8; 2];

    /// The next 16 elements.
    ///
    /// # Safety
    /// AVX2 level; there are more, and what [`Chunk`] says of their strip.
    unsafe fn next(&mut self) -> __m256i;
}

/// Dense int8.
#[derive(Clone, Copy)]
struct Dense(*const i8);

impl Strip for Dense {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self(chunk.dense_i8_strip(s).as_ptr())
    }

    #[inline(always)]
    fn prefetch(&self) {
        for line in 0..UNROLL {
            prefetch(self.0, line * LINE_ELEMS_I8);
        }
    }

    #[inline(always)]
    fn places(&self) -> [*const u8; 2] {
        [self.0.cast(); 2]
    }

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: 16 bytes are there, as required.
        unsafe {
            let levels = _mm_loadu_si128(self.0.cast());
            self.0 = self.0.add(16);
            _mm256_cvtepi8_epi16(levels)
        }
    }
}

/// Packed int8.
#[derive(Clone, Copy)]
struct Sparse {
    /// Bytes of masks, the first with the lowest bits: x86 stores them so.
    bits: *const u8,
    value: *const i8,
}

impl Strip for Sparse {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        let (masks, values) = chunk.sparse_i8_strip(s);
        Self {
            bits: masks.as_ptr().cast(),
            value: values.as_ptr(),
        }
    }

    /// Up to half of the values there can be.
    #[inline(always)]
    fn prefetch(&self) {
        prefetch(self.bits, 0);
        prefetch(self.value, 0);
        prefetch(self.value, 64);
    }

    #[inline(always)]
    fn places(&self) -> [*const u8; 2] {
        [self.value.cast(), self.bits]
    }

    #[inline(always)]
    unsafe fn next(&mut self) -> __m256i {
        // SAFETY: 64 bytes from any value of a strip, or from behind its last, can be read (`Chunk`, *values*), and 16 more
        // elements have two bytes of masks.
        unsafe { _mm256_cvtepi8_epi16(spread(&mut self.value, &mut self.bits)) }
    }
}

/// Dense int8 weights.
///
/// # Safety
/// AVX2 level.
pub(crate) unsafe fn dense_6x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; strips have `int_lines` lines.
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
/// AVX2 level.
pub(crate) unsafe fn sparse_6x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; strips have `int_lines` lines.
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

    /// Lines that are kept are made ready without a multiplication: their memory is waited for while those before them are
    /// multiplied, and the loops of both fit into the registers.
    fn first_rows(rows: usize) -> usize {
        if rows <= FEW_ROWS { rows } else { 0 }
    }

    fn rows_of(rest: usize) -> usize {
        match rest {
            7 | 8 => 4,
            _ => rest.min(KEPT_ROWS),
        }
    }

    fn lines(&self, s: usize) -> L {
        L::new(self.chunk, s)
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut L, i: usize, count: usize, _keep: bool) {
        // SAFETY: *rows* and *span* are required; `count` is of `first_rows`, at most FEW_ROWS, and 0 where lines are kept,
        // at most BLOCK_LINES of them.
        unsafe {
            match count {
                0 => self.keep(span, lines),
                1 => self.quads::<1>(span, i, lines),
                2 => self.quads::<2>(span, i, lines),
                _ => self.quads::<FEW_ROWS>(span, i, lines),
            }
        }
    }

    unsafe fn kept(&self, span: &Span, next: &L, i: usize, count: usize) {
        // SAFETY: *rows* and *span* are required, and that the lines were kept.
        unsafe {
            match count {
                3 => self.kept_pairs::<3>(span, next, i),
                4 => self.kept_pairs::<4>(span, next, i),
                5 => self.kept_pairs::<5>(span, next, i),
                KEPT_ROWS => self.kept_pairs::<KEPT_ROWS>(span, next, i),
                _ => {
                    unreachable!("{count} kept rows: rows_of cuts more than {FEW_ROWS} into 3 to 6")
                }
            }
        }
    }
}

impl<L: Strip> Words<'_, L> {
    avx2_fns!(
        /// Few rows from `i` on, by lines as they come: a register is 4 outputs x 4 k.
        ///
        /// # Safety
        /// As [`Blocked::fresh`], with `R` for `count`; `place` is the first line of the span and then the one after the last.
        unsafe fn quads<const R: usize>(&self, span: &Span, i: usize, place: &mut L) {
            let x = self.chunk.i16_rows::<R>(i);
            let mut lines = *place;
            for part in self.parts(span) {
                let mut acc = [[_mm256_setzero_si256(); GROUPS]; R];
                let mut before = [_mm256_setzero_si256(); R];
                for first in part.clone().step_by(UNROLL) {
                    lines.prefetch();
                    for l in first..first + UNROLL {
                        // SAFETY: the span's lines are left (*span*), whole times 8 of them, as strips and groups are; each row,
                        // which `i16_rows` gave, has elements 4 l .. 4 l + 4 (`Chunk`, *rows*).
                        unsafe {
                            let quad = x.map(|x| {
                                let quad = x.q().add(4 * l).cast::<i64>();
                                _mm256_set1_epi64x(quad.read_unaligned())
                            });
                            for group in 0..GROUPS {
                                let w = lines.next();
                                let now: [__m256i; R] = quad.map(|quad| _mm256_madd_epi16(w, quad));
                                let last = (group + GROUPS - 1) % GROUPS;
                                for r in 0..R {
                                    acc[r][last] = _mm256_add_epi32(acc[r][last], before[r]);
                                }
                                before = now;
                            }
                        }
                    }
                }
                let mut outputs = [[_mm256_setzero_si256(); 2]; R];
                for r in 0..R {
                    let [a, b, c, d] = acc[r];
                    let d = _mm256_add_epi32(d, before[r]);
                    outputs[r] = [_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)];
                }
                // SAFETY: *rows* and *span* are required; the part is of the span.
                unsafe { self.add(span, &part, i, &x, outputs) };
            }
            *place = lines;
        }

        /// Writes the lines of a span to `keep`, so that a register is 8 outputs x 2 k.
        ///
        /// # Safety
        /// *span*, as [`Blocked::fresh`]; `place` is its first line and then the one after the last.
        unsafe fn keep(&self, span: &Span, place: &mut L) {
            let (mut lines, mut keep) = (*place, self.keep);
            for _ in span.from..span.to {
                // SAFETY: the span's lines are left (*span*), four registers each; `keep` has room for BLOCK_LINES (`new`), and
                // the span is no longer.
                unsafe {
                    for half in 0..2 {
                        let (a, b) = (lines.next(), lines.next());
                        _mm256_storeu_si256(keep.add(16 * half).cast(), even(a, b));
                        _mm256_storeu_si256(keep.add(16 * half + 32).cast(), odd(a, b));
                    }
                    keep = keep.add(LINE_ELEMS_I8);
                }
            }
            *place = lines;
        }

        /// `R` rows from `i` on, by lines that were kept.
        ///
        /// # Safety
        /// As [`Blocked::kept`], with `R` for `count`.
        unsafe fn kept_pairs<const R: usize>(&self, span: &Span, next: &L, i: usize) {
            let x = self.chunk.i16_rows::<R>(i);
            let mut kept = self.keep.cast_const();
            let mut next = next.places();
            if let Some(ahead) = self.chunk.page {
                // The same lines of the page to come; of values about half are there.
                let lines = span.to - span.from;
                let element_bytes = if next[0] == next[1] {
                    LINE_BYTES
                } else {
                    LINE_BYTES / 2
                };
                next = [
                    next[0]
                        .wrapping_offset(ahead)
                        .wrapping_sub(lines * element_bytes),
                    next[1]
                        .wrapping_offset(ahead)
                        .wrapping_sub(lines * MASK_BYTES),
                ];
            }
            for part in self.parts(span) {
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                // SAFETY: each row, which `i16_rows` gave, has the elements of the part (`Chunk`, *rows*), whose lines were kept,
                // as required. A prefetch may name any address.
                unsafe {
                    if let Ok(acc) = <&mut [[__m256i; 2]; KEPT_ROWS]>::try_from(acc.as_mut_slice())
                    {
                        let x = x[0].q().add(4 * part.start);
                        next = six_rows(acc, x, self.chunk.x.stride, kept, part.len(), next);
                        kept = kept.add(part.len() * LINE_ELEMS_I8);
                    } else {
                        for l in part.clone() {
                            _mm_prefetch::<_MM_HINT_T1>(next[0].cast());
                            _mm_prefetch::<_MM_HINT_T1>(next[1].cast());
                            next = [
                                next[0].wrapping_add(LINE_BYTES),
                                next[1].wrapping_add(MASK_BYTES),
                            ];
                            for pair in 0..2 {
                                let w = [0, 16].map(|at| _mm256_loadu_si256(kept.add(at).cast()));
                                multiply(&mut acc, &x, 4 * l + 2 * pair, w);
                                kept = kept.add(LINE_ELEMS_I8 / 2);
                            }
                        }
                    }
                }
                // SAFETY: *rows* and *span* are required; the part is of the span.
                unsafe { self.add(span, &part, i, &x, acc) };
            }
        }

        /// Adds sums of lines `part`, a part of a group, to those of the rows from `i` on, and ends what ends with it. Lanes are
        /// outputs 0, 1, 4, 5, 2, 3, 6, 7.
        ///
        /// # Safety
        /// *rows* and *span*, as [`Blocked::fresh`], with `R` for `count`.
        unsafe fn add<const R: usize>(
            &self,
            span: &Span,
            part: &Range<usize>,
            i: usize,
            x: &[I16Row<'_>; R],
            outputs: [[__m256i; 2]; R],
        ) {
            let (all, group_lines) = (self.chunk.int_lines(), self.chunk.group_lines());
            // SAFETY: `new` made room, aligned, for the sums of BLOCK_ROWS, of which these are (*rows*).
            let sums: &mut [RowSums; R] = unsafe { &mut *self.sums.add(i - span.first_row).cast() };
            if part.start == 0 {
                *sums = [no_sums(); R];
            }
            // A loop of its own, so short that it is unrolled, or the sums would live in memory while they grow.
            for r in 0..R {
                for half in 0..2 {
                    let outputs = _mm256_permute4x64_epi64::<0b11_01_10_00>(outputs[r][half]);
                    sums[r].exact[half] = _mm256_add_epi32(sums[r].exact[half], outputs);
                }
            }
            if part.end == all || part.end.is_multiple_of(group_lines) {
                let scales = self.chunk.strip_scales(span.s);
                let scales = scales_of(scales, part.start / group_lines);
                for sums in &mut *sums {
                    end_group(sums, 0, scales);
                }
            }
            if part.end == all {
                for r in 0..R {
                    // SAFETY: the row is below M (*rows*), the strip the chunk's (*span*).
                    unsafe { put(self.chunk, i + r, span.s, &sums[r], x[r].scale()) };
                }
            }
        }
    );

    /// The lines of a span, cut at the ends of groups of scales.
    fn parts(&self, span: &Span) -> impl Iterator<Item = Range<usize>> + use<L> {
        let group_lines = self.chunk.group_lines();
        let (mut from, to) = (span.from, span.to);
        std::iter::from_fn(move || {
            let start = from;
            from = to.min((start / group_lines + 1) * group_lines);
            (start < to).then_some(start..from)
        })
    }
}

avx2_fns!(
    /// Of each four 16-bit elements, which are an output's, the first two.
    fn even(a: __m256i, b: __m256i) -> __m256i {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b))
    }

    /// Of each four 16-bit elements, which are an output's, the last two.
    fn odd(a: __m256i, b: __m256i) -> __m256i {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b))
    }

    /// Adds the products of 16 outputs x 2 k with elements `k` and `k + 1` of each row.
    ///
    /// # Safety
    /// The rows have these elements.
    unsafe fn multiply<const R: usize>(
        acc: &mut [[__m256i; 2]; R],
        x: &[I16Row<'_>; R],
        k: usize,
        w: [__m256i; 2],
    ) {
        for (acc, x) in acc.iter_mut().zip(x) {
            // SAFETY: the row has elements `k` and `k + 1`, as required.
            let pair = unsafe { x.q().add(k).cast::<i32>().read_unaligned() };
            let pair = _mm256_set1_epi32(pair);
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(w, pair));
            }
        }
    }

    /// Adds to the sums of [`KEPT_ROWS`] rows, `stride` elements apart from `x` on, the products with `lines` kept lines; prefetches
    /// as many lines, and masks, from `next` on.
    ///
    /// The loop of [`multiply`], in an order that keeps the multipliers busiest: 25.9 products a cycle of the 32 that two of them
    /// could do if no sum were to be added up, where compiled code has 22 and moves sums to memory and back (Zen 4).
    ///
    /// # Safety
    /// AVX2 level; the rows have `4 * lines` elements, and there are as many lines.
    unsafe fn six_rows(
        acc: &mut [[__m256i; 2]; KEPT_ROWS],
        x: *const i16,
        stride: usize,
        kept: *const i16,
        lines: usize,
        next: [*const u8; 2],
    ) -> [*const u8; 2] {
        macro_rules! row {
            ($x:literal, $low:literal, $high:literal) => {
                concat!(
                    "vpbroadcastd ymm14, dword ptr [{x} + ",
                    $x,
                    "]\n",
                    "vpmaddwd ymm15, ymm14, ymm12\n",
                    "vpmaddwd ymm14, ymm14, ymm13\n",
                    "vpaddd ymm",
                    $low,
                    ", ymm",
                    $low,
                    ", ymm15\n",
                    "vpaddd ymm",
                    $high,
                    ", ymm",
                    $high,
                    ", ymm14",
                )
            };
        }
        let stride = stride * size_of::<i16>();
        let [a, b, c, d, e, f] = acc;
        let [mut next, mut masks] = next;
        // SAFETY: the rows have `4 * lines` elements and there are as many kept lines, as required: the loop reads 8 bytes of each
        // row and 128 of `kept` a turn. A prefetch may name any address.
        unsafe {
            asm!(
                "2:",
                "prefetcht1 byte ptr [{next}]",
                "prefetcht1 byte ptr [{masks}]",
                "vmovdqu ymm12, ymmword ptr [{w}]",
                "vmovdqu ymm13, ymmword ptr [{w} + 32]",
                row!("0", "0", "1"),
                row!("{s}", "2", "3"),
                row!("2 * {s}", "4", "5"),
                row!("{s3}", "6", "7"),
                row!("4 * {s}", "8", "9"),
                row!("{s5}", "10", "11"),
                "vmovdqu ymm12, ymmword ptr [{w} + 64]",
                "vmovdqu ymm13, ymmword ptr [{w} + 96]",
                row!("4", "0", "1"),
                row!("{s} + 4", "2", "3"),
                row!("2 * {s} + 4", "4", "5"),
                row!("{s3} + 4", "6", "7"),
                row!("4 * {s} + 4", "8", "9"),
                row!("{s5} + 4", "10", "11"),
                "add {next}, {line_bytes}",
                "add {masks}, {mask_bytes}",
                "add {x}, 8",
                "sub {w}, -128",
                "dec {lines}",
                "jnz 2b",
                x = inout(reg) x => _,
                w = inout(reg) kept => _,
                lines = inout(reg) lines => _,
                next = inout(reg) next,
                masks = inout(reg) masks,
                s = in(reg) stride,
                s3 = in(reg) 3 * stride,
                s5 = in(reg) 5 * stride,
                inout("ymm0") a[0], inout("ymm1") a[1],
                inout("ymm2") b[0], inout("ymm3") b[1],
                inout("ymm4") c[0], inout("ymm5") c[1],
                inout("ymm6") d[0], inout("ymm7") d[1],
                inout("ymm8") e[0], inout("ymm9") e[1],
                inout("ymm10") f[0], inout("ymm11") f[1],
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                line_bytes = const LINE_BYTES,
                mask_bytes = const MASK_BYTES,
                options(nostack, readonly),
            );
        }
        [next, masks]
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_three_to_six() {
        type Kernel<'a> = Words<'a, Dense>;
        for rows in 1..=BLOCK_ROWS {
            let mut rest = rows - Kernel::first_rows(rows);
            while rest > 0 {
                let count = Kernel::rows_of(rest);
                assert!(
                    (3..=KEPT_ROWS).contains(&count),
                    "{count} of {rest}, {rows} in all"
                );
                rest -= count;
            }
        }
    }
}
