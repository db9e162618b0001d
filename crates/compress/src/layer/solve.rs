//! The steps that a layer goes through.

use rayon::prelude::*;
use sparamx_model::Precision;

use super::objective::{Objective, relative};
use super::panels::{Panels, ROWS};
use super::sweep::{Round, Sweep};
use super::{
    LayerSpec, Method, Moments, Note, Outcome, Solved, bf16_bits, int4_kind, mask, reconstruct,
};
use crate::{CompressError, zeros_for};

/// The share of the mean of the diagonal that is added to it, as in the papers' code.
const DAMPENING: f64 = 0.01;
/// The largest share that is tried where a smaller one is too little.
const LARGEST_DAMPENING: f64 = 1e4;

/// Compresses the rows `weights`, row-major `[n, k]` and finite, of one layer. A weight that is zero stays zero. Without moments
/// weights are rounded to nearest.
///
/// # Errors
/// [`CompressError::Sparsity`] and [`CompressError::Pattern`]; [`CompressError::NeedsCalibration`] for anything but magnitude
/// without reconstruction if there are no moments; [`CompressError::Calibration`] if these are not finite;
/// [`CompressError::Singular`] if no dampening makes them positive definite, or numbers overflow.
///
/// # Panics
/// If `weights` are not n rows of k, or the moments those of another number of inputs.
pub fn solve(
    weights: &[f32],
    n: usize,
    k: usize,
    moments: Option<&Moments>,
    spec: &LayerSpec,
) -> Result<Outcome, CompressError> {
    assert_eq!(weights.len(), n * k, "[{n}, {k}]");
    spec.pattern.check()?;
    let Some(moments) = moments else {
        let what = match spec.method {
            Method::Wanda => "Wanda",
            Method::SparseGpt => "SparseGPT",
            Method::Magnitude if spec.reconstruct => "reconstruction",
            Method::Magnitude => return Ok(without_moments(weights, k, spec)),
        };
        return Err(CompressError::NeedsCalibration { what });
    };
    assert_eq!(moments.k(), k, "inputs of the moments");
    if let Some(input) = moments.not_finite() {
        return Err(CompressError::Calibration { input });
    }
    Layer::new(weights, moments, spec).solve()
}

fn without_moments(weights: &[f32], k: usize, spec: &LayerSpec) -> Outcome {
    let kept = mask::magnitude(weights, k, spec.pattern, spec.scope);
    let rows = Solved::nearest(&masked(weights, &kept), k, spec.precision);
    let difference = |(value, &weight): (f64, &f32)| (value - f64::from(weight)).powi(2);
    let error = rows
        .values(k)
        .into_iter()
        .zip(weights)
        .map(difference)
        .sum();
    let total = weights
        .iter()
        .map(|&weight| f64::from(weight).powi(2))
        .sum();
    Outcome {
        rows,
        error: relative(error, total),
        dampening: 0.0,
        note: None,
    }
}

fn masked(weights: &[f32], kept: &[bool]) -> Vec<f64> {
    let pairs = weights.par_iter().zip(kept);
    pairs
        .map(|(&weight, &kept)| if kept { weight.into() } else { 0.0 })
        .collect()
}

/// A layer with the moments of its inputs.
struct Layer<'a> {
    weights: &'a [f32],
    k: usize,
    moments: &'a Moments,
    spec: &'a LayerSpec,
    /// The diagonal of the moments, and its mean over inputs that are not always zero.
    diagonal: Vec<f64>,
    mean: f64,
}

/// The factor of the dampened moments, and by which share of the mean they are dampened.
struct Factor {
    panels: Panels,
    dampening: f64,
}

impl<'a> Layer<'a> {
    fn new(weights: &'a [f32], moments: &'a Moments, spec: &'a LayerSpec) -> Self {
        let diagonal = moments.xx().diagonal();
        let live = diagonal.iter().filter(|&&square| square > 0.0).count();
        Layer {
            weights,
            k: moments.k(),
            moments,
            spec,
            mean: diagonal.iter().sum::<f64>() / live.max(1) as f64,
            diagonal,
        }
    }

