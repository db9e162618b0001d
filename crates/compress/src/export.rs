//! Writes a checkpoint, packed or not, in forms that other programs read.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sparamx_format::bitmask::BitmaskOut;
use sparamx_format::container::{Dtype, TensorOut};
use sparamx_model::Checkpoint;
use sparamx_model::plan::{Role, TensorPlan};

use crate::options::SINGLE_FILE_BYTES;
use crate::output::Output;
use crate::progress::{Progress, Reporter};
use crate::staging::Staging;
use crate::{CompressError, Totals, files, job};

/// The version of compressed-tensors whose form of `sparse-bitmask` is written; all from 0.9 to 0.12 have it.
const COMPRESSED_TENSORS: &str = "0.12.2";

/// A form of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// Plain bf16 matrices, zeros and all.
    Dense,
    /// Linear layers that get smaller by it as compressed-tensors' `sparse-bitmask`, other matrices in bf16.
    SparseBitmask,
}

impl ExportFormat {
    /// The word for it on command lines.
    pub fn name(self) -> &'static str {
        match self {
            ExportFormat::Dense => "dense",
            ExportFormat::SparseBitmask => "sparse-bitmask",
        }
    }
}

/// What came of an export.
#[derive(Clone, Debug, Default)]
pub struct ExportReport {
    /// The output folder.
    pub dir: PathBuf,
    /// Files of weights in it.
    pub files: usize,
    /// Tensors with a bitmask.
    pub bitmask: Totals,
    /// Plain tensors.
    pub dense: Totals,
    /// Weights that bf16 cannot hold and that were rounded.
    pub rounded: u64,
}

impl ExportReport {
    /// The sums over all tensors.
    pub fn all(&self) -> Totals {
        let mut all = self.bitmask;
        all.add(&self.dense);
        all
    }
}

