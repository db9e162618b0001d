//! AVX-512 VNNI: int8 and int4 weights by int8 activations.
//!
//! `vpdpbusd` multiplies unsigned bytes by signed ones, and only the signed operand can be a quad of activations broadcast from
//! memory. So weights are made unsigned by an offset: `sum (w + offset) x = sum w x + offset sum x`, and the sum of x is known.
//! int8 levels take the offset 128, int4 levels 8, which their codes nearly have already.

use std::arch::x86_64::*;

use sparamx_cpu::avx512_vnni_fns;
use sparamx_format::{LINE_ELEMS_I8, STRIP_ROWS};

use super::chunk::{Chunk, I8Row, StripScales};

/// How far ahead of use weights are asked for; see avx2.rs.
const PREFETCH_BYTES: isize = 4096;

/// Most rows at a time: 8 rows x 2 sums take 16 of the 32 registers and keep the multiplier busy (latency 4 or 5 cycles).
const MR: usize = 8;

/// Lines of levels of a strip, two at a time: a strip has a multiple of 16 lines, and dense int4 lines lie in pairs.
pub(crate) trait Lines: Copy {
    /// What is added to each level.
    const OFFSET: i32;

    /// The next two lines.
    ///
    /// # Safety
    /// AVX-512 VNNI; there are two more lines. `#[inline(always)]`.
    unsafe fn next(&mut self) -> [__m512i; 2];
}

/// Lines of bytes, to which OFFSET was added before: panels.
#[derive(Clone, Copy)]
struct Bytes<const OFFSET: i32>(*const u8);

impl<const OFFSET: i32> Lines for Bytes<OFFSET> {
    const OFFSET: i32 = OFFSET;

    #[inline(always)]
    unsafe fn next(&mut self) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let even = _mm512_loadu_si512(self.0.cast());
            let odd = _mm512_loadu_si512(self.0.add(LINE_ELEMS_I8).cast());
            self.0 = self.0.add(2 * LINE_ELEMS_I8);
            [even, odd]
        }
    }
}

/// Dense int8 levels, with OFFSET 128, or 0 to leave them signed.
#[derive(Clone, Copy)]
pub(crate) struct DenseI8<const OFFSET: i32> {
    line: *const i8,
    /// Bytes from a line to the one to ask memory for.
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
        // SAFETY: the caller's promise. A prefetch may name any address.
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
    /// Bytes from masks and values to those to ask memory for.
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

    /// The register form of the expansion, as in avx512.rs. Places without a value take the offset alone.
    ///
    /// # Safety
    /// As for [`Lines::next`].
    #[inline(always)]
    unsafe fn line(&mut self) -> __m512i {
        // SAFETY: the caller's promise; 64 bytes from any value of a strip are inside the tensor.
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
        // SAFETY: the caller's promise. A prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(self.mask.cast::<i8>().wrapping_offset(self.ahead));
            [self.line(), self.line()]
        }
    }
}

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
        // SAFETY: the caller's promise. A prefetch may name any address.
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
        // SAFETY: the caller's promise; 64 bytes from any value of a strip are inside the tensor.
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
        // SAFETY: the caller's promise. A prefetch may name any address.
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

