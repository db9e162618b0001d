//! What came of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// The error of its output: see [`crate::layer::Outcome::error`].
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

    pub(crate) fn add(&mut self, other: &Totals) {
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

    pub(crate) fn add(&mut self, other: &Counts) {
        self.packed.add(&other.packed);
        self.quantized.add(&other.quantized);
        self.dense.add(&other.dense);
        self.rounded += other.rounded;
        self.solved.extend(other.solved.iter().cloned());
    }
}
