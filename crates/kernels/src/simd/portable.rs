//! [`Lanes`] in plain Rust: arrays that the compiler may turn into whatever vectors the target has.

use std::array;

use super::Lanes;

/// Eight lanes, as two or four registers of the 128-bit vectors that every target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LEN: usize = 8;

/// Halves are combined until one lane is left.
#[inline(always)]
fn reduce(x: [f32; LEN], f: impl Fn(f32, f32) -> f32) -> f32 {
    let x: [f32; 4] = array::from_fn(|i| f(x[i], x[i + 4]));
    f(f(x[0], x[2]), f(x[1], x[3]))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// 2^n for whole `n` in -126..=127, built from the bits: `n as i32` would saturate, which costs more than the rest.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    // 1.5 * 2^23 + 127 + n holds n + 127 in its lowest bits; the shift moves them to the exponent and drops the others.
    f32::from_bits((n + (12_582_912.0 + 127.0)).to_bits() << 23)
}

impl Lanes for Portable {
    const LEN: usize = LEN;
    type F32 = [f32; LEN];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LEN] {
        [x; LEN]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; LEN] {
        *from.first_chunk().expect("a whole vector")
    }

    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> [f32; LEN] {
        let mut x = [fill; LEN];
        x[..from.len()].copy_from_slice(from);
        x
    }

    #[inline(always)]
    fn store(self, x: [f32; LEN], to: &mut [f32]) {
        *to.first_chunk_mut().expect("a whole vector") = x;
    }

    #[inline(always)]
    fn store_part(self, x: [f32; LEN], to: &mut [f32]) {
        to.copy_from_slice(&x[..to.len()]);
    }

    #[inline(always)]
    fn add(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| a[i] / b[i])
    }

    /// Not `f32::mul_add`: that is a call to the C library where the target has no such instruction.
    #[inline(always)]
    fn mul_add(self, a: [f32; LEN], b: [f32; LEN], c: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| larger(a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: [f32; LEN], b: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| smaller(a[i], b[i]))
    }

    #[inline(always)]
    fn scale(self, x: [f32; LEN], n: [f32; LEN]) -> [f32; LEN] {
        array::from_fn(|i| {
            let half = (n[i] * 0.5 + 12_582_912.0) - 12_582_912.0;
            x[i] * power_of_two(half) * power_of_two(n[i] - half)
        })
    }

    #[inline(always)]
    fn reduce_sum(self, x: [f32; LEN]) -> f32 {
        reduce(x, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, x: [f32; LEN]) -> f32 {
        reduce(x, larger)
    }
}
