//! AVX2: what the kernels for int8 and for int4 weights share.

use std::arch::x86_64::*;

use sparamx_cpu::avx2_fns;
use sparamx_format::STRIP_ROWS;

use super::PREFETCH_BYTES;
use crate::linear::chunk::{Chunk, StripScales};

/// Prefetches the bytes `at` bytes from `from` on, and [`PREFETCH_BYTES`] later.
#[inline(always)]
pub(super) fn prefetch<T>(from: *const T, at: usize) {
    // SAFETY: SSE is part of x86-64; a prefetch may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(PREFETCH_BYTES + at)) }
}

/// Bytes of scratch of a row: its [`RowSums`].
pub(super) const ROW_BYTES: usize = size_of::<RowSums>();

/// 16 outputs of a row, in two registers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RowSums {
    /// Sums of the group of scales under way.
    pub exact: [__m256i; 2],
    /// Scaled sums of the groups before.
    pub scaled: [__m256; 2],
}

avx2_fns!(
    pub(super) fn no_sums() -> RowSums {
        RowSums {
            exact: [_mm256_setzero_si256(); 2],
            scaled: [_mm256_setzero_ps(); 2],
        }
    }

    /// Ends a group: its exact sums, less `offset`, times its scales are added to those before.
    pub(super) fn end_group(sums: &mut RowSums, offset: i32, scales: [__m256; 2]) {
        for (half, scale) in scales.into_iter().enumerate() {
            let exact = _mm256_sub_epi32(sums.exact[half], _mm256_set1_epi32(offset));
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), scale);
            sums.scaled[half] = _mm256_add_ps(sums.scaled[half], scaled);
            sums.exact[half] = _mm256_setzero_si256();
        }
    }

    /// The 16 scales of group `g`.
    pub(super) fn scales_of(scales: StripScales<'_>, g: usize) -> [__m256; 2] {
        match scales {
            StripScales::F32(scales) => {
                let group: &[f32; STRIP_ROWS] = scales.as_chunks().0.get(g).expect("a group");
                // SAFETY: `group` is 16 floats, by its type.
                [0, 8].map(|at| unsafe { _mm256_loadu_ps(group.as_ptr().add(at)) })
            }
            StripScales::Bf16(bits) => {
                let group: &[u16; STRIP_ROWS] = bits.as_chunks().0.get(g).expect("a group");
                [0, 8].map(|at| {
                    // SAFETY: `group` is 16 elements, by its type.
                    let bits = unsafe { _mm_loadu_si128(group.as_ptr().add(at).cast()) };
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
                })
            }
        }
    }

    /// Writes the outputs of a row: `sums` times the row's scale.
    ///
    /// # Safety
    /// Row `i` is below M and strip `s` is the chunk's.
    pub(super) unsafe fn put(chunk: &Chunk<'_>, i: usize, s: usize, sums: &RowSums, scale: f32) {
        let y = sums
            .scaled
            .map(|sum| _mm256_mul_ps(sum, _mm256_set1_ps(scale)));
        // SAFETY: two registers of 8 floats are 16 floats; row and strip are the chunk's, as required.
        unsafe {
            let y = std::mem::transmute::<[__m256; 2], [f32; STRIP_ROWS]>(y);
            chunk.out.put(i, s, y)
        }
    }
);

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

/// 16 bytes: those from `value` on in the places of the 16 bits at `bits`, zero elsewhere. Both move on.
///
/// At M = 1 this is what the time goes into, some 12 cycles a line on Zen 4, where loads that are not aligned come 1.6 a cycle
/// and instructions 6: to load a mask byte by byte is too many loads, to shift all bytes out of it too many instructions. Loads of
/// 8 bytes cross fewer lines than those of 16 (13 cycles instead of 16).
///
/// # Safety
/// AVX2 level; 16 bytes from `value` on and two from `bits` on can be read.
#[inline(always)]
pub(super) unsafe fn spread<T>(value: &mut *const T, bits: &mut *const u8) -> __m128i {
    // SAFETY: the level and so many bytes are required, and a byte has at most 8 bits, so both loads of 8 bytes are among the 16;
    // the table has an entry for each byte.
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
