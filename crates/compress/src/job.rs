//! The way through a model: unit by unit, each solved, written, recorded and forgotten.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sparamx_format::container::TensorOut;
use sparamx_model::plan::{Role, TensorPlan};
use sparamx_model::{Checkpoint, Precision, TensorInfo};

use crate::calibrated::{Calibration, Calibrator, Solution, Target};
use crate::compact::{Compact, Content};
use crate::layer::Note;
use crate::options::{Allocation, Method, Options, Pattern};
use crate::output::Output;
use crate::progress::{Progress, Reporter, Step};
use crate::prune::{clear_negative_zeros, prune_pattern};
use crate::staging::Staging;
use crate::state::{self, State, Unit};
use crate::{CompressError, Counts, Kept, Report, SolvedTensor, files, owl, select};

/// See [`crate::compress`].
pub(crate) fn run(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report, CompressError> {
    let calibration = check(checkpoint, options, calibration)?;
    let key = state::key(checkpoint, options, calibration)?;
    let staging = Staging::new(output, options.resume).map_err(|error| error.for_output(output))?;
    let state = match State::open(staging.root(), &key) {
        Ok(state) => state,
        // Not ours to remove.
        Err(error) => {
            staging.keep();
            return Err(error);
        }
    };
    let mut job = Job {
        checkpoint,
        options,
        calibration,
        staging: &staging,
        infos: checkpoint.tensors().collect(),
        units: units(checkpoint.plan()),
        state,
        reporter: Reporter::new(checkpoint, progress),
    };
    let done = job.run();
    let (done_units, units) = (job.state.units().len(), job.units.len());
    match done {
        Ok(mut report) => {
            report.dir = staging.publish()?;
            Ok(report)
        }
        Err(error) => {
            let mut error = error.for_output(staging.target());
            if let Some(kept) = error.kept().filter(|_| done_units > 0) {
                *kept = Some(Kept {
                    partial: staging.keep(),
                    done: done_units,
                    of: units,
                });
            }
            Err(error)
        }
    }
}

/// Refuses what cannot be done, as far as that is known without reading weights. Gives the calibration if it is needed.
fn check<'c>(
    checkpoint: &Checkpoint,
    options: &Options,
    calibration: Option<&'c Calibration<'c>>,
) -> Result<Option<&'c Calibration<'c>>, CompressError> {
    if checkpoint.config().packed.is_some() {
        return Err(CompressError::AlreadyPacked {
            dir: checkpoint.dir().to_owned(),
        });
    }
    let has_head = checkpoint.plan().iter().any(|t| t.role == Role::Head);
    if options.include_lm_head && !has_head {
        return Err(CompressError::TiedHead);
    }
    select::patterns(checkpoint, options, None)?;
    if options.allocation == Allocation::Owl && matches!(options.pattern, Pattern::NofM { .. }) {
        return Err(CompressError::Allocation);
    }
    let Some(what) = options.needs_calibration() else {
        return Ok(None);
    };
    let given = calibration.filter(|calibration| {
        let windows = calibration.windows;
        !windows.is_empty() && windows.iter().all(|window| !window.is_empty())
    });
    given
        .map(Some)
        .ok_or(CompressError::NeedsCalibration { what })
}

/// The tensors of the plan in units: those before the decoder layers, each layer, those after.
pub(crate) fn units(plan: &[TensorPlan]) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    for (i, tensor) in plan.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if plan[unit.start].layer() == tensor.layer() => unit.end = i + 1,
            _ => units.push(i..i + 1),
        }
    }
    units
}

/// A model under way.
struct Job<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    calibration: Option<&'a Calibration<'a>>,
    staging: &'a Staging,
    /// Of each tensor of the plan.
    infos: Vec<TensorInfo>,
    units: Vec<Range<usize>>,
    state: State,
    reporter: Reporter<'a>,
}

/// A tensor to be written.
struct Ready<'a> {
    index: usize,
    content: Content<'a>,
    solved: Option<(f64, Option<Note>)>,
}

