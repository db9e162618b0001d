//! What to do with a model: how to prune, quantize and pack it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sparamx_model::Precision;

/// The largest model that is written as one file. While it is put together it is mapped, which counts as memory.
pub(crate) const SINGLE_FILE_BYTES: u64 = 2_000_000_000;

/// How to prune, quantize and pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the weights to prune are chosen.
    pub method: Method,
    /// How many are pruned in every tensor. A sparsity of 0 packs the zeros that are there.
    pub pattern: Pattern,
    /// Other patterns for tensors whose modules have these names; of several that fit, the last counts. A name is some
    /// consecutive parts of a module's (`layers.0`, `mlp.down_proj`), with `*` for any characters in a part.
    pub patterns: Vec<(String, Pattern)>,
    /// How the sparsity of [`Options::pattern`] is shared out among the decoder layers.
    pub allocation: Allocation,
    /// Names, as in [`Options::patterns`], of what stays as it is.
    pub skip: Vec<String>,
    /// Among which weights those to prune are looked for: see [`crate::layer::LayerSpec::scope`].
    pub scope: Scope,
    /// The dtype of compressed tensors. Other matrices are bf16.
    pub precision: Precision,
    /// How weights become int8 and int4.
    pub rounding: Rounding,
    /// Refit the kept weights to the outputs of the dense model.
    pub reconstruct: bool,
    /// Compress the output head too, where it is not the embedding.
    pub include_lm_head: bool,
    /// A model of at most so many bytes of bf16 becomes one file, a larger one a file for each decoder layer.
    pub single_file_bytes: u64,
    /// Go on from what an earlier call with the same options left.
    pub resume: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            method: Method::Magnitude,
            pattern: Pattern::Unstructured(0.0),
            patterns: Vec::new(),
            allocation: Allocation::Uniform,
            skip: Vec::new(),
            scope: Scope::Tensor,
            precision: Precision::Bf16,
            rounding: Rounding::Nearest,
            reconstruct: false,
            include_lm_head: false,
            single_file_bytes: SINGLE_FILE_BYTES,
            resume: false,
        }
    }
}

impl Options {
    /// What of these options needs a [`crate::Calibration`]; `None` if nothing does.
    pub fn needs_calibration(&self) -> Option<&'static str> {
        match self {
            Options {
                method: Method::Wanda,
                ..
            } => Some("Wanda"),
            Options {
                method: Method::SparseGpt,
                ..
            } => Some("SparseGPT"),
            Options {
                reconstruct: true, ..
            } => Some("reconstruction"),
            Options {
                allocation: Allocation::Owl,
                ..
            } => Some("sparsity by outliers"),
            Options {
                precision: Precision::Int8 | Precision::Int4 { .. },
                rounding: Rounding::Compensated,
                ..
            } => Some("rounding that makes up for its errors"),
            _ => None,
        }
    }
}

/// How the weights to prune are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The smallest, as [`crate::prune()`] does.
    Magnitude,
    /// The smallest products of a weight and the norm of its input, within each output row. The kept weights stay as they are.
    Wanda,
    /// By the error that is left after the other weights have made up for it, in blocks of 128 columns. With the dense model's
    /// inputs among the moments it is the dense outputs that they make up for, as in GPTAQ (arXiv 2504.02692).
    SparseGpt,
}

impl Method {
    /// All there are.
    pub const ALL: [Method; 3] = [Method::Magnitude, Method::Wanda, Method::SparseGpt];

    /// The word for it, in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Method::Magnitude => "magnitude",
            Method::Wanda => "wanda",
            Method::SparseGpt => "sparsegpt",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many weights are pruned among which.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This share, at least 0 and below 1, rounded to a whole number ([`crate::zeros_for`]) within: what [`crate::layer::LayerSpec::scope`]
    /// says for magnitude, a row for Wanda, a block of 128 columns for SparseGPT: all its rows as in the paper, or each by
    /// itself, as the scope says.
    Unstructured(f64),
    /// All but `keep` of every `of` consecutive inputs of a row. `of` is a power of two up to 128. Where k is not a multiple,
    /// the last group is shorter and keeps up to `keep` too.
    NofM {
        /// Weights kept in a group.
        keep: usize,
        /// Weights in a group.
        of: usize,
    },
}

/// Among which weights the smallest are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All weights of a matrix.
    #[default]
    Tensor,
    /// Those of one output row, so that every row keeps the same number.
    Row,
}

impl Scope {
    /// All there are.
    pub const ALL: [Scope; 2] = [Scope::Tensor, Scope::Row];

    /// The word for it, in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Tensor => "tensor",
            Scope::Row => "row",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a sparsity is shared out among decoder layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// The same in each.
    #[default]
    Uniform,
    /// Less where there are more outliers, and the same in the mean: OWL (arXiv 2310.05175).
    Owl,
}

impl Allocation {
    /// All there are.
    pub const ALL: [Allocation; 2] = [Allocation::Uniform, Allocation::Owl];

    /// The word for it, in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Allocation::Uniform => "uniform",
            Allocation::Owl => "owl",
        }
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How weights become levels of int8 and int4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each to the nearest.
    #[default]
    Nearest,
    /// One column after the other, those to come making up for the error: GPTQ (arXiv 2210.17323).
    #[serde(rename = "gptq")]
    Compensated,
}

impl Rounding {
    /// All there are.
    pub const ALL: [Rounding; 2] = [Rounding::Nearest, Rounding::Compensated];

    /// The word for it, in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Nearest => "nearest",
            Rounding::Compensated => "gptq",
        }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
