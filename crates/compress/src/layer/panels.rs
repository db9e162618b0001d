//! Symmetric and triangular matrices in panels of 128 columns, and the products and the factorization made of them.
//!
//! Everything here is parallel over pieces of fixed sizes, each computed by one thread with faer's sequential routines, so
//! that the number of threads changes no bit.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

/// Columns of a panel, which are those of a block of SparseGPT.
pub(super) const BLOCK: usize = 128;
/// Rows that one thread multiplies at a time: enough for a matrix product to reuse what it reads of a panel, few enough to
/// share out a small layer.
pub(super) const ROWS: usize = 64;

/// The upper triangle of a `[k, k]` matrix. Panel j is row-major `[end of block j, columns of block j]`: the columns of block
/// j from row 0 down through the diagonal block, which is stored whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Panels<T = f64> {
    k: usize,
    panels: Vec<Vec<T>>,
}

/// First column and number of columns of each block of `k`.
pub(super) fn blocks(
    k: usize,
) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator {
    (0..k.div_ceil(BLOCK)).map(move |j| (j * BLOCK, BLOCK.min(k - j * BLOCK)))
}

/// A row-major `[rows, cols]` matrix whose rows are `stride` elements apart.
pub(super) fn view<T>(slice: &[T], rows: usize, cols: usize, stride: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice_with_stride(slice, rows, cols, stride)
}

fn view_mut<T>(slice: &mut [T], rows: usize, cols: usize) -> MatMut<'_, T> {
    MatMut::from_row_major_slice_mut(slice, rows, cols)
}

/// `dst = dst * keep + alpha * lhs * rhs` with `keep` 0 or 1, on the calling thread.
pub(super) fn multiply<T: RealField>(
    dst: MatMut<'_, T>,
    add: bool,
    lhs: MatRef<'_, T>,
    rhs: MatRef<'_, T>,
    alpha: T,
) {
    let accum = if add { Accum::Add } else { Accum::Replace };
    matmul(dst, accum, lhs, rhs, alpha, Par::Seq);
}

impl<T: RealField + Copy> Panels<T> {
    fn block(&self, j: usize) -> (usize, usize) {
        (j * BLOCK, BLOCK.min(self.k - j * BLOCK))
    }

    /// Rows 0 to the start of block `j`, of its columns: what is above the diagonal block.
    pub(super) fn above(&self, j: usize) -> MatRef<'_, T> {
        let (start, width) = self.block(j);
        view(&self.panels[j][..start * width], start, width, width)
    }

    /// The diagonal block `j`.
    pub(super) fn diagonal_block(&self, j: usize) -> MatRef<'_, T> {
        let (start, width) = self.block(j);
        view(&self.panels[j][start * width..], width, width, width)
    }

    /// `p * self` of the symmetric matrix for `p` of `[rows, k]`, into `out` of that shape, on the calling thread.
    pub(super) fn symmetric_product(&self, p: &[T], out: &mut [T]) {
        let k = self.k;
        let rows = p.len() / k.max(1);
        let p = view(p, rows, k, k);
        out.fill(T::zero_impl());
        let mut out = MatMut::from_row_major_slice_mut(out, rows, k);
        for (j, (start, width)) in blocks(k).enumerate() {
            let (above, diagonal) = (self.above(j), self.diagonal_block(j));
            let own = p.subcols(start, width);
            multiply(
                out.as_mut().subcols_mut(start, width),
                true,
                p.subcols(0, start),
                above,
                T::one_impl(),
            );
            multiply(
                out.as_mut().subcols_mut(start, width),
                true,
                own,
                diagonal,
                T::one_impl(),
            );
            multiply(
                out.as_mut().subcols_mut(0, start),
                true,
                own,
                above.transpose(),
                T::one_impl(),
            );
        }
    }
}

impl Panels {
    /// All zero.
    pub(super) fn new(k: usize) -> Self {
        let panels = blocks(k).map(|(start, width)| vec![0.0; (start + width) * width]);
        Panels {
            k,
            panels: panels.collect(),
        }
    }

    /// Rows and columns.
    pub(super) fn k(&self) -> usize {
        self.k
    }

