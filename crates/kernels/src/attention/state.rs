//! The running softmax of the rows of a block.

use std::ops::Range;

use super::PAGE_TOKENS;
use crate::simd::{Lanes, exp};
use crate::vecops::exp_in_place;

/// In place of a factor: the row sees nothing of the page.
const UNSEEN: f32 = -1.0;

/// Of each row the largest score so far, the sum of `exp(score - max)`, and the values summed with these weights.
pub(super) struct State<'a> {
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// `[rows, width]`
    acc: &'a mut [f32],
    width: usize,
}

impl<'a> State<'a> {
    /// A view of `memory`, `rows * (width + 2)` elements, whatever they hold. `width` is whole strips, and so whole vectors.
    pub fn new(memory: &'a mut [f32], rows: usize, width: usize) -> Self {
        let (max, rest) = memory.split_at_mut(rows);
        let (sum, acc) = rest.split_at_mut(rows);
        Self {
            max,
            sum,
            acc: &mut acc[..rows * width],
            width,
        }
    }

    /// Forgets all that was seen.
    pub fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Takes in the scores of row `row` with the tokens of a page, of which it sees `visible`, and turns them into weights.
    /// Gives the factor for [`State::accumulate`].
    #[inline(always)]
    pub fn weigh<L: Lanes>(
        &mut self,
        l: L,
        row: usize,
        scores: &mut [f32],
        visible: Range<usize>,
    ) -> f32 {
        let scores: &mut [f32; PAGE_TOKENS] = scores.try_into().expect("scores of a page");
        if visible.len() < PAGE_TOKENS {
            scores[..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..].fill(f32::NEG_INFINITY);
        }
        let mut page_max = l.splat(f32::NEG_INFINITY);
        for x in scores.chunks_exact(L::LEN) {
            page_max = l.max(page_max, l.load(x));
        }
        let page_max = l.reduce_max(page_max);
        if page_max == f32::NEG_INFINITY {
            return UNSEEN;
        }
        let factor = raise(l, &mut self.max[row], page_max);
        let sum = exp_in_place(l, scores, self.max[row]);
        self.sum[row] = self.sum[row] * factor + sum;
        factor
    }

    /// Adds a row of the product of weights and values, after the sums so far have been brought to the new maximum.
    #[inline(always)]
    pub fn accumulate<L: Lanes>(&mut self, l: L, row: usize, factor: f32, product: &[f32]) {
        if factor == UNSEEN {
            return;
        }
        let factor = l.splat(factor);
        let acc = &mut self.acc[row * self.width..][..self.width];
        for (acc, product) in acc
            .chunks_exact_mut(L::LEN)
            .zip(product.chunks_exact(L::LEN))
        {
            l.store(l.mul_add(l.load(acc), factor, l.load(product)), acc);
        }
    }

    /// Takes in what the first `rows` rows saw in a later chunk.
    #[inline(always)]
    pub fn merge<L: Lanes>(&mut self, l: L, rows: usize, later: &State<'_>) {
        for row in 0..rows {
            let mut later_max = later.max[row];
            if later_max == f32::NEG_INFINITY {
                continue;
            }
            let factor = raise(l, &mut self.max[row], later_max);
            let later_factor = raise(l, &mut later_max, self.max[row]);
            self.sum[row] = self.sum[row] * factor + later.sum[row] * later_factor;
            let (factor, later_factor) = (l.splat(factor), l.splat(later_factor));
            let acc = &mut self.acc[row * self.width..][..self.width];
            let later = &later.acc[row * self.width..][..self.width];
            for (acc, later) in acc.chunks_exact_mut(L::LEN).zip(later.chunks_exact(L::LEN)) {
                let later = l.mul(l.load(later), later_factor);
                l.store(l.mul_add(l.load(acc), factor, later), acc);
            }
        }
    }

    /// Writes the first elements of row `row`, divided by its sum of weights, to `out`.
    #[inline(always)]
    pub fn finish<L: Lanes>(&self, l: L, row: usize, out: &mut [f32]) {
        let factor = l.splat(1.0 / self.sum[row]);
        let acc = &self.acc[row * self.width..][..out.len()];
        for (out, acc) in out.chunks_mut(L::LEN).zip(acc.chunks(L::LEN)) {
            l.store_some(l.mul(l.load_some(acc, 0.0), factor), out);
        }
    }
}

/// Raises `max` to `new` if that is larger, and gives the factor `exp(max - new)` for what was summed under the old one.
#[inline(always)]
fn raise<L: Lanes>(l: L, max: &mut f32, new: f32) -> f32 {
    if new <= *max {
        return 1.0;
    }
    let factor = l.reduce_max(exp(l, l.splat(*max - new)));
    *max = new;
    factor
}
