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

/// Up to this many inputs every row is solved by a Cholesky factorization, of about k^3 / 24 multiplications at half of the
/// weights; it costs as much as 20 of the k^2 that a step of the iteration takes.
const DIRECT_K: usize = 512;
/// Steps of the iteration, and the part of the residual at which a row is done. What is left of the objective's decrease is
/// about the square of that part.
const STEPS: usize = 50;
const TOLERANCE: f64 = 1e-3;

/// The values, `[n, k]`, with the kept ones refitted. `added` is a.
pub(super) fn refit(
    objective: &Objective<'_>,
    values: &[f64],
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
        let diagonal: Vec<f64> = xx.diagonal().iter().map(|d| d + added).collect();
        change
            .par_chunks_mut(ROWS * k)
            .zip(kept.par_chunks(ROWS * k))
            .for_each(|(change, kept)| iterate(xx, added, &diagonal, kept, change));
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

/// Replaces the descents of some rows by the changes, by conjugate gradients with the diagonal as preconditioner.
fn iterate(xx: &Panels, added: f64, diagonal: &[f64], kept: &[bool], rows: &mut [f64]) {
    let k = diagonal.len();
    let mut residual = rows.to_vec();
    rows.fill(0.0);
    let mut scaled: Vec<f64> = residual
        .chunks(k)
        .flat_map(|row| row.iter().zip(diagonal).map(|(r, d)| r / d))
        .collect();
    let mut direction = scaled.clone();
    let mut product = vec![0.0; rows.len()];
    let dots = |a: &[f64], b: &[f64]| -> Vec<f64> {
        let dot = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| a * b).sum();
        a.chunks(k).zip(b.chunks(k)).map(dot).collect()
    };
    let mut sizes = dots(&residual, &scaled);
    let goals: Vec<f64> = sizes
        .iter()
        .map(|size| size * TOLERANCE * TOLERANCE)
        .collect();
    for _ in 0..STEPS {
        if sizes.iter().zip(&goals).all(|(size, goal)| size <= goal) {
            break;
        }
        xx.symmetric_product(&direction, &mut product);
        for ((product, &direction), &kept) in product.iter_mut().zip(&direction).zip(kept) {
            *product = if kept {
                *product + added * direction
            } else {
                0.0
            };
        }
        let curvatures = dots(&direction, &product);
        for r in 0..sizes.len() {
            // A row that is done stays as it is.
            if sizes[r] <= goals[r] || curvatures[r] <= 0.0 {
                continue;
            }
            let step = sizes[r] / curvatures[r];
            let row = r * k..(r + 1) * k;
            for j in row.clone() {
                rows[j] += step * direction[j];
                residual[j] -= step * product[j];
                scaled[j] = residual[j] / diagonal[j - r * k];
            }
            let size: f64 = residual[row.clone()]
                .iter()
                .zip(&scaled[row.clone()])
                .map(|(a, b)| a * b)
                .sum();
            let share = size / sizes[r];
            sizes[r] = size;
            for j in row {
                direction[j] = scaled[j] + share * direction[j];
            }
        }
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
        let diagonal: Vec<f64> = xx.diagonal().iter().map(|d| d + added).collect();
        iterate(xx, added, &diagonal, &kept, &mut found);
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
