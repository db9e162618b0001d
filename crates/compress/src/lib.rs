//! Prunes, quantizes and packs checkpoints.
//!
//! [`compress`] reads a dense checkpoint tensor by tensor, sets its smallest weights to zero, rounds the rest to int8 or int4
//! where that is asked for, packs what gains by it, and writes a folder of the same layout that the model crate opens like any
//! other.

#![forbid(unsafe_code)]

mod error;
mod files;
pub mod layer;
mod prune;
pub mod quantize;
mod shards;
mod staging;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sparamx_format::container::{self, Dtype, TensorOut};
use sparamx_format::{DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8};
use sparamx_model::plan::{Role, TensorPlan};
use sparamx_model::{Checkpoint, Precision, TensorInfo};

pub use error::CompressError;
pub use prune::{Scope, clear_negative_zeros, prune, zeros_for};
pub use staging::check_output;

use shards::Shards;
use staging::Staging;

/// The largest file of weights, the limit that Hugging Face tools use.
const SHARD_BYTES: u64 = 5_000_000_000;

/// How to prune, quantize and pack.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The share of zeros in every pruned tensor: at least 0 and below 1. 0 packs the zeros that are there.
    pub sparsity: f64,
    /// Among which weights the smallest are looked for.
    pub scope: Scope,
    /// The numbers to store pruned tensors in. Other tensors are bf16.
    pub precision: Precision,
    /// Prune and quantize the output head too, where it is not the embedding.
    pub include_lm_head: bool,
    /// Bytes of tensors in a file, unless one tensor alone has more.
    pub shard_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sparsity: 0.0,
            scope: Scope::Tensor,
            precision: Precision::Bf16,
            include_lm_head: false,
            shard_bytes: SHARD_BYTES,
        }
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that was just written.
    pub tensor: &'a str,
    /// Bytes of the input that are done.
    pub done_bytes: u64,
    /// Bytes of the input.
    pub total_bytes: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The output folder.
    pub dir: PathBuf,
    /// Files of weights in it.
    pub files: usize,
    /// Tensors that were packed: a bitmap, and numbers for what is not zero.
    pub packed: Totals,
    /// Tensors that were quantized and are dense, because they would not gain by a bitmap.
    pub quantized: Totals,
    /// Tensors that are plain: those never pruned, and those that would not gain.
    pub dense: Totals,
    /// Weights that bf16 cannot hold and that were rounded.
    pub rounded: u64,
}

/// Sums over tensors.
#[derive(Clone, Copy, Debug, Default)]
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
}

impl Report {
    /// The sums over all tensors.
    pub fn all(&self) -> Totals {
        [self.packed, self.quantized, self.dense]
            .into_iter()
            .fold(Totals::default(), |a, b| Totals {
                tensors: a.tensors + b.tensors,
                elements: a.elements + b.elements,
                zeros: a.zeros + b.zeros,
                bytes_before: a.bytes_before + b.bytes_before,
                bytes_after: a.bytes_after + b.bytes_after,
            })
    }
}