    fn solve(&self) -> Result<Outcome, CompressError> {
        let spec = self.spec;
        let compensate = !spec.rtn && spec.precision != Precision::Bf16;
        let sparse_gpt = spec.method == Method::SparseGpt;
        let factor = (sparse_gpt || compensate)
            .then(|| self.factor())
            .transpose()?;
        // Reconstruction comes between pruning and rounding, so with it they are passes of their own.
        let joint = sparse_gpt && compensate && !spec.reconstruct;
        let objective = Objective::new(self.moments, self.weights);
        let pruned = match &factor {
            Some(factor) if sparse_gpt => self.sparse_gpt(factor, &objective, joint),
            _ => self.masked(),
        };
        let rows = if joint {
            Solved::quantized(pruned.quantized(), spec.precision)
        } else {
            let Sweep {
                mut values, kept, ..
            } = pruned;
            if spec.reconstruct && self.mean > 0.0 {
                values = self.reconstruct(&objective, values, &kept, !compensate);
            }
            match &factor {
                Some(factor) if compensate => self.round(factor, values, kept),
                _ => Solved::nearest(&values, self.k, spec.precision),
            }
        };
        let error = objective.relative(&objective.errors(&rows.values(self.k)));
        if !error.is_finite() {
            return Err(CompressError::Singular);
        }
        let dampening = factor.map_or(0.0, |factor| factor.dampening);
        Ok(Outcome {
            rows,
            error,
            dampening,
            note: (dampening > DAMPENING).then_some(Note::Dampened(dampening)),
        })
    }

    /// The factor with the least dampening that makes the moments positive definite.
    fn factor(&self) -> Result<Factor, CompressError> {
        let mut dampening = DAMPENING;
        while dampening <= LARGEST_DAMPENING {
            if let Some(panels) = self.moments.xx().factor(dampening * self.mean) {
                return Ok(Factor { panels, dampening });
            }
            dampening *= 10.0;
        }
        Err(CompressError::Singular)
    }

    /// Pruned by magnitude or Wanda.
    fn masked(&self) -> Sweep {
        let LayerSpec { pattern, scope, .. } = *self.spec;
        let kept = match self.spec.method {
            Method::Wanda => mask::wanda(self.weights, self.k, &self.moments.norms(), pattern),
            _ => mask::magnitude(self.weights, self.k, pattern, scope),
        };
        Sweep::new(masked(self.weights, &kept), self.k, kept, Round::No)
    }

    /// Pruned by SparseGPT, and rounded to levels in the same pass if `joint`. Inputs that are always zero lose their weights, as
    /// in the paper's code. The scales of int8 rows are those of weights pruned in a pass before that, because making up for what
    /// is pruned makes weights larger than they were.
    fn sparse_gpt(&self, factor: &Factor, objective: &Objective<'_>, joint: bool) -> Sweep {
        let LayerSpec { pattern, scope, .. } = *self.spec;
        let live = self.diagonal.iter().map(|&square| square > 0.0);
        let pairs = self.weights.iter().zip(live.cycle());
        let kept: Vec<bool> = pairs.map(|(&weight, live)| live && weight != 0.0).collect();
        let gone = kept.iter().filter(|&&kept| !kept).count();
        let pruned = zeros_for(pattern.sparsity(), kept.len());
        let round = if joint {
            self.levels(gone.max(pruned))
        } else {
            Round::No
        };
        let mut weights = masked(self.weights, &kept);
        if self.moments.with_dense() {
            self.retarget(factor, objective, &mut weights, &kept);
        }
        let first = (round == Round::Int8).then(|| {
            let mut first = Sweep::new(weights.clone(), self.k, kept.clone(), Round::No);
            first.run(&factor.panels, Some((pattern, scope)));
            first
        });
        let mut sweep = Sweep::new(weights, self.k, kept, round);
        if let Some(first) = first {
            sweep.scale_by(&first);
        }
        sweep.run(&factor.panels, Some((pattern, scope)));
        sweep
    }

