//! [`Lanes`] on AVX2 and FMA.

use std::arch::x86_64::*;

use sparamx_cpu::Avx2;

use super::Lanes;

/// All ones, then all zeros: the eight from `8 - n` on select the first `n` lanes.
static FIRST_LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// All ones in the first `n` lanes.
#[inline(always)]
fn first_lanes(_: Avx2, n: usize) -> __m256i {
    let window: &[i32; 8] = FIRST_LANES[8 - n..].first_chunk().expect("at most 8 lanes");
    // SAFETY: the token proves the level, and `window` is 32 bytes.
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

/// A method whose body is one expression of intrinsics without memory operands. As functions, seven methods would repeat the
/// attribute and the same safety comment.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident),+) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: __m256),+) -> __m256 {
            // SAFETY: the token proves the level.
            unsafe { $body }
        }
    )*};
}

impl Lanes for Avx2 {
    const LEN: usize = 8;
    type F32 = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves the level.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from: &[f32; 8] = from.first_chunk().expect("a whole vector");
        // SAFETY: the token proves the level, and `from` is 32 bytes.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> __m256 {
        let lanes = first_lanes(self, from.len());
        // SAFETY: the token proves the level; lanes past the end of `from` are masked off, and so not read.
        unsafe {
            let x = _mm256_maskload_ps(from.as_ptr(), lanes);
            _mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(lanes))
        }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32]) {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("a whole vector");
        // SAFETY: the token proves the level, and `to` is 32 bytes.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_part(self, x: __m256, to: &mut [f32]) {
        let lanes = first_lanes(self, to.len());
        // SAFETY: the token proves the level; lanes past the end of `to` are masked off, and so not written.
        unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), lanes, x) }
    }

    intrinsics! {
        fn add(a, b) = _mm256_add_ps(a, b);
        fn sub(a, b) = _mm256_sub_ps(a, b);
        fn mul(a, b) = _mm256_mul_ps(a, b);
        fn div(a, b) = _mm256_div_ps(a, b);
        fn mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        fn max(a, b) = _mm256_max_ps(a, b);
        fn min(a, b) = _mm256_min_ps(a, b);
    }

    #[inline(always)]
    fn scale(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: the token proves the level.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let x = _mm256_mul_ps(x, power_of_two(half));
            _mm256_mul_ps(x, power_of_two(_mm256_sub_epi32(n, half)))
        }
    }

    #[inline(always)]
    fn reduce_sum(self, x: __m256) -> f32 {
        // SAFETY: the token proves the level.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, x: __m256) -> f32 {
        // SAFETY: the token proves the level.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
}

sparamx_cpu::avx2_fns!(
    /// 2^n for `n` in -126..=127.
    #[inline]
    fn power_of_two(n: __m256i) -> __m256 {
        let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
);
