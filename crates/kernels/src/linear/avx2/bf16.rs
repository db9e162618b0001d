//! AVX2 and FMA: activations stay f32, bf16 weights are widened to f32 by putting them into the upper halves of the lanes.
//!
//! One loop nest, [`blocked`], serves every M, dense and packed weights alike. Between blocks of k the sums wait in memory as
//! they are, so each output is summed up in one order whatever M is.

#![expect(
    clippy::needless_range_loop,
    reason = "a group is a register of a line and of the sums"
)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use sparamx_cpu::avx2_fns;
use sparamx_format::{LINE_BYTES, LINE_ELEMS_BF16, STRIP_ROWS};

use super::{PREFETCH_BYTES, page};
use crate::linear::chunk::Chunk;
use crate::linear::loops::{BLOCK_LINES, BLOCK_ROWS, Blocked, Span, blocked};

/// Most rows at a time: 3 rows x 4 sums, 3 pairs of activations and one weight are all 16 registers.
const MR: usize = 3;

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

/// [`Lines`] of a weight.
trait Strip: Lines {
    /// The first line of strip `s`.
    fn new(chunk: &Chunk<'_>, s: usize) -> Self;

    /// Where the elements, or values, of the lines from here on are, and their masks if they have any.
    fn places(&self) -> [*const u8; 2];
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
        // SAFETY: a whole line is there, as required. A prefetch may name any address.
        unsafe {
            self.0 = line.add(LINE_ELEMS_BF16);
            _mm_prefetch::<_MM_HINT_T0>(line.cast::<i8>().wrapping_add(PREFETCH_BYTES));
        }
        line
    }

    /// No constant is needed, for which there is no register.
    #[inline(always)]
    unsafe fn group(line: Self::Line, group: usize) -> __m256 {
        // SAFETY: `next` gave `line`, which has 4 groups of 8 elements, and `group` is less than that, as required.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(line.add(8 * group).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
}

impl Strip for Dense {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self(chunk.dense_strip(s).as_ptr())
    }

    fn places(&self) -> [*const u8; 2] {
        [self.0.cast(); 2]
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
        // SAFETY: there is a mask, as required, and a value for each of its bits (`Chunk`, *values*). A prefetch may name any
        // address.
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
        // SAFETY: the load begins at a value of the strip or one past its last, from where 64 bytes can be read (`Chunk`,
        // *values*); the table has an entry for each byte.
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

impl Strip for Sparse {
    fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        let (masks, values) = chunk.sparse_strip(s);
        Self {
            mask: masks.as_ptr(),
            value: values.as_ptr(),
        }
    }

    fn places(&self) -> [*const u8; 2] {
        [self.value.cast(), self.mask.cast()]
    }
}

/// Lines kept as f32.
struct Kept {
    line: *const f32,
    /// What will be read next, which is prefetched meanwhile.
    next: [*const u8; 2],
}

impl Lines for Kept {
    type Line = *const f32;

    #[inline(always)]
    unsafe fn next(&mut self) -> Self::Line {
        let line = self.line;
        let [elements, masks] = self.next;
        // SAFETY: a whole line was kept, as required. A prefetch may name any address.
        unsafe {
            self.line = line.add(LINE_FLOATS);
            _mm_prefetch::<_MM_HINT_T1>(elements.cast());
            _mm_prefetch::<_MM_HINT_T1>(masks.cast());
        }
        self.next = [
            elements.wrapping_add(LINE_BYTES),
            masks.wrapping_add(size_of::<u32>()),
        ];
        line
    }

    #[inline(always)]
    unsafe fn group(line: Self::Line, group: usize) -> __m256 {
        // SAFETY: `next` gave `line`, which has 4 groups of 8 floats, and `group` is less than that, as required.
        unsafe { _mm256_loadu_ps(line.add(8 * group)) }
    }
}

/// Dense bf16 weights.
///
/// # Safety
/// AVX2 level.
pub(crate) unsafe fn dense_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; `ahead` is the chunk's, and a strip has `lines` lines.
    unsafe {
        if let Some(ahead) = chunk.page {
            return page::dense(chunk, ahead);
        }
        blocked(chunk, chunk.lines(), &Widened::<Dense>::new(chunk, scratch))
    }
}

/// Packed bf16 weights.
///
/// # Safety
/// AVX2 level.
pub(crate) unsafe fn sparse_3x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; `ahead` is the chunk's, and a strip has `lines` lines.
    unsafe {
        if let Some(ahead) = chunk.page {
            return page::sparse(chunk, scratch, ahead);
        }
        blocked(
            chunk,
            chunk.lines(),
            &Widened::<Sparse>::new(chunk, scratch),
        )
    }
}

