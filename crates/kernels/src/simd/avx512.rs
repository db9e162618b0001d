//! [`Lanes`] on AVX-512.

use std::arch::x86_64::*;

use sparamx_cpu::Avx512;

use super::Lanes;

/// The first `n` lanes.
#[inline(always)]
fn first_lanes(n: usize) -> __mmask16 {
    assert!(n <= 16, "{n} lanes of 16");
    ((1u32 << n) - 1) as u16
}

/// A method whose body is one expression of intrinsics without memory operands. As functions, eight methods would repeat the
/// attribute and the same safety comment.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident),+) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: __m512),+) -> __m512 {
            // SAFETY: the token proves the level.
            unsafe { $body }
        }
    )*};
}

impl Lanes for Avx512 {
    const LEN: usize = 16;
    type F32 = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves the level.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from: &[f32; 16] = from.first_chunk().expect("a whole vector");
        // SAFETY: the token proves the level, and `from` is 64 bytes.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> __m512 {
        let lanes = first_lanes(from.len());
        // SAFETY: the token proves the level; lanes past the end of `from` are masked off, and so not read.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), lanes, from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32]) {
        let to: &mut [f32; 16] = to.first_chunk_mut().expect("a whole vector");
        // SAFETY: the token proves the level, and `to` is 64 bytes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_part(self, x: __m512, to: &mut [f32]) {
        let lanes = first_lanes(to.len());
        // SAFETY: the token proves the level; lanes past the end of `to` are masked off, and so not written.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), lanes, x) }
    }

    intrinsics! {
        fn add(a, b) = _mm512_add_ps(a, b);
        fn sub(a, b) = _mm512_sub_ps(a, b);
        fn mul(a, b) = _mm512_mul_ps(a, b);
        fn div(a, b) = _mm512_div_ps(a, b);
        fn mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        fn max(a, b) = _mm512_max_ps(a, b);
        fn min(a, b) = _mm512_min_ps(a, b);
        fn scale(x, n) = _mm512_scalef_ps(x, n);
    }

    #[inline(always)]
    fn reduce_sum(self, x: __m512) -> f32 {
        // SAFETY: the token proves the level.
        let half =
            unsafe { _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)) };
        self.avx2().reduce_sum(half)
    }

    #[inline(always)]
    fn reduce_max(self, x: __m512) -> f32 {
        // SAFETY: the token proves the level.
        let half =
            unsafe { _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)) };
        self.avx2().reduce_max(half)
    }
}
