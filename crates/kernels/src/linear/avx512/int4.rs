//! AVX-512 VNNI: lines of int4 weights.

use std::arch::x86_64::*;

use sparamx_format::LINE_ELEMS_I8;

use super::PREFETCH_BYTES;
use super::int::{Lines, direct, panel};
use crate::linear::chunk::Chunk;

/// Dense int4 codes, which are levels with OFFSET 8, or with OFFSET 0 the levels themselves.
#[derive(Clone, Copy)]
pub(crate) struct DenseI4<const OFFSET: i32>(*const u8);

impl<const OFFSET: i32> DenseI4<OFFSET> {
    pub fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self(chunk.dense_i4_strip(s).as_ptr())
    }
}

impl<const OFFSET: i32> Lines for DenseI4<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: two lines, in 64 bytes, are there, as required. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.0.cast::<i8>().wrapping_offset(PREFETCH_BYTES));
            let both = _mm512_loadu_si512(self.0.cast());
            self.0 = self.0.add(LINE_ELEMS_I8);
            let low = _mm512_set1_epi8(15);
            let even = _mm512_and_si512(both, low);
            let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
            let less = _mm512_set1_epi8((8 - OFFSET) as i8);
            [_mm512_sub_epi8(even, less), _mm512_sub_epi8(odd, less)]
        }
    }
}

/// Packed int4 codes, with OFFSET 8, or 0 for the levels themselves.
#[derive(Clone, Copy)]
pub(crate) struct SparseI4<const OFFSET: i32> {
    mask: *const u64,
    values: *const u8,
    /// Values behind, from `values` on.
    at: usize,
}

impl<const OFFSET: i32> SparseI4<OFFSET> {
    pub fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        let (masks, values) = chunk.sparse_i4_strip(s);
        Self {
            mask: masks.as_ptr(),
            values: values.as_ptr(),
            at: 0,
        }
    }

    /// Level + OFFSET of each code, four times over: the look-up takes six bits of an index, of which a code is four.
    const TABLE: [i8; 64] = {
        let mut table = [0; 64];
        let mut i = 0;
        while i < 64 {
            let code = (i % 16) as i32;
            let level = if code < 8 { code - 8 } else { code - 7 };
            table[i] = (level + OFFSET) as i8;
            i += 1;
        }
        table
    };

    /// Byte 8q + i is 4q + i: to each eight bytes of a register those eight bytes of the values that hold its eight codes.
    const SPREAD: [i8; 64] = {
        let mut spread = [0; 64];
        let mut i = 0;
        while i < 64 {
            spread[i] = (i / 8 * 4 + i % 8) as i8;
            i += 1;
        }
        spread
    };

    /// Codes are spread one to a byte (`vpermb` brings the bytes, `vpmultishiftqb` the nibbles, at an odd one too), looked up,
    /// and expanded.
    ///
    /// # Safety
    /// As for [`Lines::next`].
    #[inline(always)]
    unsafe fn line(&mut self) -> __m512i {
        // SAFETY: a mask is there, as required, and 64 bytes from the value on (`Chunk`, *values*). A prefetch may name any
        // address.
        unsafe {
            let spread = _mm512_loadu_si512(Self::SPREAD.as_ptr().cast());
            let table = _mm512_loadu_si512(Self::TABLE.as_ptr().cast());
            let shifts = _mm512_set1_epi64(0x1c18_1410_0c08_0400);
            let odd = _mm512_set1_epi8(((self.at & 1) * 4) as i8);
            let bytes = _mm512_loadu_si512(self.values.add(self.at / 2).cast());
            let codes = _mm512_multishift_epi64_epi8(
                _mm512_add_epi8(shifts, odd),
                _mm512_permutexvar_epi8(spread, bytes),
            );
            let levels = _mm512_permutexvar_epi8(codes, table);
            let mask = *self.mask;
            self.mask = self.mask.add(1);
            self.at += mask.count_ones() as usize;
            _mm512_mask_expand_epi8(_mm512_set1_epi8(OFFSET as i8), mask, levels)
        }
    }
}

impl<const OFFSET: i32> Lines for SparseI4<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: two lines are there, as required. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.mask.cast::<i8>().wrapping_offset(PREFETCH_BYTES));
            _mm_prefetch::<_MM_HINT_T0>(
                self.values
                    .cast::<i8>()
                    .wrapping_offset((self.at / 2) as isize + PREFETCH_BYTES),
            );
            [self.line(), self.line()]
        }
    }
}

/// Dense int4 weights.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn dense_i4_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required; `DenseI4::new` makes a source of a whole strip.
    unsafe { direct(chunk, DenseI4::<8>::new) }
}

/// Packed int4 weights, expanded in registers.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn sparse_i4_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required; `SparseI4::new` makes a source of a whole strip.
    unsafe { direct(chunk, SparseI4::<8>::new) }
}

/// Packed int4 weights, expanded once.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn sparse_panel_i4_8x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; `SparseI4::new` makes a source of a whole strip.
    unsafe { panel::<_, 8>(chunk, scratch, SparseI4::<8>::new) }
}