/// Calls `rows::<_, R>(chunk, lines, s, i)` for blocks of at most [`MR`] rows.
///
/// # Safety
/// AVX-512 VNNI; `lines` yields strip `s` of the chunk.
#[inline(always)]
unsafe fn in_row_blocks<L: Lines>(chunk: &Chunk<'_>, lines: L, s: usize) {
    let mut i = 0;
    while i < chunk.m {
        // SAFETY: the caller's promise; rows i.. exist.
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

/// Multiplies each strip straight from its bytes, again for each block of rows.
macro_rules! direct {
    ($(#[$doc:meta])* $name:ident, $lines:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// AVX-512 VNNI; a chunk as its documentation says.
        pub(crate) unsafe fn $name(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
            for s in chunk.strips.clone() {
                // SAFETY: the caller's promise.
                unsafe { in_row_blocks(chunk, <$lines>::new(chunk, s), s) }
            }
        }
    };
}

/// Expands each strip once, to a panel of bytes in the L2 cache, for all rows.
macro_rules! panel {
    ($(#[$doc:meta])* $name:ident, $lines:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// AVX-512 VNNI; a chunk as its documentation says.
        pub(crate) unsafe fn $name(chunk: &Chunk<'_>, scratch: &mut [u8]) {
            for s in chunk.strips.clone() {
                // SAFETY: the caller's promise; the scratch takes a strip of bytes.
                unsafe {
                    expand(<$lines>::new(chunk, s), scratch);
                    let bytes = Bytes::<{ <$lines as Lines>::OFFSET }>(scratch.as_ptr());
                    in_row_blocks(chunk, bytes, s);
                }
            }
        }
    };
}

direct!(
    /// Dense int8 weights.
    dense_i8_8x16, DenseI8<128>);
direct!(
    /// Packed int8 weights, expanded in registers.
    sparse_i8_8x16, SparseI8<128>);
panel!(
    /// Packed int8 weights, expanded once.
    sparse_panel_i8_8x16, SparseI8<128>);
direct!(
    /// Dense int4 weights.
    dense_i4_8x16, DenseI4<8>);
direct!(
    /// Packed int4 weights, expanded in registers.
    sparse_i4_8x16, SparseI4<8>);
panel!(
    /// Packed int4 weights, expanded once.
    sparse_panel_i4_8x16, SparseI4<8>);

avx512_vnni_fns!(
    /// Writes all lines of a strip, or of whole tiles of it, one after the other: as many as `out` takes.
    ///
    /// # Safety
    /// `lines` yields that many.
    pub(crate) unsafe fn expand<L: Lines>(mut lines: L, out: &mut [u8]) -> L {
        for out in out.chunks_exact_mut(2 * LINE_ELEMS_I8) {
            // SAFETY: the caller's promise; two lines are 128 bytes.
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
    /// `lines` yields strip `s`; rows i.. exist.
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
                // SAFETY: lines l and l + 1 are there, and their quads in each row.
                unsafe {
                    let w = lines.next();
                    for (acc, x) in acc.iter_mut().zip(x) {
                        for (parity, acc) in acc.iter_mut().enumerate() {
                            let quad = x.q.cast::<i32>().add(l + parity).read_unaligned();
                            *acc = _mm512_dpbusd_epi32(*acc, w[parity], _mm512_set1_epi32(quad));
                        }
                    }
                }
            }
            let scale = scales_of(scales, g);
            for r in 0..R {
                // SAFETY: the group is inside the row.
                unsafe {
                    let offset = L::OFFSET.wrapping_mul(x[r].sum(4 * first..4 * end));
                    let exact = _mm512_sub_epi32(
                        _mm512_add_epi32(acc[r][0], acc[r][1]),
                        _mm512_set1_epi32(offset),
                    );
                    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
                    sums[r] = _mm512_add_ps(sums[r], scaled);
                }
            }
        }
        // SAFETY: rows and strip are the chunk's.
        unsafe { put(chunk, x, sums, s, i) };
        R
    }

    /// The 16 scales of group `g`.
    pub(crate) fn scales_of(scales: StripScales<'_>, g: usize) -> __m512 {
        match scales {
            StripScales::F32(scales) => {
                let group: &[f32; STRIP_ROWS] = scales.as_chunks().0.get(g).expect("a group");
                // SAFETY: 16 floats.
                unsafe { _mm512_loadu_ps(group.as_ptr()) }
            }
            StripScales::Bf16(bits) => {
                let group: &[u16; STRIP_ROWS] = bits.as_chunks().0.get(g).expect("a group");
                // SAFETY: 32 bytes.
                let bits = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            }
        }
    }

    /// # Safety
    /// Rows i.. exist and `x` are they; strip `s` is the chunk's.
    unsafe fn put<const R: usize>(
        chunk: &Chunk<'_>,
        x: [I8Row; R],
        sums: [__m512; R],
        s: usize,
        i: usize,
    ) {
        for r in 0..R {
            // SAFETY: the caller's promise; a register holds 16 floats.
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