    /// The element of row `i` and column `j`, `i <= j` or in the same block.
    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        let (start, width) = self.block(j / BLOCK);
        self.panels[j / BLOCK][i * width + j - start]
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, i: usize, j: usize, value: f64) {
        let (start, width) = self.block(j / BLOCK);
        self.panels[j / BLOCK][i * width + j - start] = value;
        // The diagonal block is stored whole.
        if i >= start {
            self.panels[j / BLOCK][j * width + i - start] = value;
        }
    }

    /// The same in f32.
    pub(super) fn to_f32(&self) -> Panels<f32> {
        let narrow = |panel: &Vec<f64>| panel.iter().map(|&v| v as f32).collect();
        Panels {
            k: self.k,
            panels: self.panels.par_iter().map(narrow).collect(),
        }
    }

    /// The diagonal.
    pub(super) fn diagonal(&self) -> Vec<f64> {
        (0..self.k).map(|i| self.at(i, i)).collect()
    }

    fn diagonal_mut(&mut self) -> impl Iterator<Item = (usize, &mut f64)> {
        blocks(self.k)
            .zip(&mut self.panels)
            .flat_map(|((start, width), panel)| {
                let diagonal = panel[start * width..].iter_mut().step_by(width + 1);
                diagonal
                    .enumerate()
                    .map(move |(i, element)| (start + i, element))
            })
    }

    /// Adds `x^T x`, where `x` is row-major, rows of k.
    pub(super) fn add_gram(&mut self, x: &[f64]) {
        let (k, rows) = (self.k, x.len() / self.k.max(1));
        self.panels
            .par_iter_mut()
            .enumerate()
            .for_each(|(j, panel)| {
                let start = j * BLOCK;
                let width = BLOCK.min(k - start);
                let x = view(x, rows, k, k);
                let end = start + width;
                let (left, right) = (x.subcols(0, end), x.subcols(start, width));
                multiply(
                    view_mut(panel, end, width),
                    true,
                    left.transpose(),
                    right,
                    1.0,
                );
            });
    }

    /// `row * self * row^T` for each row of `p` of `[rows, k]`, on the calling thread.
    pub(super) fn squares(&self, p: &[f64], out: &mut [f64]) {
        let k = self.k;
        let rows = out.len();
        out.fill(0.0);
        let matrix = view(p, rows, k, k);
        let mut product = vec![0.0; rows * BLOCK];
        for (j, (start, width)) in blocks(k).enumerate() {
            let product = &mut product[..rows * width];
            let mut target = view_mut(product, rows, width);
            // What is above the diagonal stands for what is below it too.
            multiply(
                target.as_mut(),
                false,
                matrix.subcols(0, start),
                self.above(j),
                2.0,
            );
            multiply(
                target,
                true,
                matrix.subcols(start, width),
                self.diagonal_block(j),
                1.0,
            );
            for ((square, row), product) in
                out.iter_mut().zip(p.chunks(k)).zip(product.chunks(width))
            {
                let own = &row[start..start + width];
                *square += own.iter().zip(product).map(|(a, b)| a * b).sum::<f64>();
            }
        }
    }

    /// Of a factor `R`: replaces each row `g` of `rows`, `[rows, k]`, by the solution c of `R R^T c = g`, on the calling thread.
    pub(super) fn solve(&self, rows: &mut [f64]) {
        let k = self.k;
        let count = rows.len() / k.max(1);
        let mut rows = view_mut(rows, count, k);
        for (j, (start, width)) in blocks(k).enumerate().rev() {
            let (left, mut own) = rows
                .as_mut()
                .get_mut(.., ..start + width)
                .split_at_col_mut(start);
            let diagonal = self.diagonal_block(j);
            solve_upper_triangular_in_place(diagonal, own.as_mut().transpose_mut(), Par::Seq);
            multiply(left, true, own.as_ref(), self.above(j).transpose(), -1.0);
        }
        for (j, (start, width)) in blocks(k).enumerate() {
            let (left, mut own) = rows
                .as_mut()
                .get_mut(.., ..start + width)
                .split_at_col_mut(start);
            multiply(own.as_mut(), true, left.as_ref(), self.above(j), -1.0);
            let diagonal = self.diagonal_block(j).transpose();
            solve_lower_triangular_in_place(diagonal, own.transpose_mut(), Par::Seq);
        }
    }

    /// The upper triangular `R` with `R R^T` = the symmetric matrix with `added` on its diagonal, and 1 on the diagonal of rows
    /// that are zero. None if that is not positive definite.
    ///
    /// It is the Cholesky factorization from the last row to the first. Its inverse is the upper Cholesky factor of the inverse
    /// matrix, which SparseGPT and GPTQ are written in terms of, so no matrix has to be inverted.
    pub(super) fn factor(&self, added: f64) -> Option<Panels> {
        let mut factor = self.clone();
        for (_, element) in factor.diagonal_mut() {
            *element = if *element == 0.0 {
                1.0
            } else {
                *element + added
            };
        }
        let k = self.k;
        for (j, (start, width)) in blocks(k).enumerate().rev() {
            let (left, right) = factor.panels.split_at_mut(j);
            let (above, diagonal) = right[0].split_at_mut(start * width);
            factor_block(diagonal, width)?;
            let diagonal = view(diagonal, width, width, width);
            // above <- above * diagonal^-T
            above.par_chunks_mut(ROWS * width).for_each(|rows| {
                let count = rows.len() / width;
                let rows = view_mut(rows, count, width);
                solve_upper_triangular_in_place(diagonal, rows.transpose_mut(), Par::Seq);
            });
            let above = view(above, start, width, width);
            left.par_iter_mut().enumerate().for_each(|(i, panel)| {
                let end = (i + 1) * BLOCK;
                let own = above.subrows(i * BLOCK, BLOCK);
                multiply(
                    view_mut(panel, end, BLOCK),
                    true,
                    above.subrows(0, end),
                    own.transpose(),
                    -1.0,
                );
            });
        }
        Some(factor)
    }
}

