//! Prunes, quantizes and packs checkpoints, and writes them in forms that other programs read.
//!
//! [`compress`] reads a dense checkpoint layer by layer, sets weights to zero, refits and rounds the others where that is asked for,
//! packs what gains by it, and writes a folder of the same layout that the model crate opens like any other. What is done to
//! one linear layer is in [`layer`]; everything around it is here. [`export()`] writes what others read.
//!
//! Without calibration a tensor is read, pruned by magnitude and written, so that memory holds one decoder layer of the
//! output. With it, see [`Calibration`], memory also holds the layer itself, the second moments of its inputs and the hidden
//! states of the text.

#![forbid(unsafe_code)]

mod calibrated;
mod compact;
mod compare;
mod error;
mod export;
mod files;
mod job;
pub mod layer;
mod output;
mod owl;
mod progress;
mod prune;
pub mod quantize;
mod select;
mod staging;
mod state;
pub mod weights;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sparamx_model::{Checkpoint, Precision};

pub use calibrated::Calibration;
pub use compare::{LayerErrors, layer_errors};
pub use error::{CompressError, Kept};
pub use export::{ExportFormat, ExportReport, export};
pub use progress::{Progress, Step};
pub use prune::{Scope, clear_negative_zeros, prune, zeros_for};
pub use staging::check_output;

use layer::{Method, Pattern};

/// The largest model that is written as one file. While it is put together it is mapped, which counts as memory.
const SINGLE_FILE_BYTES: u64 = 2_000_000_000;

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
    /// Among which weights those to prune are looked for: see [`layer::LayerSpec::scope`].
    pub scope: Scope,
    /// The numbers to store compressed tensors in. Other matrices are bf16.
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
    /// What of these options needs a [`Calibration`]; `None` if nothing does.
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

/// How a sparsity is shared out among decoder layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// The same in each.
    #[default]
    Uniform,
    /// Less where there are more outliers, and the same in the mean: OWL (arXiv 2310.05175).
    Owl,
}

/// How weights become levels of int8 and int4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest.
    #[default]
    Nearest,
    /// One column after the other, those to come making up for the error: GPTQ (arXiv 2210.17323).
    Compensated,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The output folder.
    pub dir: PathBuf,
    /// Files of weights in it.
    pub files: usize,
    /// What was counted.
    pub counts: Counts,
    /// The sparsity of each decoder layer, where outliers decided it.
    pub layer_sparsities: Option<Vec<f64>>,
}

/// What is counted tensor by tensor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Tensors that were packed: a bitmap, and numbers for what is not zero.
    pub packed: Totals,
    /// Tensors that were quantized and are dense, because they would not gain by a bitmap.
    pub quantized: Totals,
    /// Tensors that are plain: those never pruned, and those that would not gain.
    pub dense: Totals,
    /// Weights that bf16 cannot hold and that were rounded.
    pub rounded: u64,
    /// Tensors that were compressed by calibration, in the order of the model.
    pub solved: Vec<SolvedTensor>,
}

/// A tensor that was compressed by calibration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SolvedTensor {
    /// Its name.
    pub name: String,
    /// Its share of zeros.
    pub sparsity: f64,
    /// The error of its output: see [`layer::Outcome::error`].
    pub error: f64,
    /// What a user should know about it.
    pub note: Option<String>,
}

/// Sums over tensors.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Their number.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// How many of those are zero.
    pub zeros: u64,
    /// Bytes in the input.
    pub bytes_before: u64,
    /// Bytes in the output.
    pub bytes_after: u64,
}

impl Totals {
    /// The share of zeros; 0 of nothing.
    pub fn sparsity(&self) -> f64 {
        if self.elements == 0 {
            0.0
        } else {
            self.zeros as f64 / self.elements as f64
        }
    }

    fn add(&mut self, other: &Totals) {
        self.tensors += other.tensors;
        self.elements += other.elements;
        self.zeros += other.zeros;
        self.bytes_before += other.bytes_before;
        self.bytes_after += other.bytes_after;
    }
}

impl Counts {
    /// The sums over all tensors.
    pub fn all(&self) -> Totals {
        let mut all = self.packed;
        all.add(&self.quantized);
        all.add(&self.dense);
        all
    }

    /// The share of zeros among the tensors that were packed or quantized.
    pub fn sparsity(&self) -> f64 {
        let mut compressed = self.packed;
        compressed.add(&self.quantized);
        compressed.sparsity()
    }

    fn add(&mut self, other: &Counts) {
        self.packed.add(&other.packed);
        self.quantized.add(&other.quantized);
        self.dense.add(&other.dense);
        self.rounded += other.rounded;
        self.solved.extend(other.solved.iter().cloned());
    }
}

/// Writes the checkpoint pruned, quantized and packed to the folder `output`, which appears when it is complete. `progress` may end
/// the work early. `calibration` is read if the options need it. Runs on rayon's current pool and the calibration's threads;
/// their number changes no byte of the output.
///
/// # Errors
/// Before anything is read: [`CompressError::AlreadyPacked`], [`CompressError::NeedsCalibration`], [`CompressError::Sparsity`],
/// [`CompressError::Pattern`], [`CompressError::Allocation`], [`CompressError::UnknownName`], [`CompressError::OutputExists`],
/// [`CompressError::Busy`], [`CompressError::Unfinished`], [`CompressError::Changed`].
///
/// [`CompressError::Interrupted`] at the word of `progress`, and [`CompressError::DiskFull`]: they say what is kept for
/// [`Options::resume`], if some part of the model was finished. After any other error, which keeps the input from being read or
/// solved or the output from being written, nothing is left.
pub fn compress(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report, CompressError> {
    job::run(checkpoint, output, options, calibration, progress)
}