impl<'a> Job<'a> {
    fn run(&mut self) -> Result<Report, CompressError> {
        let layer_sparsities = self.layer_sparsities()?;
        let patterns =
            select::patterns(self.checkpoint, self.options, layer_sparsities.as_deref())?;
        let output = Output::new(self.staging, self.units.len(), self.is_small());
        let mut calibrator = match self.calibration {
            Some(calibration) => Some(Calibrator::new(self.checkpoint, self.options, calibration)?),
            None => None,
        };
        for (number, unit) in self.units.clone().into_iter().enumerate() {
            let target = |i: usize| patterns[i].map(|pattern| (i, pattern));
            let targets: Vec<Target> = unit.clone().filter_map(target).collect();
            self.reporter.layer = self.checkpoint.plan()[unit.start].layer();
            if self.is_done(number, &output)? {
                self.skip(&unit, &targets, &output.path(number), calibrator.as_mut())?;
            } else {
                let ready = self.unit(&unit, &targets, calibrator.as_mut())?;
                self.write(number, &ready, &output)?;
            }
            let tensors = &self.checkpoint.plan()[unit];
            tensors
                .iter()
                .for_each(|tensor| self.checkpoint.release(&tensor.name));
        }
        let files = output.finish()?;
        let mut counts = Counts::default();
        let units = self.state.units().iter();
        units.for_each(|unit| counts.add(&unit.counts));
        let (from, out) = (self.checkpoint.dir(), self.staging.out());
        files::copy(from, &out)?;
        let quantization = self.quantization(&counts);
        files::write_config(self.checkpoint, &out, Some(quantization), None)?;
        Ok(Report {
            dir: PathBuf::new(),
            files,
            counts,
            layer_sparsities,
        })
    }

    /// The sparsity of each layer where calibration decides it.
    fn layer_sparsities(&mut self) -> Result<Option<Vec<f64>>, CompressError> {
        let (Allocation::Owl, Some(calibration), Pattern::Unstructured(sparsity)) = (
            self.options.allocation,
            self.calibration,
            self.options.pattern,
        ) else {
            return Ok(None);
        };
        if let Some(known) = self.state.layer_sparsities() {
            return Ok(Some(known));
        }
        let found = owl::sparsities(self.checkpoint, calibration, sparsity, &mut self.reporter)?;
        self.state.set_layer_sparsities(&found);
        Ok(Some(found))
    }

    /// Whether the model becomes one file.
    fn is_small(&self) -> bool {
        let plan = self.checkpoint.plan();
        let bytes: u64 = plan.iter().map(|tensor| 2 * tensor.elements()).sum();
        bytes <= self.options.single_file_bytes
    }

    /// Whether a unit is written and its file as it was then. If it is not, the progress says so.
    fn is_done(&mut self, number: usize, output: &Output<'_>) -> Result<bool, CompressError> {
        let Some(unit) = self.state.units().get(number) else {
            return Ok(false);
        };
        let crc32 = output.checksum(number);
        if crc32.is_some() && crc32 == unit.crc32 {
            return Ok(true);
        }
        let parts = self.units.len();
        let part = number + 1;
        self.reporter.step(Step::Damaged { part, parts })?;
        Ok(false)
    }

    /// Passes over a unit that is written, which the calibration has to see all the same.
    fn skip(
        &mut self,
        unit: &Range<usize>,
        targets: &[Target],
        file: &Path,
        calibrator: Option<&mut Calibrator<'_>>,
    ) -> Result<(), CompressError> {
        if let (Some(calibrator), Some(layer)) = (calibrator, self.reporter.layer) {
            calibrator.replay(layer, targets, file, &mut self.reporter)?;
        }
        let bytes = self.infos[unit.clone()].iter().map(|info| info.bytes).sum();
        self.reporter.resumed(bytes)
    }

