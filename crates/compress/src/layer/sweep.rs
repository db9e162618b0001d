//! SparseGPT and GPTQ: one pass over the columns in which every column makes up for the errors of those before it.
//!
//! With `H` the second moments of the inputs (dampened), pruning or rounding column i of a row by an error `e_i = w_i - q_i`
//! is made up for best if the columns after it move along `H`'s conditional means. The papers write that with the upper Cholesky
//! factor `U` of the inverse, `H^-1 = U^T U`:
//!
//! ```text
//! for i in 0..k:
//!     q_i = 0 if pruned, else w_i rounded        pruned: those of the smallest w_i^2 / U_ii^2
//!     w_j -= (w_i - q_i) / U_ii * U_ij           for all j > i
//! ```
//!
//! where the columns are worked on in blocks of 128 and what a block does to later ones is added up first. This file departs
//! in one way, which changes nothing but the rounding: with `R = U^-1`, the factor `H = R R^T` that
//! [`Panels::factor`](super::panels::Panels::factor) gives, the columns of a block b at its start are
//!
//! ```text
//! W_b + E R_b U_bb                               E: the original weights minus q of all columns before the block,
//!                                                R_b: R's rows before the block of its columns, U_bb = (R_bb)^-1
//! ```
//!
//! so neither `H` nor `R` is inverted, and the later columns are not written to.

use faer::linalg::triangular_inverse::invert_upper_triangular;
use faer::{MatMut, Par};
use rayon::prelude::*;

use super::Pattern;
use super::mask::{drop_groups, drop_least};
use super::panels::{Panels, ROWS, blocks, multiply, view};
use crate::quantize::{Int4, Quantized, int4_level, int4_scale};
use crate::{Scope, zeros_for};

/// What the pass rounds to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Round {
    /// Nothing.
    No,
    /// int8 levels. The scale of a row is that of the weights that may be kept, before the pass, unless
    /// [`Sweep::scale_by`] says another.
    Int8,
    /// int4 levels. The scale of a group is that of its weights when the pass comes to it.
    Int4 { group: usize, kind: Int4 },
}

/// The weights of a layer on their way through the pass.
pub(super) struct Sweep {
    k: usize,
    /// `[n, k]`: the weights, of columns that are done what they became. Where levels are rounded to, these times their scales.
    pub(super) values: Vec<f64>,
    /// `[n, k]`: false for weights that are or will be zero.
    pub(super) kept: Vec<bool>,
    /// `[n, k]`: the weights minus what they became; 0 of columns that are not done.
    errors: Vec<f64>,
    round: Round,
    levels: Vec<i8>,
    /// `[n, groups]`, one group where nothing is rounded.
    scales: Vec<f32>,
}

/// The columns that are worked on.
struct Block<'a> {
    first: usize,
    width: usize,
    /// `U_bb`, `[width, width]`.
    inverse: &'a [f64],
    /// N:M among the columns, if the pass chooses by groups.
    choose: Option<(usize, usize)>,
}

impl Sweep {
    /// Of `values` and the weights that may be kept, both `[n, k]`.
    pub(super) fn new(values: Vec<f64>, k: usize, kept: Vec<bool>, round: Round) -> Self {
        let n = values.len() / k;
        let group = match round {
            Round::Int4 { group, .. } => group,
            Round::No | Round::Int8 => k,
        };
        let scales = match round {
            Round::Int8 => row_scales(&values, &kept, k),
            _ => vec![0.0; n * k.div_ceil(group)],
        };
        Sweep {
            k,
            errors: vec![0.0; values.len()],
            levels: vec![0; values.len()],
            scales,
            round,
            values,
            kept,
        }
    }

    /// Takes the scales of int8 rows from weights that have been through a pass.
    pub(super) fn scale_by(&mut self, other: &Sweep) {
        self.scales = row_scales(&other.values, &other.kept, self.k);
    }

    /// Levels and scales.
    pub(super) fn quantized(self) -> Quantized {
        Quantized {
            levels: self.levels,
            scales: self.scales,
        }
    }

