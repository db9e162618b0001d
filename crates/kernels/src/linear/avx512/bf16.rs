//! AVX-512: a line is one register, expanded by `vpexpandw`. Two ways to multiply it: by f32 activations, with the very sums of
//! the AVX2 kernels, and by bf16 activations with `vdpbf16ps`.

#![expect(
    clippy::needless_range_loop,
    reason = "the sums of a row are picked by the parity of a line"
)]

use std::arch::x86_64::*;

use sparamx_cpu::{avx512_bf16_fns, avx512_fns};
use sparamx_format::{LINE_ELEMS_BF16, STRIP_ROWS};

use super::PREFETCH_BYTES;
use crate::linear::chunk::Chunk;
use crate::linear::loops::{dense, panels};

/// Most rows at a time: 8 rows x 2 sums take 16 of the 32 registers, enough to keep two FMA units of 4 cycles busy twice over.
const MR: usize = 8;

/// Lines of a strip, one after the other.
trait Source: Copy {
    /// The next line.
    ///
    /// # Safety
    /// AVX-512 level; there is a next line, and what [`Chunk`] says of its strip. `#[inline(always)]`.
    unsafe fn next(&mut self) -> __m512i;
}

#[derive(Clone, Copy)]
struct DenseLines {
    line: *const u16,
    /// Bytes from a line to the one to prefetch.
    ahead: isize,
}

impl Source for DenseLines {
    #[inline(always)]
    unsafe fn next(&mut self) -> __m512i {
        // SAFETY: a line of 64 bytes is there, as required. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.line.cast::<i8>().wrapping_offset(self.ahead));
            let line = _mm512_loadu_si512(self.line.cast());
            self.line = self.line.add(LINE_ELEMS_BF16);
            line
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct SparseLines {
    mask: *const u32,
    value: *const u16,
    /// Bytes from masks and values to those to prefetch.
    ahead: isize,
}

impl Source for SparseLines {
    /// The register form of the expansion after a plain load of 64 bytes, see [`load`].
    #[inline(always)]
    unsafe fn next(&mut self) -> __m512i {
        // SAFETY: a mask is there, as required, and 64 bytes from the value on (`Chunk`, *values*). A prefetch may name any
        // address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.mask.cast::<i8>().wrapping_offset(self.ahead));
            _mm_prefetch::<_MM_HINT_T1>(self.value.cast::<i8>().wrapping_offset(self.ahead));
            let mask = *self.mask;
            let line = _mm512_maskz_expand_epi16(mask, load(self.value.cast()));
            self.mask = self.mask.add(1);
            self.value = self.value.add(mask.count_ones() as usize);
            line
        }
    }
}

avx512_fns!(
    /// 64 bytes, loaded by an instruction of their own. The compiler would make the intrinsic's load an operand of `vpexpandw`,
    /// which in that form takes Zen 4 several times as long, and Intel as long as both.
    ///
    /// # Safety
    /// 64 bytes from `from` on can be read.
    #[inline]
    unsafe fn load(from: *const u8) -> __m512i {
        let bytes;
        // SAFETY: 64 bytes can be read, as required; nothing is written but the register.
        unsafe {
            std::arch::asm!(
                "vmovdqu64 {}, zmmword ptr [{}]",
                out(zmm_reg) bytes,
                in(reg) from,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        bytes
    }
);

pub(crate) fn sparse_source(chunk: &Chunk<'_>, s: usize) -> SparseLines {
    let (masks, values) = chunk.sparse_strip(s);
    SparseLines {
        mask: masks.as_ptr(),
        value: values.as_ptr(),
        ahead: chunk.ahead(PREFETCH_BYTES),
    }
}

fn dense_source(chunk: &Chunk<'_>, lines: &[u16]) -> DenseLines {
    assert_eq!(lines.len(), chunk.strip_elems());
    DenseLines {
        line: lines.as_ptr(),
        ahead: chunk.ahead(PREFETCH_BYTES),
    }
}

/// Calls `$rows::<_, R>(chunk, source, s, i)` for blocks of at most [`MR`] rows. A macro because a function cannot take another
/// one that is generic in a constant.
macro_rules! in_row_blocks {
    ($rows:ident, $chunk:expr, $source:expr, $s:expr) => {{
        let (chunk, source, s) = ($chunk, $source, $s);
        let mut i = 0;
        while i < chunk.m {
            i += match chunk.m - i {
                1 => $rows::<_, 1>(chunk, source, s, i),
                2 => $rows::<_, 2>(chunk, source, s, i),
                3 => $rows::<_, 3>(chunk, source, s, i),
                4 => $rows::<_, 4>(chunk, source, s, i),
                5 => $rows::<_, 5>(chunk, source, s, i),
                6 => $rows::<_, 6>(chunk, source, s, i),
                7 => $rows::<_, 7>(chunk, source, s, i),
                _ => $rows::<_, MR>(chunk, source, s, i),
            };
        }
    }};
}

/// Dense bf16 weights, f32 activations.
///
/// # Safety
/// AVX-512 level.
pub(crate) unsafe fn dense_f32_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required here too.
    unsafe { dense(chunk, multiply_f32) }
}

/// Packed bf16 weights straight from the packed bytes, f32 activations.
///
/// # Safety
/// AVX-512 level.
pub(crate) unsafe fn sparse_f32_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    for s in chunk.strips.clone() {
        // SAFETY: the level is required; `sparse_source` yields all lines of strip `s`, which is the chunk's; rows are below M.
        unsafe { in_row_blocks!(rows_f32, chunk, sparse_source(chunk, s), s) }
    }
}

/// Packed bf16 weights, expanded once to panels, f32 activations.
///
/// # Safety
/// AVX-512 level.
pub(crate) unsafe fn sparse_panel_f32_8x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required here too.
    unsafe { panels(chunk, scratch, expand, multiply_f32) }
}

