//! What came of it.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use sparamx_compress::{Options, Report, SolvedTensor, Totals};

use crate::args::Common;
use crate::calibration::Sample;
use crate::output::{self, Table};
use crate::units;

/// A run that is done.
pub struct Done<'a> {
    /// What the library says.
    pub report: &'a Report,
    /// The text that it was calibrated with.
    pub sample: Option<&'a Sample>,
    /// What it took.
    pub time: Duration,
}

/// What came of it, as `--json` prints it.
#[derive(Serialize)]
struct Summary<'a> {
    output: String,
    files: usize,
    weights: &'static str,
    packed_tensors: usize,
    quantized_tensors: usize,
    dense_tensors: usize,
    sparsity: f64,
    bytes_before: u64,
    bytes_after: u64,
    rounded_weights: u64,
    seconds: f64,
    input_gb_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer_sparsities: Option<&'a [f64]>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    solved: &'a [SolvedTensor],
}

/// Prints the result, and on standard error what the user may not have expected.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(options: &Options, done: &Done<'_>, common: Common) -> Result<()> {
    let Done { report, time, .. } = *done;
    if !common.quiet {
        warn(report);
    }
    if !common.json {
        return output::text_out(&text(done));
    }
    let all = report.counts.all();
    output::json(&Summary {
        output: report.dir.display().to_string(),
        files: report.files,
        weights: options.precision.name(),
        packed_tensors: report.counts.packed.tensors,
        quantized_tensors: report.counts.quantized.tensors,
        dense_tensors: report.counts.dense.tensors,
        sparsity: report.counts.packed.sparsity(),
        bytes_before: all.bytes_before,
        bytes_after: all.bytes_after,
        rounded_weights: report.counts.rounded,
        seconds: time.as_secs_f64(),
        input_gb_per_s: all.bytes_before as f64 / 1e9 / time.as_secs_f64(),
        layer_sparsities: report.layer_sparsities.as_deref(),
        solved: &report.counts.solved,
    })
}

fn warn(report: &Report) {
    let counts = &report.counts;
    if counts.packed.tensors + counts.quantized.tensors == 0 {
        output::complain(
            "warning: no tensor got smaller by packing, so all are dense: the model has few zeros; prune it with --sparsity 0.5",
        );
    }
    if counts.rounded > 0 {
        output::complain(&format!(
            "note: {} weights were rounded to bf16",
            units::count(counts.rounded)
        ));
    }
}

fn text(done: &Done<'_>) -> String {
    let Done {
        report,
        sample,
        time,
    } = *done;
    let counts = &report.counts;
    let all = counts.all();
    let mut rows = vec![("packed", &counts.packed)];
    if counts.quantized.tensors > 0 {
        rows.push(("quantized", &counts.quantized));
    }
    rows.extend([("dense", &counts.dense), ("all", &all)]);
    let mut text = totals(&rows);
    if let (Some(sample), false) = (sample, counts.solved.is_empty()) {
        let errors = counts.solved.iter().map(|tensor| tensor.error);
        let mean = errors.sum::<f64>() / counts.solved.len() as f64;
        text.push_str(&format!(
            "\ncalibrated with {sample}: error of the outputs {mean:.4} in the mean of {} tensors (--verbose lists them)\n",
            counts.solved.len()
        ));
    }
    let files = if report.files == 1 { "file" } else { "files" };
    text.push_str(&format!(
        "\n{}: {} {files} of weights, in {:.1} s, {}/s of input\n",
        report.dir.display(),
        report.files,
        time.as_secs_f64(),
        units::bytes((all.bytes_before as f64 / time.as_secs_f64()) as u64)
    ));
    text
}

/// A table of sums, with their names.
pub fn totals(rows: &[(&str, &Totals)]) -> String {
    let mut table = Table::new(&["", "tensors", "weights", "sparsity", "before", "after"]);
    for (name, totals) in rows {
        table.row(vec![
            (*name).to_owned(),
            totals.tensors.to_string(),
            units::count(totals.elements),
            units::percent(totals.sparsity()),
            units::bytes(totals.bytes_before),
            units::bytes(totals.bytes_after),
        ]);
    }
    table.aligned()
}