/// Replaces a symmetric block by its upper triangular factor, `R R^T`; what is below the diagonal becomes zero. None if it is
/// not positive definite.
fn factor_block(block: &mut [f64], width: usize) -> Option<()> {
    let mut stack = MemBuffer::new(cholesky_in_place_scratch::<f64>(
        width,
        Par::Seq,
        Spec::default(),
    ));
    // With rows and columns in reverse the upper factor is the lower one.
    let mut reversed = view_mut(block, width, width).reverse_rows_and_cols_mut();
    cholesky_in_place(
        reversed.as_mut(),
        LltRegularization::default(),
        Par::Seq,
        MemStack::new(&mut stack),
        Spec::default(),
    )
    .ok()?;
    for i in 0..width {
        block[i * width..i * width + i].fill(0.0);
        let pivot = block[i * width + i];
        if !(pivot.is_finite() && pivot > 0.0) {
            return None;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1.
    fn numbers(len: usize, mut state: u64) -> Vec<f64> {
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn gram(x: &[f64], k: usize) -> Panels {
        let mut panels = Panels::new(k);
        panels.add_gram(x);
        panels
    }

    fn full(panels: &Panels) -> Vec<Vec<f64>> {
        let element = |i: usize, j: usize| panels.at(i.min(j), i.max(j));
        (0..panels.k())
            .map(|i| (0..panels.k()).map(|j| element(i, j)).collect())
            .collect()
    }

    /// Sizes below, at and above a block.
    const SIZES: [usize; 5] = [1, 40, 128, 129, 300];

    #[test]
    fn products_are_those_of_the_whole_matrix() {
        for k in SIZES {
            let x = numbers(70 * k, 3);
            let panels = gram(&x, k);
            let h = full(&panels);
            for (i, j) in [(0, 0), (0, k - 1), (k / 2, k - 1), (k - 1, k - 1)] {
                let wanted: f64 = x.chunks(k).map(|row| row[i] * row[j]).sum();
                assert!((h[i][j] - wanted).abs() < 1e-12 * 70.0, "{k} {i} {j}");
            }
            let p = numbers(3 * k, 5);
            let mut product = vec![0.0; 3 * k];
            panels.symmetric_product(&p, &mut product);
            let mut squares = [0.0; 3];
            panels.squares(&p, &mut squares);
            for (r, row) in p.chunks(k).enumerate() {
                let wanted: Vec<f64> = (0..k)
                    .map(|j| row.iter().zip(&h).map(|(a, h)| a * h[j]).sum())
                    .collect();
                // 70 k terms of at most 1, each rounded a few times.
                let tolerance = 70.0 * k as f64 * 1e-15 * 8.0;
                for (found, wanted) in product[r * k..][..k].iter().zip(&wanted) {
                    assert!((found - wanted).abs() < tolerance, "{k}: {found} {wanted}");
                }
                let square: f64 = row.iter().zip(&wanted).map(|(a, b)| a * b).sum();
                assert!(
                    (squares[r] - square).abs() < tolerance * k as f64,
                    "{k}: {} {square}",
                    squares[r]
                );
            }
        }
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for k in SIZES {
            let mut x = numbers(50 * k, 7);
            let dead = k / 3;
            for row in x.chunks_mut(k) {
                row[dead] = 0.0;
            }
            let panels = gram(&x, k);
            let factor = panels.factor(0.5).expect("positive definite");
            let pairs = (0..k).flat_map(|j| (0..=j).map(move |i| (i, j)));
            for (i, j) in pairs {
                let sum: f64 = (j..k).map(|l| factor.at(i, l) * factor.at(j, l)).sum();
                let diagonal = if i == dead { 1.0 } else { 0.5 };
                let wanted = panels.at(i, j) + if i == j { diagonal } else { 0.0 };
                assert!(
                    (sum - wanted).abs() < 1e-15 * 50.0 * k as f64,
                    "{k} {i} {j}: {sum} {wanted}"
                );
            }
            let side = numbers(2 * k, 11);
            let mut solution = side.clone();
            factor.solve(&mut solution);
            for (side, solution) in side.chunks(k).zip(solution.chunks(k)) {
                for (i, side) in side.iter().enumerate() {
                    let diagonal = if i == dead { 1.0 } else { 0.5 };
                    let product: f64 = (0..k)
                        .map(|j| panels.at(i.min(j), i.max(j)) * solution[j])
                        .sum();
                    let found = product + diagonal * solution[i];
                    // The condition is at most about 50 k / 0.5.
                    assert!(
                        (found - side).abs() < 1e-15 * 100.0 * (k * k) as f64,
                        "{k} {i}"
                    );
                }
            }
            // Of one input nothing but the dead one is left.
            assert_eq!(panels.factor(-1000.0).is_none(), k > 1);
            assert_eq!(panels.factor(f64::NAN).is_none(), k > 1);
        }
    }
}
