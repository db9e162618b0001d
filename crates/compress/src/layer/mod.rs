//! The mathematics of compressing one linear layer: which weights to keep, what they become, and how they are rounded.
//!
//! A layer is `y = W x` with `W` of `[n, k]` (out, in). What it is worth keeping is judged by its inputs on calibration
//! data, of which only the second moments are needed ([`Moments`]): with `H` the sum of `x x^T` the error of new weights is
//! the sum over rows of `(w' - w) H (w' - w)^T`. The steps of [`solve()`], each of them optional:
//!
//! 1. a mask: by magnitude, by Wanda (arXiv 2306.11695), or by SparseGPT (arXiv 2301.00774), which changes the kept weights
//!    as it goes so that they make up for what is pruned;
//! 2. reconstruction: with the mask fixed, the kept weights of each row become those of least squares;
//! 3. rounding to int8 or int4: one column after the other, the later columns making up for the error (GPTQ, arXiv
//!    2210.17323), in the same pass as SparseGPT where there is no reconstruction between; or to nearest.
//!
//! All arithmetic is f64. Results are the same bits for any number of threads: work is cut into pieces of fixed sizes, and
//! each piece is computed by one thread.

mod mask;
mod moments;
mod objective;
mod panels;
mod reconstruct;
mod solve;
mod sweep;

use std::fmt;

use rayon::prelude::*;
use sparamx_model::Precision;

use crate::options::Scope;
use crate::quantize::{self, Int4, Quantized};

pub use crate::options::{Method, Pattern};
pub use moments::Moments;
pub use solve::solve;

/// What to do with a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// How the weights to prune are chosen.
    pub method: Method,
    /// How many.
    pub pattern: Pattern,
    /// Among which weights the smallest are looked for, with [`Pattern::Unstructured`]; not of [`Method::Wanda`].
    pub scope: Scope,
    /// The dtype of the result.
    pub precision: Precision,
    /// Round every weight to its nearest level; otherwise the weights not yet rounded make up for the error of the others.
    pub rtn: bool,
    /// Refit the kept weights by least squares.
    pub reconstruct: bool,
}

impl Default for LayerSpec {
    fn default() -> Self {
        LayerSpec {
            method: Method::Magnitude,
            pattern: Pattern::Unstructured(0.0),
            scope: Scope::Tensor,
            precision: Precision::Bf16,
            rtn: false,
            reconstruct: false,
        }
    }
}

/// Compressed rows, row-major `[n, k]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Solved {
    /// Bits of bf16, all finite; every zero is +0.
    Bf16(Vec<u16>),
    /// As [`crate::quantize::int8`] gives them.
    Int8 {
        /// -127 to 127.
        levels: Vec<i8>,
        /// `[n]`.
        scales: Vec<f32>,
    },
    /// As [`crate::quantize::int4`] gives them: levels for packed weights (no kept weight is 0) where at least a quarter of the
    /// weights is pruned, for dense ones otherwise. Either can be stored both ways.
    Int4 {
        /// -8 to 7.
        levels: Vec<i8>,
        /// `[n, ceil(k / group)]`, each a bf16.
        scales: Vec<f32>,
        /// Columns of a group.
        group: usize,
    },
}

/// What came of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The compressed rows.
    pub rows: Solved,
    /// `||X W'^T - D W^T|| / ||D W^T||` (Frobenius) on the calibration data, with W' as it is stored, X the inputs of the
    /// pruned model and D those of the dense one (X where the moments have none). Without moments `||W' - W|| / ||W||`. 0 if
    /// the layer's output is all zero.
    pub error: f64,
    /// What was added to the diagonal of `H`, as a share of its mean; 0 if nothing was.
    pub dampening: f64,
    /// What a user should know: that the dampening had to rise.
    pub note: Option<Note>,
}

/// Something unusual about a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Note {
    /// `H` was not positive definite with the usual dampening, so it rose to this share of the mean of the diagonal.
    Dampened(f64),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Dampened(share) => write!(
                f,
                "the inputs on the calibration data are too much alike; dampening rose to {share} of their mean square"
            ),
        }
    }
}

impl Solved {
    /// `values`, `[n, k]`, each rounded to its nearest bf16, and that to its nearest level.
    fn nearest(values: &[f64], k: usize, precision: Precision) -> Self {
        let bits: Vec<u16> = values.par_iter().map(|&value| bf16_bits(value)).collect();
        match precision {
            Precision::Bf16 => Solved::Bf16(bits),
            Precision::Int8 => Solved::quantized(quantize::int8(&bits, k), precision),
            Precision::Int4 { group_elems } => {
                let zeros = bits.iter().filter(|&&bits| bits == 0).count();
                let kind = int4_kind(zeros, bits.len());
                Solved::quantized(quantize::int4(&bits, k, group_elems, kind), precision)
            }
        }
    }

    /// Levels of a precision that has them.
    fn quantized(quantized: Quantized, precision: Precision) -> Self {
        let Quantized { levels, scales } = quantized;
        match precision {
            Precision::Int4 { group_elems } => Solved::Int4 {
                levels,
                scales,
                group: group_elems,
            },
            _ => Solved::Int8 { levels, scales },
        }
    }

    /// The weights that are stood for, row-major in rows of `k`.
    pub fn values(&self, k: usize) -> Vec<f64> {
        let scaled = |levels: &[i8], scales: &[f32], group: usize| {
            let groups = k.div_ceil(group);
            let value = |(i, &level): (usize, &i8)| {
                f64::from(level) * f64::from(scales[i / k * groups + i % k / group])
            };
            levels.par_iter().enumerate().map(value).collect()
        };
        match self {
            Solved::Bf16(bits) => bits
                .par_iter()
                .map(|&bits| half::bf16::from_bits(bits).into())
                .collect(),
            Solved::Int8 { levels, scales } => scaled(levels, scales, k),
            Solved::Int4 {
                levels,
                scales,
                group,
            } => scaled(levels, scales, *group),
        }
    }
}

/// The bits of the bf16 nearest to a value, rounded to f32 first; zeros are +0, and what is too large is the largest.
fn bf16_bits(value: f64) -> u16 {
    const LARGEST: f32 = f32::from_bits(0x7f7f_0000);
    // By way of f32: `from_f64` rounds after dropping half of the bits.
    let value = (value as f32).clamp(-LARGEST, LARGEST);
    match half::bf16::from_f32(value).to_bits() {
        0x8000 => 0,
        bits => bits,
    }
}

/// The levels for a matrix with so many zeros: a mask of a bit a weight, and no zeros, is smaller from a quarter on.
fn int4_kind(zeros: usize, len: usize) -> Int4 {
    if zeros * 4 < len {
        Int4::Dense
    } else {
        Int4::Sparse
    }
}
