//! Softmax of one row.

use super::{RowOp, for_each_row};
use crate::simd::{Lanes, exp};
use crate::{RowsMut, Runtime};

/// `row = exp(row - max) / sum(exp(row - max))`. Elements of minus infinity become 0; if all are, the row becomes NaN.
pub fn softmax_in_place(rt: &Runtime, row: &mut [f32]) {
    let cols = row.len();
    for_each_row(rt, RowsMut::new(row, 1, cols), &Softmax);
}

struct Softmax;

impl RowOp for Softmax {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, _: usize, row: &mut [f32]) {
        let mut max = l.splat(f32::NEG_INFINITY);
        for x in row.chunks(L::LEN) {
            max = l.max(max, l.load_some(x, f32::NEG_INFINITY));
        }
        let sum = exp_in_place(l, row, l.reduce_max(max));
        let factor = l.splat(1.0 / sum);
        for x in row.chunks_mut(L::LEN) {
            l.store_some(l.mul(l.load_some(x, 0.0), factor), x);
        }
    }
}

/// `row = exp(row - max)`; gives the sum of it.
#[inline(always)]
pub(crate) fn exp_in_place<L: Lanes>(l: L, row: &mut [f32], max: f32) -> f32 {
    let max = l.splat(max);
    let mut sum = l.splat(0.0);
    let mut whole = row.chunks_exact_mut(L::LEN);
    for x in &mut whole {
        let e = exp(l, l.sub(l.load(x), max));
        l.store(e, x);
        sum = l.add(sum, e);
    }
    let rest = whole.into_remainder();
    if !rest.is_empty() {
        // Lanes past the end of the row give exp(-infinity) = 0.
        let e = exp(l, l.sub(l.load_some(rest, f32::NEG_INFINITY), max));
        l.store_some(e, rest);
        sum = l.add(sum, e);
    }
    l.reduce_sum(sum)
}
