//! Rotary position embedding.

use super::{RowOp, for_each_row, same};
use crate::simd::Lanes;
use crate::{KernelError, RowsMut, Runtime};

/// Rotates the heads of each token, in place.
///
/// `x` is `[tokens, heads * head_dim]`, `cos` and `sin` are `[tokens, rot_dim / 2]`. In the first `rot_dim` elements of each
/// head, element `i` of the first half and element `i` of the second half are the pair that is turned by angle `i` of the
/// token (the `rotate_half` convention of Hugging Face, not adjacent pairs); the other elements stay.
///
/// # Errors
/// [`KernelError::Mismatch`] if `rot_dim` is odd or larger than `head_dim`, the columns of `x` are not whole heads, or `cos` or
/// `sin` has another length.
pub fn rope(
    rt: &Runtime,
    x: RowsMut<'_>,
    head_dim: usize,
    rot_dim: usize,
    cos: &[f32],
    sin: &[f32],
) -> Result<(), KernelError> {
    let half = rot_dim / 2;
    same(
        "twice the rotated pairs and the rotated dimensions",
        2 * half,
        rot_dim,
    )?;
    same(
        "rotated dimensions and those inside the head",
        rot_dim,
        rot_dim.min(head_dim),
    )?;
    let heads = x.cols().checked_div(head_dim).unwrap_or(0);
    same("columns of x and whole heads", x.cols(), heads * head_dim)?;
    same(
        "elements of cos and rotated pairs of all tokens",
        cos.len(),
        x.rows() * half,
    )?;
    same(
        "elements of sin and rotated pairs of all tokens",
        sin.len(),
        x.rows() * half,
    )?;
    if half > 0 {
        for_each_row(
            rt,
            x,
            &Rope {
                head_dim,
                half,
                cos,
                sin,
            },
        );
    }
    Ok(())
}

struct Rope<'a> {
    head_dim: usize,
    half: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl RowOp for Rope<'_> {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, i: usize, x: &mut [f32]) {
        let angles = i * self.half..(i + 1) * self.half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        for head in x.chunks_exact_mut(self.head_dim) {
            rotate(l, &mut head[..2 * self.half], cos, sin);
        }
    }
}

/// `(a, b) = (a cos - b sin, b cos + a sin)` for the halves a and b of `head`.
#[inline(always)]
fn rotate<L: Lanes>(l: L, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    let pairs = a.chunks_mut(L::LEN).zip(b.chunks_mut(L::LEN));
    let angles = cos.chunks(L::LEN).zip(sin.chunks(L::LEN));
    for ((a, b), (cos, sin)) in pairs.zip(angles) {
        let (va, vb) = (l.load_some(a, 0.0), l.load_some(b, 0.0));
        let (cos, sin) = (l.load_some(cos, 0.0), l.load_some(sin, 0.0));
        l.store_some(l.sub(l.mul(va, cos), l.mul(vb, sin)), a);
        l.store_some(l.mul_add(vb, cos, l.mul(va, sin)), b);
    }
}