/// Dense bf16 weights, bf16 activations.
///
/// # Safety
/// AVX-512 with BF16.
pub(crate) unsafe fn dense_bf16_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required here too.
    unsafe { dense(chunk, multiply_bf16) }
}

/// Packed bf16 weights straight from the packed bytes, bf16 activations.
///
/// # Safety
/// AVX-512 with BF16.
pub(crate) unsafe fn sparse_bf16_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    for s in chunk.strips.clone() {
        // SAFETY: the level is required; `sparse_source` yields all lines of strip `s`, which is the chunk's; rows are below M.
        unsafe { in_row_blocks!(rows_bf16, chunk, sparse_source(chunk, s), s) }
    }
}

/// Packed bf16 weights, expanded once to panels, bf16 activations.
///
/// # Safety
/// AVX-512 with BF16.
pub(crate) unsafe fn sparse_panel_bf16_8x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required here too.
    unsafe { panels(chunk, scratch, expand, multiply_bf16) }
}

/// [`Multiply`](crate::linear::loops::Multiply)
///
/// # Safety
/// The level of instructions; `lines` are those of strip `s`, which is the chunk's.
unsafe fn multiply_f32(chunk: &Chunk<'_>, lines: &[u16], s: usize) {
    // SAFETY: the level and a strip of the chunk are required; `dense_source` asserts that its lines are whole; rows are below M.
    unsafe { in_row_blocks!(rows_f32, chunk, dense_source(chunk, lines), s) }
}

/// [`Multiply`](crate::linear::loops::Multiply)
///
/// # Safety
/// The level of instructions; `lines` are those of strip `s`, which is the chunk's.
unsafe fn multiply_bf16(chunk: &Chunk<'_>, lines: &[u16], s: usize) {
    // SAFETY: the level and a strip of the chunk are required; `dense_source` asserts that its lines are whole; rows are below M.
    unsafe { in_row_blocks!(rows_bf16, chunk, dense_source(chunk, lines), s) }
}