    /// The pass over all columns, with the factor of the second moments. `choose` is what to prune beside what is not kept from
    /// the start.
    pub(super) fn run(&mut self, factor: &Panels, choose: Option<(Pattern, Scope)>) {
        for (j, (first, width)) in blocks(self.k).enumerate() {
            let inverse = invert(factor, j, width);
            let mut current = self.current(factor, &inverse, j);
            let mut choose_groups = None;
            match choose {
                Some((Pattern::Unstructured(sparsity), scope)) => {
                    self.choose(&current, &inverse, first, sparsity, scope)
                }
                Some((Pattern::NofM { keep, of }, _)) => choose_groups = Some((keep, of)),
                None => {}
            }
            let block = Block {
                first,
                width,
                inverse: &inverse,
                choose: choose_groups,
            };
            self.columns(&block, &mut current);
        }
    }

    /// The weights of block `j` after making up for the errors of all columns before it, `[n, width]`.
    fn current(&self, factor: &Panels, inverse: &[f64], j: usize) -> Vec<f64> {
        let above = factor.above(j);
        let (first, width, k) = (above.nrows(), above.ncols(), self.k);
        let mut current = vec![0.0; self.values.len() / k * width];
        current
            .par_chunks_mut(ROWS * width)
            .zip(self.values.par_chunks(ROWS * k))
            .zip(self.errors.par_chunks(ROWS * k))
            .for_each(|((current, values), errors)| {
                let rows = current.len() / width;
                let mut carried = vec![0.0; current.len()];
                let target = MatMut::from_row_major_slice_mut(&mut carried, rows, width);
                multiply(target, false, view(errors, rows, first, k), above, 1.0);
                let target = MatMut::from_row_major_slice_mut(current, rows, width);
                let inverse = view(inverse, width, width, width);
                multiply(
                    target,
                    false,
                    view(&carried, rows, width, width),
                    inverse,
                    1.0,
                );
                for (current, values) in current.chunks_mut(width).zip(values.chunks(k)) {
                    let values = &values[first..first + width];
                    current
                        .iter_mut()
                        .zip(values)
                        .for_each(|(current, value)| *current += value);
                }
            });
        current
    }

    /// Drops the share `sparsity` of the weights of a block, or of each of its rows: those that leave the least error.
    fn choose(
        &mut self,
        current: &[f64],
        inverse: &[f64],
        first: usize,
        sparsity: f64,
        scope: Scope,
    ) {
        let rows = self.values.len() / self.k;
        let width = current.len() / rows;
        let mut kept = vec![true; current.len()];
        let mut scores = vec![0.0; current.len()];
        scores
            .par_chunks_mut(width)
            .zip(current.par_chunks(width))
            .zip(self.kept.par_chunks(self.k))
            .for_each(|((scores, current), kept)| {
                write_scores(
                    current,
                    inverse,
                    width,
                    0,
                    &kept[first..first + width],
                    scores,
                );
            });
        let among = match scope {
            Scope::Tensor => scores.len(),
            Scope::Row => width,
        };
        scores
            .par_chunks(among)
            .zip(kept.par_chunks_mut(among))
            .for_each(|(scores, kept)| drop_least(scores, zeros_for(sparsity, among), kept));
        self.kept
            .par_chunks_mut(self.k)
            .zip(kept.par_chunks(width))
            .for_each(|(all, kept)| {
                all[first..]
                    .iter_mut()
                    .zip(kept)
                    .for_each(|(all, &kept)| *all &= kept)
            });
    }

    /// Prunes and rounds the columns of a block, from `current`, what they are at its start.
    fn columns(&mut self, block: &Block<'_>, current: &mut [f64]) {
        let (k, round) = (self.k, self.round);
        let groups = self.scales.len() / (self.values.len() / k);
        current
            .par_chunks_mut(block.width)
            .zip(self.values.par_chunks_mut(k))
            .zip(self.errors.par_chunks_mut(k))
            .zip(self.kept.par_chunks_mut(k))
            .zip(self.levels.par_chunks_mut(k))
            .zip(self.scales.par_chunks_mut(groups))
            .with_min_len(8)
            .for_each(|(((((current, values), errors), kept), levels), scales)| {
                let columns = block.first..block.first + block.width;
                Row {
                    current,
                    values: &mut values[columns.clone()],
                    errors: &mut errors[columns.clone()],
                    kept: &mut kept[columns.clone()],
                    levels: &mut levels[columns],
                    scales,
                }
                .columns(block, round);
            });
    }
}

/// The columns of a block of one row; `scales` are those of the whole row.
struct Row<'a> {
    current: &'a mut [f64],
    values: &'a mut [f64],
    errors: &'a mut [f64],
    kept: &'a mut [bool],
    levels: &'a mut [i8],
    scales: &'a mut [f32],
}

