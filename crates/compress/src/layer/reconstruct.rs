//! Least squares with the mask fixed.
//!
//! For each row the kept weights that make the objective least are looked for near those there are: the change `c` is the
//! solution of `(H + a I) c = g` among the kept columns, `g` the direction of descent. `a` keeps columns that the calibration
//! data hardly tell apart where they are. As `c` makes the objective plus `a |c|^2` least, it never makes the objective worse.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{Mat, MatMut, Par, Spec};
use rayon::prelude::*;

use super::objective::Objective;
use super::panels::{Panels, ROWS};

/// Up to this many inputs every row is solved by a Cholesky factorization, of about k^3 / 48 multiplications at half of the
/// weights: at this size as many as 10 steps of the iteration, of k^2, take.
const DIRECT_K: usize = 512;
/// Steps of the iteration at most. With several tokens for each input a row takes about 15; with fewer tokens than inputs it takes
/// up to this many, and what is left are directions that the data hardly tell apart.
const STEPS: usize = 50;
/// A row is done when twice in a row a step takes less than this part of what is left of the error.
const PART: f64 = 1e-3;

/// The values, `[n, k]`, with the kept ones refitted. `errors` are those of the rows, and `added` is a.
pub(super) fn refit(
    objective: &Objective<'_>,
    values: &[f64],
    errors: &[f64],
    kept: &[bool],
    xx: &Panels,
    added: f64,
) -> Vec<f64> {
    let k = xx.k();
    let mut change = objective.descent(values);
    change
        .par_iter_mut()
        .zip(kept)
        .filter(|(_, kept)| !**kept)
        .for_each(|(element, _)| *element = 0.0);
    if k <= DIRECT_K {
        change
            .par_chunks_mut(k)
            .zip(kept.par_chunks(k))
            .for_each(|(change, kept)| direct(xx, added, kept, change));
    } else {
        let system = System {
            // Products of f32 are twice as fast. They decide how soon the iteration ends, and that the caller checks in f64.
            xx: xx.to_f32(),
            added,
            diagonal: xx.diagonal().iter().map(|d| d + added).collect(),
        };
        change
            .par_chunks_mut(ROWS * k)
            .zip(kept.par_chunks(ROWS * k))
            .zip(errors.par_chunks(ROWS))
            .for_each(|((change, kept), errors)| system.iterate(kept, errors, change));
    }
    change
        .par_iter_mut()
        .zip(values)
        .for_each(|(element, value)| *element += value);
    change
}

/// Replaces the descent of a row by the change, exactly.
fn direct(xx: &Panels, added: f64, kept: &[bool], row: &mut [f64]) {
    let columns: Vec<usize> = (0..kept.len()).filter(|&j| kept[j]).collect();
    let len = columns.len();
    if len == 0 {
        return;
    }
    let mut matrix = Mat::from_fn(len, len, |i, j| {
        let (low, high) = (i.min(j), i.max(j));
        xx.at(columns[low], columns[high]) + if i == j { added } else { 0.0 }
    });
    let mut side: Vec<f64> = columns.iter().map(|&j| row[j]).collect();
    let request = llt::factor::cholesky_in_place_scratch::<f64>(len, Par::Seq, Spec::default());
    let mut memory =
        MemBuffer::new(request.or(llt::solve::solve_in_place_scratch::<f64>(len, 1, Par::Seq)));
    let stack = MemStack::new(&mut memory);
    let factored = llt::factor::cholesky_in_place(
        matrix.as_mut(),
        llt::factor::LltRegularization::default(),
        Par::Seq,
        stack,
        Spec::default(),
    );
    if factored.is_err() {
        return row.fill(0.0);
    }
    let target = MatMut::from_column_major_slice_mut(&mut side, len, 1);
    llt::solve::solve_in_place(matrix.as_ref(), target, Par::Seq, stack);
    for (&j, &value) in columns.iter().zip(&side) {
        row[j] = value;
    }
}

/// `H + a I`, for the iteration.
struct System {
    xx: Panels<f32>,
    added: f64,
    diagonal: Vec<f64>,
}