avx512_fns!(
    /// `R` rows from `i` on times strip `s`; returns `R`. Even and odd k are summed apart, as on AVX2.
    ///
    /// # Safety
    /// `source` yields all lines of strip `s`, which is the chunk's; `R` rows from `i` on are below M.
    unsafe fn rows_f32<S: Source, const R: usize>(
        chunk: &Chunk<'_>,
        mut source: S,
        s: usize,
        i: usize,
    ) -> usize {
        let x = chunk.f32_rows::<R>(i);
        let odd_half = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for l in 0..chunk.lines() {
            // SAFETY: `source` yields line l, as required, and each row, which `f32_rows` gave, has elements 2 l and 2 l + 1
            // (`Chunk`, *rows*).
            unsafe {
                let w = source.next();
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w));
                let odd = _mm512_castsi512_ps(_mm512_and_si512(w, odd_half));
                for r in 0..R {
                    acc[r][0] = _mm512_fmadd_ps(even, _mm512_set1_ps(*x[r].add(2 * l)), acc[r][0]);
                    acc[r][1] =
                        _mm512_fmadd_ps(odd, _mm512_set1_ps(*x[r].add(2 * l + 1)), acc[r][1]);
                }
            }
        }
        // SAFETY: `f32_rows` asserted that the rows are below M; strip `s` is the chunk's, as required.
        unsafe { put(chunk, acc, s, i) };
        R
    }

    /// [`crate::linear::loops::Expand`]
    ///
    /// # Safety
    /// AVX-512 level; masks and values are a strip's, as [`Chunk`] says.
    pub(crate) unsafe fn expand(masks: &[u32], values: &[u16], panel: &mut [u16]) {
        assert_eq!(panel.len(), masks.len() * LINE_ELEMS_BF16);
        let source = SparseLines {
            mask: masks.as_ptr(),
            value: values.as_ptr(),
            ahead: PREFETCH_BYTES,
        };
        // SAFETY: masks and values are a strip's, as required, and the panel has as many lines as there are masks (asserted).
        unsafe { expand_lines(source, panel) };
    }

    /// Writes the next lines, as many as `out` takes.
    ///
    /// # Safety
    /// `source` yields that many, see [`Source::next`].
    pub(crate) unsafe fn expand_lines(mut source: SparseLines, out: &mut [u16]) -> SparseLines {
        for line in out.chunks_exact_mut(LINE_ELEMS_BF16) {
            // SAFETY: `source` yields a line for each of `out`, as required; `line` is 64 bytes.
            unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), source.next()) };
        }
        source
    }
);

/// Writes the two sums of each row, added. Part of its callers: as a function it takes the sums from memory, a third of the time
/// with strips as short as those of a page.
///
/// # Safety
/// AVX-512 level; `R` rows from `i` on are below M, and strip `s` is the chunk's.
#[inline(always)]
unsafe fn put<const R: usize>(chunk: &Chunk<'_>, acc: [[__m512; 2]; R], s: usize, i: usize) {
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: row and strip are the chunk's, as required, and so is that part of the output. A register holds 16 floats.
        unsafe {
            let sum = _mm512_add_ps(acc[0], acc[1]);
            let sum = std::mem::transmute::<__m512, [f32; STRIP_ROWS]>(sum);
            chunk.out.put(i + r, s, sum);
        }
    }
}

avx512_bf16_fns!(
    /// `R` rows from `i` on times strip `s`; returns `R`. `vdpbf16ps` adds both products of a k-pair to a lane; lines of even
    /// and odd number are summed apart, because one sum a row would wait for itself (6 cycles).
    ///
    /// # Safety
    /// `source` yields all lines of strip `s`, which is the chunk's; `R` rows from `i` on are below M.
    unsafe fn rows_bf16<S: Source, const R: usize>(
        chunk: &Chunk<'_>,
        mut source: S,
        s: usize,
        i: usize,
    ) -> usize {
        let x = chunk.bf16_rows::<R>(i);
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        // K is a multiple of 32, so the number of lines is one of 16.
        for l in (0..chunk.lines()).step_by(2) {
            for parity in 0..2 {
                // SAFETY: `source` yields line l + parity, as required, and each row, which `bf16_rows` gave, has its k-pair
                // (`Chunk`, *rows*).
                unsafe {
                    let w = std::mem::transmute::<__m512i, __m512bh>(source.next());
                    for r in 0..R {
                        let pair =
                            _mm512_set1_epi32(x[r].cast::<i32>().add(l + parity).read_unaligned());
                        acc[r][parity] = _mm512_dpbf16_ps(
                            acc[r][parity],
                            w,
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                        );
                    }
                }
            }
        }
        // SAFETY: the rows are below M and strip `s` is the chunk's, as required.
        unsafe { put(chunk, acc, s, i) };
        R
    }
);