/// Writes the checkpoint pruned, quantized and packed to the folder `output`, which appears when it is complete. `progress` may end the
/// work early.
///
/// # Errors
/// [`CompressError::Sparsity`], [`CompressError::AlreadyPacked`], [`CompressError::OutputExists`] before anything is read;
/// [`CompressError::Interrupted`] at the word of `progress`; whatever keeps the input from being read or the output from being
/// written. Nothing is left of the output then.
pub fn compress(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report, CompressError> {
    if !(0.0..1.0).contains(&options.sparsity) {
        return Err(CompressError::Sparsity {
            found: options.sparsity,
        });
    }
    if checkpoint.config().packed.is_some() {
        return Err(CompressError::AlreadyPacked {
            dir: checkpoint.dir().to_owned(),
        });
    }
    let staging = Staging::new(output).map_err(|error| error.for_output(output))?;
    let filled = fill(checkpoint, staging.dir(), options, progress);
    let mut report = filled.map_err(|error| error.for_output(staging.target()))?;
    report.dir = staging.publish()?;
    Ok(report)
}

fn fill(
    checkpoint: &Checkpoint,
    dir: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report, CompressError> {
    let total_bytes = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
    let mut packer = Packer::new(checkpoint, options, dir);
    let mut done_bytes = 0;
    for (plan, info) in checkpoint.plan().iter().zip(checkpoint.tensors()) {
        packer.tensor(plan, &info)?;
        done_bytes += info.bytes;
        if progress(Progress {
            tensor: &plan.name,
            done_bytes,
            total_bytes,
        })
        .is_break()
        {
            return Err(CompressError::Interrupted);
        }
    }
    let report = packer.finish()?;
    files::copy(checkpoint.dir(), dir)?;
    files::write_config(checkpoint.dir(), dir, quantization(options, &report))?;
    Ok(report)
}

/// What `config.json` says about the packing.
fn quantization(options: &Options, report: &Report) -> Value {
    let scope = match options.scope {
        Scope::Tensor => "tensor",
        Scope::Row => "row",
    };
    let mut config = json!({
        "quant_method": "sparamx",
        "layout": "strip16",
        "version": 1,
        "weights": options.precision.name(),
        "method": "magnitude",
        "scope": scope,
        "target_sparsity": options.sparsity,
        "sparsity": report.packed.sparsity(),
    });
    if let Precision::Int4 { group_elems } = options.precision {
        config["group_size"] = json!(group_elems);
    }
    config
}

/// Takes tensors from a checkpoint to the output, one after the other.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    shards: Shards<'a>,
    packed: Totals,
    quantized: Totals,
    dense: Totals,
    rounded: u64,
}

impl<'a> Packer<'a> {
    fn new(checkpoint: &'a Checkpoint, options: &'a Options, dir: &'a Path) -> Self {
        Packer {
            checkpoint,
            options,
            shards: Shards::new(dir, options.shard_bytes),
            packed: Totals::default(),
            quantized: Totals::default(),
            dense: Totals::default(),
            rounded: 0,
        }
    }

    fn tensor(&mut self, plan: &TensorPlan, info: &TensorInfo) -> Result<(), CompressError> {
        let pruned = match plan.role {
            Role::Projection => true,
            Role::Head => self.options.include_lm_head,
            Role::Embedding => false,
            Role::Vector => return self.vector(plan, info),
        };
        let rows = self.checkpoint.raw_rows(&plan.name)?;
        self.rounded += rows.inexact as u64;
        let (n, k) = (rows.n, rows.k);
        let mut bits = rows.bits;
        if pruned {
            clear_negative_zeros(bits.to_mut());
            if self.options.sparsity > 0.0 {
                prune(bits.to_mut(), k, self.options.sparsity, self.options.scope);
            }
            let compact = Compact::new(&bits, n, k, self.options.precision)
                .map_err(|error| error.in_tensor(&plan.name))?;
            if let Some(compact) = compact {
                return self.compact(plan, info, &compact);
            }
        }
        // A negative zero is a zero too.
        let zeros = bits.iter().filter(|&&bits| bits & 0x7fff == 0).count() as u64;
        count(&mut self.dense, plan, info, zeros, bits.len() * 2);
        self.shards.add_dense(
            &plan.name,
            Dtype::BF16,
            &plan.shape,
            bytemuck::cast_slice(&bits),
        )
    }

    fn compact(
        &mut self,
        plan: &TensorPlan,
        info: &TensorInfo,
        weight: &Compact,
    ) -> Result<(), CompressError> {
        let tensors = weight.tensors(&plan.name);
        let bytes = tensors.iter().map(TensorOut::bytes).sum();
        let zeros = plan.elements() - weight.nnz() as u64;
        let totals = match weight {
            Compact::DenseI8(..) | Compact::DenseI4(..) => &mut self.quantized,
            _ => &mut self.packed,
        };
        count(totals, plan, info, zeros, bytes);
        self.shards.add(&tensors)
    }

    /// Norms and biases stay as they are.
    fn vector(&mut self, plan: &TensorPlan, info: &TensorInfo) -> Result<(), CompressError> {
        // Only to refuse values that are not finite.
        let values = self.checkpoint.vector(&plan.name)?;
        let zeros = values.iter().filter(|&&value| value == 0.0).count() as u64;
        let view = self.checkpoint.view(&plan.name)?;
        count(&mut self.dense, plan, info, zeros, view.bytes.len());
        self.shards
            .add_dense(&plan.name, view.dtype, &plan.shape, view.bytes)
    }

    fn finish(self) -> Result<Report, CompressError> {
        Ok(Report {
            dir: PathBuf::new(),
            files: self.shards.finish()?,
            packed: self.packed,
            quantized: self.quantized,
            dense: self.dense,
            rounded: self.rounded,
        })
    }
}

/// A tensor in fewer bytes than as bf16. The dense ones come with the number of their levels that are not 0.
enum Compact {
    SparseBf16(SparseBf16),
    SparseI8(SparseI8),
    DenseI8(DenseI8, usize),
    SparseI4(SparseI4),
    DenseI4(DenseI4, usize),
}

impl Compact {
    /// The smallest way to store `[n, k]` rows in these numbers; none if bf16 it is to be and zeros are too few.
    fn new(
        rows: &[u16],
        n: usize,
        k: usize,
        precision: Precision,
    ) -> Result<Option<Self>, FormatError> {
        match precision {
            Precision::Bf16 => {
                let packed = SparseBf16::pack(rows, n, k)?;
                let gains = packed.packed_bytes() < size_of_val(rows);
                Ok(gains.then_some(Compact::SparseBf16(packed)))
            }
            Precision::Int8 => Self::int8(rows, n, k).map(Some),
            Precision::Int4 { group_elems } => Self::int4(rows, n, k, group_elems).map(Some),
        }
    }

    fn int8(rows: &[u16], n: usize, k: usize) -> Result<Self, FormatError> {
        let quantized = quantize::int8(rows, k);
        let scales = Scales::row(&quantized.scales, n)?;
        let sparse = SparseI8::pack(&quantized.levels, n, k, scales.clone())?;
        let dense = DenseI8::from_rows(&quantized.levels, n, k, scales)?;
        Ok(if sparse.packed_bytes() < dense.bytes() {
            Compact::SparseI8(sparse)
        } else {
            Compact::DenseI8(dense, sparse.nnz())
        })
    }

    fn int4(rows: &[u16], n: usize, k: usize, group: usize) -> Result<Self, FormatError> {
        // Dense and packed weights have different levels, and which is smaller depends on zeros alone.
        let quantized = quantize::int4(rows, k, group, quantize::Int4::Dense);
        let scales = Scales::group(&quantized.scales, n, k, group)?;
        let dense = DenseI4::from_rows(&quantized.levels, n, k, scales)?;
        let nnz = quantized.levels.iter().filter(|&&level| level != 0).count();
        let zeros = rows.iter().filter(|&&bits| bits == 0).count();
        // A mask takes a quarter of what the levels take, so with fewer zeros there is no use in trying.
        if zeros * 4 < rows.len() {
            return Ok(Compact::DenseI4(dense, nnz));
        }
        let quantized = quantize::int4(rows, k, group, quantize::Int4::Sparse);
        let scales = Scales::group(&quantized.scales, n, k, group)?;
        let sparse = SparseI4::pack(&quantized.levels, n, k, scales)?;
        Ok(if sparse.packed_bytes() < dense.bytes() {
            Compact::SparseI4(sparse)
        } else {
            Compact::DenseI4(dense, nnz)
        })
    }

    /// The tensors to write.
    fn tensors<'a>(&'a self, name: &str) -> Vec<TensorOut<'a>> {
        match self {
            Compact::SparseBf16(weight) => container::sparse_bf16_tensors(name, weight),
            Compact::SparseI8(weight) => container::sparse_i8_tensors(name, weight),
            Compact::DenseI8(weight, _) => container::dense_i8_tensors(name, weight),
            Compact::SparseI4(weight) => container::sparse_i4_tensors(name, weight),
            Compact::DenseI4(weight, _) => container::dense_i4_tensors(name, weight),
        }
    }

    /// Elements that are not zero.
    fn nnz(&self) -> usize {
        match self {
            Compact::SparseBf16(weight) => weight.nnz(),
            Compact::SparseI8(weight) => weight.nnz(),
            Compact::SparseI4(weight) => weight.nnz(),
            Compact::DenseI8(_, nnz) | Compact::DenseI4(_, nnz) => *nnz,
        }
    }
}

fn count(
    totals: &mut Totals,
    plan: &TensorPlan,
    info: &TensorInfo,
    zeros: u64,
    bytes_after: usize,
) {
    totals.tensors += 1;
    totals.elements += plan.elements();
    totals.zeros += zeros;
    totals.bytes_before += info.bytes;
    totals.bytes_after += bytes_after as u64;
}