/// The kernel for weights whose lines are `L`.
struct Widened<'a, L> {
    chunk: &'a Chunk<'a>,
    /// Room for [`BLOCK_LINES`].
    keep: *mut f32,
    /// Room for the sums of [`BLOCK_ROWS`].
    sums: *mut f32,
    lines: PhantomData<L>,
}

impl<'a, L> Widened<'a, L> {
    /// # Panics
    /// If the scratch is not of [`block_bytes`].
    fn new(chunk: &'a Chunk<'a>, scratch: &'a mut [u8]) -> Self {
        assert_eq!(scratch.len(), block_bytes(chunk.k_padded), "scratch");
        let (keep, sums) =
            bytemuck::cast_slice_mut::<u8, f32>(scratch).split_at_mut(BLOCK_LINES * LINE_FLOATS);
        Self {
            chunk,
            keep: keep.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
            lines: PhantomData,
        }
    }
}

impl<L: Strip> Blocked for Widened<'_, L> {
    type Lines = L;

    const ONE_PASS_LINES: usize = usize::MAX;

    /// A single row, with four sums under way, would wait for its own sums, so it is avoided.
    fn rows_of(rest: usize) -> usize {
        match rest {
            1 | 2 => rest,
            4 => 2,
            _ => MR,
        }
    }

    fn lines(&self, s: usize) -> L {
        L::new(self.chunk, s)
    }

    unsafe fn fresh(&self, span: &Span, lines: &mut L, i: usize, count: usize, keep: bool) {
        // SAFETY: *rows* and *span* are required; `count` is of `rows_of`, so as many as each arm takes.
        unsafe {
            match (count, keep) {
                (1, _) => self.multiply::<L, 1, false>(span, i, lines),
                (2, false) => self.multiply::<L, 2, false>(span, i, lines),
                (2, true) => self.multiply::<L, 2, true>(span, i, lines),
                (_, false) => self.multiply::<L, MR, false>(span, i, lines),
                (_, true) => self.multiply::<L, MR, true>(span, i, lines),
            }
        }
    }

    unsafe fn kept(&self, span: &Span, next: &L, i: usize, count: usize) {
        let mut lines = Kept {
            line: self.keep,
            next: next.places(),
        };
        // SAFETY: *rows* and *span* are required, and that the lines were kept; `count` is of `rows_of`.
        unsafe {
            match count {
                1 => self.multiply::<_, 1, false>(span, i, &mut lines),
                2 => self.multiply::<_, 2, false>(span, i, &mut lines),
                _ => self.multiply::<_, MR, false>(span, i, &mut lines),
            }
        }
    }
}

impl<S> Widened<'_, S> {
    avx2_fns!(
        /// `R` rows from `i` on; KEEP writes the lines to `keep`.
        ///
        /// # Safety
        /// As [`Blocked::fresh`], with `R` for `count`; `lines` yields the lines of the span.
        unsafe fn multiply<L: Lines, const R: usize, const KEEP: bool>(
            &self,
            span: &Span,
            i: usize,
            lines: &mut L,
        ) {
            let x = self.chunk.f32_rows::<R>(i);
            let at = |r: usize| {
                self.sums
                    .wrapping_add((i - span.first_row + r) * LINE_FLOATS)
            };
            let mut acc = [[_mm256_setzero_ps(); GROUPS]; R];
            if span.from > 0 {
                // SAFETY: `new` made room for the sums of BLOCK_ROWS, of which these are (*rows*), and the span before put them
                // there (*span*).
                let sums = |r| std::array::from_fn(|group| unsafe { Kept::group(at(r), group) });
                acc = std::array::from_fn(sums);
            }
            let mut keep = self.keep;
            for l in span.from..span.to {
                // SAFETY: `lines` yields line l, as required; each row, which `f32_rows` gave, has elements 2 l and 2 l + 1
                // (`Chunk`, *rows*); `keep` has room for BLOCK_LINES (`new`), and the span is no longer if they are kept.
                unsafe {
                    let line = lines.next();
                    let pair = x.map(|x| {
                        let pair = x.add(2 * l).cast::<f64>();
                        _mm256_castpd_ps(_mm256_broadcast_sd(&pair.read_unaligned()))
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
                // SAFETY: `f32_rows` asserted that the rows are below M, and the strip is the chunk's (*span*); there is room for
                // the sums of BLOCK_ROWS (`new`), of which these are (*rows*).
                unsafe {
                    if span.to == self.chunk.lines() {
                        self.chunk.out.put(i + r, span.s, outputs(acc));
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
