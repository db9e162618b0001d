//! What a layer's output is measured by.

use rayon::prelude::*;

use super::Moments;
use super::panels::ROWS;

/// The squared difference of a layer's outputs on the calibration data to those of the dense layer, as a function of the
/// weights.
pub(super) struct Objective<'a> {
    moments: &'a Moments,
    /// The dense weights, `[n, k]`.
    weights: &'a [f32],
    /// The part of the gradient that the weights do not change, `[n, k]`; only where the dense model's inputs are others.
    cross: Vec<f64>,
    /// Square of the dense layer's output, for each row.
    totals: Vec<f64>,
}

impl<'a> Objective<'a> {
    pub(super) fn new(moments: &'a Moments, weights: &'a [f32]) -> Self {
        let k = moments.k();
        let wide = |i: usize| f64::from(weights[i]);
        let totals = squares(weights.len(), k, wide, |rows, out| {
            moments.dd().squares(rows, out)
        });
        let cross = if moments.with_dense() {
            products(weights.len(), k, wide, |rows, out| {
                moments.cross_product(rows, out)
            })
        } else {
            Vec::new()
        };
        Objective {
            moments,
            weights,
            cross,
            totals,
        }
    }

    /// The relative error of rows of given errors: `||X W'^T - D W^T|| / ||D W^T||`.
    pub(super) fn relative(&self, errors: &[f64]) -> f64 {
        relative(errors.iter().sum(), self.totals.iter().sum())
    }

    /// For each row the squared difference of its output with these weights, `[n, k]`.
    pub(super) fn errors(&self, values: &[f64]) -> Vec<f64> {
        let (k, xx) = (self.moments.k(), self.moments.xx());
        if self.cross.is_empty() {
            let missing = |i: usize| f64::from(self.weights[i]) - values[i];
            return squares(values.len(), k, missing, |rows, out| xx.squares(rows, out));
        }
        let mut errors = squares(
            values.len(),
            k,
            |i| values[i],
            |rows, out| xx.squares(rows, out),
        );
        errors
            .par_iter_mut()
            .zip(values.par_chunks(k))
            .zip(self.cross.par_chunks(k))
            .zip(&self.totals)
            .for_each(|(((error, row), cross), total)| {
                let product: f64 = row.iter().zip(cross).map(|(a, b)| a * b).sum();
                *error += total - 2.0 * product;
            });
        errors
    }

    /// Minus half the gradient, `[n, k]`: in which direction each weight makes the difference smaller.
    pub(super) fn descent(&self, values: &[f64]) -> Vec<f64> {
        let (k, xx) = (self.moments.k(), self.moments.xx());
        if self.cross.is_empty() {
            let missing = |i: usize| f64::from(self.weights[i]) - values[i];
            return products(values.len(), k, missing, |rows, out| {
                xx.symmetric_product(rows, out)
            });
        }
        let mut descent = products(
            values.len(),
            k,
            |i| values[i],
            |rows, out| xx.symmetric_product(rows, out),
        );
        descent
            .par_iter_mut()
            .zip(&self.cross)
            .for_each(|(descent, cross)| *descent = cross - *descent);
        descent
    }
}

/// The root of a share of squares; 0 of nothing, and of an error that is nothing but rounding.
pub(super) fn relative(error: f64, total: f64) -> f64 {
    // NaN stays NaN.
    if total <= 0.0 || error <= 0.0 {
        0.0
    } else {
        (error / total).sqrt()
    }
}

/// `square(rows, out)`, a number for each row, of the rows of k whose elements are `element(index)`.
fn squares(
    len: usize,
    k: usize,
    element: impl Fn(usize) -> f64 + Sync,
    square: impl Fn(&[f64], &mut [f64]) + Sync,
) -> Vec<f64> {
    let mut out = vec![0.0; len / k];
    out.par_chunks_mut(ROWS)
        .enumerate()
        .for_each_init(Vec::new, |rows, (chunk, out)| {
            let start = chunk * ROWS * k;
            rows.clear();
            rows.extend((start..start + out.len() * k).map(&element));
            square(rows, out);
        });
    out
}

/// `product(rows, out)`, a row for each row, of the rows of k whose elements are `element(index)`.
fn products(
    len: usize,
    k: usize,
    element: impl Fn(usize) -> f64 + Sync,
    product: impl Fn(&[f64], &mut [f64]) + Sync,
) -> Vec<f64> {
    let mut out = vec![0.0; len];
    out.par_chunks_mut(ROWS * k)
        .enumerate()
        .for_each_init(Vec::new, |rows, (chunk, out)| {
            let start = chunk * ROWS * k;
            rows.clear();
            rows.extend((start..start + out.len()).map(&element));
            product(rows, out);
        });
    out
}