impl System {
    /// Replaces the descents of some rows of given errors by the changes, by conjugate gradients with the diagonal as
    /// preconditioner.
    fn iterate(&self, kept: &[bool], errors: &[f64], rows: &mut [f64]) {
        let k = self.diagonal.len();
        let mut residual = rows.to_vec();
        rows.fill(0.0);
        let scaled = |row: &[f64], j: usize| row[j] / self.diagonal[j];
        let mut direction: Vec<f64> = residual
            .chunks(k)
            .flat_map(|row| (0..k).map(move |j| scaled(row, j)))
            .collect();
        let size = |row: &[f64]| (0..k).map(|j| row[j] * scaled(row, j)).sum::<f64>();
        let mut sizes: Vec<f64> = residual.chunks(k).map(size).collect();
        let mut left = errors.to_vec();
        // Steps in a row that took little.
        let mut little = vec![0; errors.len()];
        for _ in 0..STEPS {
            if little.iter().all(|&little| little >= 2) {
                break;
            }
            let product = self.product(&direction, kept);
            let parts = rows
                .chunks_mut(k)
                .zip(residual.chunks_mut(k))
                .zip(direction.chunks_mut(k))
                .zip(product.chunks(k));
            for (r, (((row, residual), direction), product)) in parts.enumerate() {
                let curvature: f64 = direction.iter().zip(product).map(|(a, b)| a * b).sum();
                // A row that is done stays as it is, as does one whose numbers overflow.
                let bent = curvature > 0.0;
                if little[r] >= 2 || !bent {
                    little[r] = 2;
                    continue;
                }
                let step = sizes[r] / curvature;
                left[r] -= step * sizes[r];
                little[r] = if step * sizes[r] < PART * left[r].max(0.0) {
                    little[r] + 1
                } else {
                    0
                };
                for j in 0..k {
                    row[j] += step * direction[j];
                    residual[j] -= step * product[j];
                }
                let before = std::mem::replace(&mut sizes[r], size(residual));
                let share = sizes[r] / before;
                for (j, direction) in direction.iter_mut().enumerate() {
                    *direction = scaled(residual, j) + share * *direction;
                }
            }
        }
    }

    /// The rows times `H + a I`, of the kept columns.
    fn product(&self, rows: &[f64], kept: &[bool]) -> Vec<f64> {
        let narrow: Vec<f32> = rows.iter().map(|&v| v as f32).collect();
        let mut product = vec![0.0; rows.len()];
        self.xx.symmetric_product(&narrow, &mut product);
        let sum = |((&product, &row), &kept): ((&f32, &f64), &bool)| {
            if kept {
                f64::from(product) + self.added * row
            } else {
                0.0
            }
        };
        product.iter().zip(rows).zip(kept).map(sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Moments;

    #[test]
    fn the_iteration_finds_what_the_factorization_does() {
        let (rows, k, tokens) = (3, 200, 300);
        let mut state = 1u64;
        let mut number = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mut moments = Moments::new(k, false);
        for _ in 0..tokens {
            // All inputs have a part in common.
            let common = 3.0 * number();
            let x: Vec<f32> = (0..k).map(|_| common + number()).collect();
            moments.add(&x, None);
        }
        let xx = moments.xx();
        let added = 1.0;
        let kept: Vec<bool> = (0..rows * k).map(|_| number() > 0.0).collect();
        let side: Vec<f64> = kept
            .iter()
            .map(|&kept| if kept { number().into() } else { 0.0 })
            .collect();
        let mut exact = side.clone();
        for (row, kept) in exact.chunks_mut(k).zip(kept.chunks(k)) {
            direct(xx, added, kept, row);
        }
        let mut found = side.clone();
        let system = System {
            xx: xx.to_f32(),
            added,
            diagonal: xx.diagonal().iter().map(|d| d + added).collect(),
        };
        // As small as what an exact solution would leave, so that nothing ends the iteration early.
        system.iterate(&kept, &[1e-9; 3], &mut found);
        for (r, (exact, found)) in exact.chunks(k).zip(found.chunks(k)).enumerate() {
            let objective = |row: &[f64]| {
                let mut square = [0.0];
                xx.squares(row, &mut square);
                let ridge: f64 = row.iter().map(|v| v * v).sum();
                let linear: f64 = row.iter().zip(&side[r * k..]).map(|(a, b)| a * b).sum();
                square[0] + added * ridge - 2.0 * linear
            };
            let (best, reached) = (objective(exact), objective(found));
            assert!(best < 0.0 && reached >= best * (1.0 + 1e-12));
            assert!(reached <= best * (1.0 - 1e-4), "{r}: {reached} of {best}");
        }
        for (value, kept) in exact.iter().chain(&found).zip(kept.iter().chain(&kept)) {
            assert!(*kept || *value == 0.0);
        }
    }
}