    /// The tensors of a unit, ready to be written.
    fn unit(
        &mut self,
        unit: &Range<usize>,
        targets: &[Target],
        calibrator: Option<&mut Calibrator<'_>>,
    ) -> Result<Vec<Ready<'a>>, CompressError> {
        self.reporter.rounded = 0;
        let mut solutions = match (calibrator, self.reporter.layer) {
            (None, _) => BTreeMap::new(),
            (Some(calibrator), Some(layer)) => {
                calibrator.layer(layer, targets, &mut self.reporter)?
            }
            (Some(calibrator), None) => {
                let mut solutions = BTreeMap::new();
                for &target in targets {
                    solutions.insert(target.0, calibrator.head(target, &mut self.reporter)?);
                }
                solutions
            }
        };
        let (checkpoint, options) = (self.checkpoint, self.options);
        let mut ready = Vec::new();
        for index in unit.clone() {
            let (content, solved) = match solutions.remove(&index) {
                Some(Solution {
                    content,
                    error,
                    note,
                }) => (content, Some((error, note))),
                None => {
                    let target = targets.iter().find(|&&(i, _)| i == index);
                    let pattern = target.map(|&(_, pattern)| pattern);
                    let tensor = &checkpoint.plan()[index];
                    let content = plain(checkpoint, options, tensor, pattern, &mut self.reporter)?;
                    let bytes = self.infos[index].bytes;
                    self.reporter.tensor(bytes, tensor, None, None)?;
                    (content, None)
                }
            };
            ready.push(Ready {
                index,
                content,
                solved,
            });
        }
        Ok(ready)
    }

    /// Writes a unit and records it.
    fn write(
        &mut self,
        number: usize,
        ready: &[Ready<'_>],
        output: &Output<'_>,
    ) -> Result<(), CompressError> {
        let mut counts = Counts {
            rounded: self.reporter.rounded,
            ..Counts::default()
        };
        let mut tensors = Vec::new();
        for ready in ready {
            let plan = &self.checkpoint.plan()[ready.index];
            let parts = ready.content.tensors(&plan.name, &plan.shape);
            count(&mut counts, plan, &self.infos[ready.index], ready, &parts);
            tensors.extend(parts);
        }
        output.write(number, &tensors)?;
        let crc32 = output.checksum(number);
        let unit = Unit { counts, crc32 };
        self.state.set(self.staging.root(), number, unit)
    }

    /// What `config.json` says about the packing.
    fn quantization(&self, counts: &Counts) -> Value {
        let options = self.options;
        let mut config = json!({
            "quant_method": "sparamx",
            "layout": "strip16",
            "version": 1,
            "weights": options.precision.name(),
            "method": options.method.name(),
        });
        match options.pattern {
            Pattern::Unstructured(sparsity) => config["target_sparsity"] = json!(sparsity),
            Pattern::NofM { keep, of } => config["pattern"] = json!(format!("{keep}:{of}")),
        }
        if options.method != Method::Wanda && config["pattern"].is_null() {
            config["scope"] = json!(options.scope.name());
        }
        if options.allocation == Allocation::Owl {
            config["allocation"] = json!(options.allocation.name());
        }
        config["sparsity"] = json!(counts.packed.sparsity());
        if options.precision != Precision::Bf16 {
            config["rounding"] = json!(options.rounding.name());
        }
        if let Precision::Int4 { group_elems } = options.precision {
            config["group_size"] = json!(group_elems);
        }
        if let Some(calibration) = self.calibration {
            config["reconstruct"] = json!(options.reconstruct);
            config["calibration"] = json!({
                "text": calibration.source,
                "windows": calibration.windows.len(),
                "tokens": calibration.windows.iter().map(Vec::len).sum::<usize>(),
            });
        }
        config
    }
}

/// A tensor as it is, or pruned by magnitude.
fn plain<'a>(
    checkpoint: &'a Checkpoint,
    options: &Options,
    tensor: &TensorPlan,
    pattern: Option<Pattern>,
    reporter: &mut Reporter<'_>,
) -> Result<Content<'a>, CompressError> {
    if tensor.role == Role::Vector {
        // Only to refuse values that are not finite.
        checkpoint.vector(&tensor.name)?;
        let view = checkpoint.view(&tensor.name)?;
        return Ok(Content::Raw(view.dtype, view.bytes));
    }
    let rows = checkpoint.raw_rows(&tensor.name)?;
    reporter.rounded += rows.inexact as u64;
    let Some(pattern) = pattern else {
        return Ok(Content::Bf16(rows.bits));
    };
    let (n, k) = (rows.n, rows.k);
    let mut bits = rows.bits.into_owned();
    checkpoint.release(&tensor.name);
    clear_negative_zeros(&mut bits);
    prune_pattern(&mut bits, k, pattern, options.scope);
    let compact = Compact::nearest(&bits, n, k, options.precision)
        .map_err(|error| error.in_tensor(&tensor.name))?;
    Ok(match compact {
        Some(compact) => Content::Compact(compact),
        None => Content::Bf16(Cow::Owned(bits)),
    })
}

fn count(
    counts: &mut Counts,
    plan: &TensorPlan,
    info: &TensorInfo,
    ready: &Ready<'_>,
    parts: &[TensorOut<'_>],
) {
    // A negative zero is a zero too.
    let non_zero = |bits: &[u16]| bits.iter().filter(|&&bits| bits & 0x7fff != 0).count();
    let (totals, nnz) = match &ready.content {
        Content::Compact(compact) if compact.is_sparse() => (&mut counts.packed, compact.nnz()),
        Content::Compact(compact) => (&mut counts.quantized, compact.nnz()),
        Content::Bf16(bits) => (&mut counts.dense, non_zero(bits)),
        // Zeros of norms and biases are not counted.
        Content::Raw(..) => (&mut counts.dense, plan.elements() as usize),
    };
    let zeros = plan.elements() - nnz as u64;
    totals.tensors += 1;
    totals.elements += plan.elements();
    totals.zeros += zeros;
    totals.bytes_before += info.bytes;
    totals.bytes_after += parts.iter().map(|part| part.bytes() as u64).sum::<u64>();
    if let Some((error, note)) = ready.solved {
        counts.solved.push(SolvedTensor {
            name: plan.name.clone(),
            sparsity: zeros as f64 / plan.elements() as f64,
            error,
            note: note.map(|note| note.to_string()),
        });
    }
}
