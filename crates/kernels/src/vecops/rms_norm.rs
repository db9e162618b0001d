//! Root mean square normalization (Zhang and Sennrich, 2019).

use super::{RowOp, for_each_row, same};
use crate::simd::Lanes;
use crate::{KernelError, Rows, RowsMut, Runtime};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, the mean over a row. `x` and `out` are `[M, N]`, `weight` is `[N]`.
///
/// # Errors
/// [`KernelError::Mismatch`] if the shapes differ.
pub fn rms_norm(
    rt: &Runtime,
    x: Rows<'_>,
    weight: &[f32],
    eps: f32,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    same("rows of x and of the output", x.rows(), out.rows())?;
    same("columns of x and of the output", x.cols(), out.cols())?;
    same(
        "columns of x and elements of the weight",
        x.cols(),
        weight.len(),
    )?;
    for_each_row(rt, out, &Norm { x, weight, eps });
    Ok(())
}

/// Normalizes each head of each row as [`rms_norm`] does a row, in place. `x` is `[M, heads * head_dim]`, `weight` is
/// `[head_dim]`.
///
/// # Errors
/// [`KernelError::Mismatch`] if the columns of `x` are not whole heads.
pub fn rms_norm_heads(
    rt: &Runtime,
    x: RowsMut<'_>,
    weight: &[f32],
    eps: f32,
) -> Result<(), KernelError> {
    let heads = x.cols().checked_div(weight.len()).unwrap_or(0);
    same(
        "columns of x and whole heads",
        x.cols(),
        heads * weight.len(),
    )?;
    if heads > 0 {
        for_each_row(rt, x, &NormHeads { weight, eps });
    }
    Ok(())
}

struct Norm<'a> {
    x: Rows<'a>,
    weight: &'a [f32],
    eps: f32,
}

impl RowOp for Norm<'_> {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, i: usize, out: &mut [f32]) {
        out.copy_from_slice(self.x.row(i));
        normalize(l, out, self.weight, self.eps);
    }
}

struct NormHeads<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl RowOp for NormHeads<'_> {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, _: usize, x: &mut [f32]) {
        for head in x.chunks_exact_mut(self.weight.len()) {
            normalize(l, head, self.weight, self.eps);
        }
    }
}

#[inline(always)]
fn normalize<L: Lanes>(l: L, x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = sum_of_squares(l, x) / x.len() as f32;
    let factor = l.splat(1.0 / (mean + eps).sqrt());
    for (x, weight) in x.chunks_mut(L::LEN).zip(weight.chunks(L::LEN)) {
        let normal = l.mul(l.load_some(x, 0.0), factor);
        l.store_some(l.mul(normal, l.load_some(weight, 0.0)), x);
    }
}

/// Four sums, so that an addition need not wait for the one before.
#[inline(always)]
fn sum_of_squares<L: Lanes>(l: L, x: &[f32]) -> f32 {
    let mut sums = [l.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * L::LEN);
    for block in &mut blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = l.load(&block[i * L::LEN..(i + 1) * L::LEN]);
            *sum = l.mul_add(x, x, *sum);
        }
    }
    for x in blocks.remainder().chunks(L::LEN) {
        let x = l.load_some(x, 0.0);
        sums[0] = l.mul_add(x, x, sums[0]);
    }
    l.reduce_sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
}