impl Row<'_> {
    fn columns(&mut self, block: &Block<'_>, round: Round) {
        for i in 0..block.width {
            if let Some((keep, of)) = block.choose
                && i.is_multiple_of(of)
            {
                let end = block.width.min(i + of);
                let kept = self.choose(block, i..end, keep, of);
                self.kept[i..end].copy_from_slice(&kept);
            }
            if let Round::Int4 { group, kind } = round
                && (block.first + i).is_multiple_of(group)
            {
                self.scales[(block.first + i) / group] = self.group_scale(block, i, group, kind);
            }
            let weight = self.current[i];
            let value = if self.kept[i] {
                self.round(weight, block.first, i, round)
            } else {
                0.0
            };
            self.errors[i] = self.values[i] - value;
            self.values[i] = value;
            let row = &block.inverse[i * block.width..][..block.width];
            let error = (weight - value) / row[i];
            let later = self.current[i + 1..].iter_mut().zip(&row[i + 1..]);
            later.for_each(|(current, factor)| *current -= error * factor);
        }
    }

    /// Which of these columns are kept if `keep` of every `of` are.
    fn choose(
        &self,
        block: &Block<'_>,
        columns: std::ops::Range<usize>,
        keep: usize,
        of: usize,
    ) -> Vec<bool> {
        let mut kept = self.kept[columns.clone()].to_vec();
        let mut scores = vec![0.0; columns.len()];
        let current = &self.current[columns.clone()];
        write_scores(
            current,
            block.inverse,
            block.width,
            columns.start,
            &kept,
            &mut scores,
        );
        drop_groups(&scores, keep, of, &mut kept);
        kept
    }

    /// The scale of the group that begins at column `i`.
    fn group_scale(&self, block: &Block<'_>, i: usize, group: usize, kind: Int4) -> f32 {
        let columns = i..block.width.min(i + group);
        let kept = match block.choose {
            // Groups of N:M not yet come to are chosen here as they would be now, for the scale alone.
            Some((keep, of)) => self.choose(block, columns.clone(), keep, of),
            None => self.kept[columns.clone()].to_vec(),
        };
        let weights = self.current[columns].iter().zip(&kept);
        int4_scale(
            weights.map(|(&weight, &kept)| if kept { weight as f32 } else { 0.0 }),
            kind,
        )
    }

    /// What a kept weight of column `i` becomes.
    fn round(&mut self, weight: f64, first: usize, i: usize, round: Round) -> f64 {
        let (scale, level) = match round {
            Round::No => return weight,
            Round::Int8 => {
                let scale = self.scales[0];
                let exact = if scale == 0.0 {
                    0.0
                } else {
                    weight / f64::from(scale)
                };
                (scale, exact.round_ties_even().clamp(-127.0, 127.0))
            }
            Round::Int4 { group, kind } => {
                let scale = self.scales[(first + i) / group];
                (scale, int4_level(weight as f32, scale, kind).into())
            }
        };
        self.levels[i] = level as i8;
        level * f64::from(scale)
    }
}

/// The errors that pruning each of the weights, columns of a block from `first` on, would leave: `w^2 / U_ii^2`. Of a weight that
/// is not kept anyway 0.
fn write_scores(
    weights: &[f64],
    inverse: &[f64],
    width: usize,
    first: usize,
    kept: &[bool],
    scores: &mut [f64],
) {
    for (i, score) in scores.iter_mut().enumerate() {
        let ratio = weights[i] / inverse[(first + i) * (width + 1)];
        *score = if kept[i] { ratio * ratio } else { 0.0 };
    }
}

/// The inverse of diagonal block `j`, `[width, width]`.
fn invert(factor: &Panels, j: usize, width: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; width * width];
    let target = MatMut::from_row_major_slice_mut(&mut inverse, width, width);
    invert_upper_triangular(target, factor.diagonal_block(j), Par::Seq);
    inverse
}

/// The scales of int8 rows, by the weights that may be kept.
fn row_scales(values: &[f64], kept: &[bool], k: usize) -> Vec<f32> {
    values
        .par_chunks(k)
        .zip(kept.par_chunks(k))
        .map(|(row, kept)| {
            let sizes = row.iter().zip(kept).filter(|&(_, &kept)| kept);
            sizes.fold(0f32, |max, (&value, _)| max.max(value.abs() as f32)) / 127.0
        })
        .collect()
}
