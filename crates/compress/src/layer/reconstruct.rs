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
