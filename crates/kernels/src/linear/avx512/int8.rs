//! AVX-512 VNNI: lines of int8 weights.

use std::arch::x86_64::*;

use sparamx_format::LINE_ELEMS_I8;

use super::PREFETCH_BYTES;
use super::int::{Lines, direct, panel};
use crate::linear::chunk::Chunk;

/// Dense int8 levels, with OFFSET 128, or 0 to leave them signed.
#[derive(Clone, Copy)]
pub(crate) struct DenseI8<const OFFSET: i32> {
    line: *const i8,
    /// Bytes from a line to the one to prefetch.
    ahead: isize,
}

impl<const OFFSET: i32> DenseI8<OFFSET> {
    pub fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        Self {
            line: chunk.dense_i8_strip(s).as_ptr(),
            ahead: chunk.ahead(PREFETCH_BYTES),
        }
    }
}

impl<const OFFSET: i32> Lines for DenseI8<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: two lines of 64 bytes are there, as required. A prefetch may name any address.
        unsafe {
            let odd = self.line.add(LINE_ELEMS_I8);
            _mm_prefetch::<_MM_HINT_T1>(self.line.wrapping_offset(self.ahead));
            _mm_prefetch::<_MM_HINT_T1>(odd.wrapping_offset(self.ahead));
            // Adding 128 to a byte is turning over its highest bit.
            let turn = _mm512_set1_epi8(OFFSET as u8 as i8);
            let lines = [
                _mm512_xor_si512(_mm512_loadu_si512(self.line.cast()), turn),
                _mm512_xor_si512(_mm512_loadu_si512(odd.cast()), turn),
            ];
            self.line = self.line.add(2 * LINE_ELEMS_I8);
            lines
        }
    }
}

/// Packed int8 levels, with OFFSET 128, or 0 to leave them signed.
#[derive(Clone, Copy)]
pub(crate) struct SparseI8<const OFFSET: i32> {
    mask: *const u64,
    value: *const i8,
    /// Bytes from masks and values to those to prefetch.
    ahead: isize,
}

impl<const OFFSET: i32> SparseI8<OFFSET> {
    pub fn new(chunk: &Chunk<'_>, s: usize) -> Self {
        let (masks, values) = chunk.sparse_i8_strip(s);
        Self {
            mask: masks.as_ptr(),
            value: values.as_ptr(),
            ahead: chunk.ahead(PREFETCH_BYTES),
        }
    }

    /// The register form of the expansion, as in bf16.rs. Places without a value take the offset alone.
    ///
    /// # Safety
    /// As for [`Lines::next`].
    #[inline(always)]
    unsafe fn line(&mut self) -> __m512i {
        // SAFETY: a mask is there, as required, and 64 bytes from the value on (`Chunk`, *values*). A prefetch may name any
        // address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.value.wrapping_offset(self.ahead));
            let turn = _mm512_set1_epi8(OFFSET as u8 as i8);
            let values = _mm512_xor_si512(_mm512_loadu_si512(self.value.cast()), turn);
            let mask = *self.mask;
            self.mask = self.mask.add(1);
            self.value = self.value.add(mask.count_ones() as usize);
            _mm512_mask_expand_epi8(turn, mask, values)
        }
    }
}

impl<const OFFSET: i32> Lines for SparseI8<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: two lines are there, as required. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.mask.cast::<i8>().wrapping_offset(self.ahead));
            [self.line(), self.line()]
        }
    }
}

/// Dense int8 weights.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn dense_i8_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required; `DenseI8::new` makes a source of a whole strip.
    unsafe { direct(chunk, DenseI8::<128>::new) }
}

/// Packed int8 weights, expanded in registers.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn sparse_i8_8x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the level is required; `SparseI8::new` makes a source of a whole strip.
    unsafe { direct(chunk, SparseI8::<128>::new) }
}

/// Packed int8 weights, expanded once.
///
/// # Safety
/// AVX-512 VNNI.
pub(crate) unsafe fn sparse_panel_i8_8x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the level is required; `SparseI8::new` makes a source of a whole strip.
    unsafe { panel::<_, 128>(chunk, scratch, SparseI8::<128>::new) }
}