    /// Makes the weights those that fit the outputs of the dense model best before anything is pruned. What SparseGPT then keeps
    /// near to is the output wanted, and not that of the dense weights on inputs that are a little off.
    fn retarget(
        &self,
        factor: &Factor,
        objective: &Objective<'_>,
        weights: &mut [f64],
        kept: &[bool],
    ) {
        let mut change = objective.descent(weights);
        change
            .par_chunks_mut(ROWS * self.k)
            .for_each(|rows| factor.panels.solve(rows));
        weights
            .par_iter_mut()
            .zip(change)
            .zip(kept)
            .filter(|(_, kept)| **kept)
            .for_each(|((weight, change), _)| *weight += change);
    }

    /// What to round to in a pass over weights of which so many are zero.
    fn levels(&self, zeros: usize) -> Round {
        match self.spec.precision {
            Precision::Bf16 => Round::No,
            Precision::Int8 => Round::Int8,
            Precision::Int4 { group_elems } => Round::Int4 {
                group: group_elems,
                kind: int4_kind(zeros, self.weights.len()),
            },
        }
    }

    /// Rounds the kept weights to levels in a pass of its own.
    fn round(&self, factor: &Factor, values: Vec<f64>, kept: Vec<bool>) -> Solved {
        let zeros = kept.iter().filter(|&&kept| !kept).count();
        let mut sweep = Sweep::new(values, self.k, kept, self.levels(zeros));
        sweep.run(&factor.panels, None);
        Solved::quantized(sweep.quantized(), self.spec.precision)
    }

    /// Refits the kept weights. Where the result is rounded to bf16 next (`rounded`), rows that are worse after that than they
    /// were before stay as they are.
    fn reconstruct(
        &self,
        objective: &Objective<'_>,
        mut values: Vec<f64>,
        kept: &[bool],
        rounded: bool,
    ) -> Vec<f64> {
        if rounded {
            round_bf16(&mut values);
        }
        let before = objective.errors(&values);
        let xx = self.moments.xx();
        let added = DAMPENING * self.mean;
        let mut refitted = reconstruct::refit(objective, &values, &before, kept, xx, added);
        if rounded {
            round_bf16(&mut refitted);
        }
        let errors = before.iter().zip(objective.errors(&refitted));
        let rows = refitted.chunks_mut(self.k).zip(values.chunks(self.k));
        for ((before, after), (refitted, values)) in errors.zip(rows) {
            // Not so where it is not a number.
            let better = after <= *before;
            if !better {
                refitted.copy_from_slice(values);
            }
        }
        refitted
    }
}

fn round_bf16(values: &mut [f64]) {
    let round = |value: f64| half::bf16::from_bits(bf16_bits(value)).into();
    values
        .par_iter_mut()
        .for_each(|value| *value = round(*value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Pattern;

    /// Moments of two inputs that no inputs can have: their product is `off` times the mean of their squares.
    fn impossible(off: f64) -> Moments {
        let mut moments = Moments::new(2, false);
        moments.add(&[1.0, 0.0, 0.0, 1.0], None);
        moments.xx_mut().set(0, 1, off);
        moments
    }

    fn sparse_gpt(moments: &Moments) -> Result<Outcome, CompressError> {
        let spec = LayerSpec {
            method: Method::SparseGpt,
            pattern: Pattern::NofM { keep: 1, of: 2 },
            ..LayerSpec::default()
        };
        solve(&[1.0, 2.0], 1, 2, Some(moments), &spec)
    }

    #[test]
    fn dampening_rises_until_the_moments_are_positive_definite() {
        let usual = sparse_gpt(&impossible(0.5)).unwrap();
        assert_eq!((usual.dampening, usual.note), (0.01, None));
        // 1 + dampening has to be more than what is off the diagonal.
        for (off, dampening) in [(1.05, 0.1), (1.5, 1.0), (200.0, 1000.0)] {
            let risen = sparse_gpt(&impossible(off)).unwrap();
            assert!(
                (risen.dampening / dampening - 1.0).abs() < 1e-9,
                "{}",
                risen.dampening
            );
            let Some(Note::Dampened(share)) = risen.note else {
                panic!("nothing was said");
            };
            assert_eq!(share, risen.dampening);
        }
        let error = sparse_gpt(&impossible(1e9)).unwrap_err();
        assert!(matches!(error, CompressError::Singular), "{error}");
    }
}