/// Writes the checkpoint to the folder `output`, which appears when it is complete. Matrices become bf16; norms and biases stay
/// as they are. Memory holds one decoder layer of the output. `progress` may end the work early.
///
/// # Errors
/// [`CompressError::OutputExists`], [`CompressError::Busy`] and [`CompressError::Unfinished`] before anything is read;
/// [`CompressError::Interrupted`] at the word of `progress`; whatever keeps the input from being read or the output from being
/// written. Nothing is left of the output then.
pub fn export(
    checkpoint: &Checkpoint,
    output: &Path,
    format: ExportFormat,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<ExportReport, CompressError> {
    let staging = Staging::new(output, false).map_err(|error| error.for_output(output))?;
    let filled = fill(checkpoint, &staging, format, progress);
    let mut report = filled.map_err(|error| error.for_output(staging.target()))?;
    report.dir = staging.publish()?;
    Ok(report)
}

fn fill(
    checkpoint: &Checkpoint,
    staging: &Staging,
    format: ExportFormat,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<ExportReport, CompressError> {
    let plan = checkpoint.plan();
    let infos: Vec<_> = checkpoint.tensors().collect();
    let units = job::units(plan);
    let bytes: u64 = plan.iter().map(|tensor| 2 * tensor.elements()).sum();
    let output = Output::new(staging, units.len(), bytes <= SINGLE_FILE_BYTES);
    let mut reporter = Reporter::new(checkpoint, progress);
    let mut report = ExportReport::default();
    let mut without_bitmask = Vec::new();
    for (number, unit) in units.into_iter().enumerate() {
        reporter.layer = plan[unit.start].layer();
        let mut pieces = Vec::new();
        for (plan, info) in plan[unit.clone()].iter().zip(&infos[unit.clone()]) {
            let piece = Piece::new(checkpoint, plan, format, &mut report.rounded)?;
            let sparse = matches!(piece, Piece::Bitmask(_));
            if !sparse && matches!(plan.role, Role::Projection | Role::Head) {
                without_bitmask.push(module(&plan.name));
            }
            let totals = if sparse {
                &mut report.bitmask
            } else {
                &mut report.dense
            };
            totals.add(&Totals {
                tensors: 1,
                elements: plan.elements(),
                zeros: plan.elements() - piece.nnz(plan),
                bytes_before: info.bytes,
                bytes_after: piece.bytes(),
            });
            reporter.tensor(info.bytes, plan, None, None)?;
            pieces.push((plan, piece));
        }
        let tensors: Vec<TensorOut<'_>> = pieces
            .iter()
            .flat_map(|(plan, piece)| piece.tensors(plan))
            .collect();
        output.write(number, &tensors)?;
        plan[unit]
            .iter()
            .for_each(|tensor| checkpoint.release(&tensor.name));
    }
    report.files = output.finish()?;
    let quantization = match format {
        ExportFormat::Dense => None,
        ExportFormat::SparseBitmask => Some(sparsity(&report, &without_bitmask)),
    };
    let (from, out) = (checkpoint.dir(), staging.out());
    files::copy(from, &out)?;
    files::write_config(checkpoint, &out, quantization, Some("bfloat16"))?;
    Ok(report)
}

/// A tensor to be written.
enum Piece<'a> {
    /// A matrix that a bitmask makes smaller.
    Bitmask(BitmaskOut),
    /// Another matrix.
    Bf16(Cow<'a, [u16]>),
    /// A norm or a bias, as it is.
    Raw(Dtype, &'a [u8]),
}

impl<'a> Piece<'a> {
    /// Reads a tensor; values that bf16 cannot hold are added to `rounded`.
    fn new(
        checkpoint: &'a Checkpoint,
        plan: &TensorPlan,
        format: ExportFormat,
        rounded: &mut u64,
    ) -> Result<Self, CompressError> {
        if plan.role == Role::Vector {
            // Only to refuse values that are not finite.
            checkpoint.vector(&plan.name)?;
            let view = checkpoint.view(&plan.name)?;
            return Ok(Piece::Raw(view.dtype, view.bytes));
        }
        let rows = checkpoint.raw_rows(&plan.name)?;
        *rounded += rows.inexact as u64;
        let (n, k, bits) = (rows.n, rows.k, rows.bits);
        if format == ExportFormat::SparseBitmask && plan.role == Role::Projection {
            let out = BitmaskOut::pack(&bits, n, k);
            if out.bytes() < size_of_val(&*bits) {
                return Ok(Piece::Bitmask(out));
            }
        }
        Ok(Piece::Bf16(bits))
    }

    /// Elements that are not zero. Zeros of norms and biases are not counted.
    fn nnz(&self, plan: &TensorPlan) -> u64 {
        match self {
            Piece::Bitmask(out) => out.nnz() as u64,
            // A negative zero is a zero too.
            Piece::Bf16(bits) => bits.iter().filter(|&&bits| bits & 0x7fff != 0).count() as u64,
            Piece::Raw(..) => plan.elements(),
        }
    }

    fn bytes(&self) -> u64 {
        (match self {
            Piece::Bitmask(out) => out.bytes(),
            Piece::Bf16(bits) => size_of_val(&**bits),
            Piece::Raw(_, bytes) => bytes.len(),
        }) as u64
    }

    fn tensors(&self, plan: &TensorPlan) -> Vec<TensorOut<'_>> {
        let whole = |dtype, data| vec![TensorOut::new(&plan.name, dtype, plan.shape.clone(), data)];
        match self {
            Piece::Bitmask(out) => out.tensors(module(&plan.name)),
            Piece::Bf16(bits) => whole(Dtype::BF16, bytemuck::cast_slice(bits)),
            Piece::Raw(dtype, bytes) => whole(*dtype, bytes),
        }
    }
}

/// The module that a weight belongs to.
fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// What `config.json` says about bitmasks.
fn sparsity(report: &ExportReport, without_bitmask: &[&str]) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "version": COMPRESSED_TENSORS,
        "sparsity_config": {
            "format": "sparse-bitmask",
            "global_sparsity": report.all().sparsity(),
            "sparsity_structure": "unstructured",
            "targets": ["Linear"],
            "ignore": without_bitmask,
            "registry_requires_subclass": false,
        },
    })
}
