//! `sparamx export`: write a model in a form that other programs read.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparamx_compress::{ExportFormat, ExportReport};

use crate::args::{self, Common, Threads};
use crate::commands::compress::totals;
use crate::{interrupt, loading, output, progress, runtime, source, units};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx export llama-8b-50 -o llama-8b-50-dense --format dense
  sparamx export llama-8b-50 -o llama-8b-50-bitmask --format sparse-bitmask
  sparamx export model.Q8_0.gguf -o model-dense --format dense

Matrices are written as bf16, whatever they were; norms and biases stay as they are. sparse-bitmask is the form of the Python
package compressed-tensors, versions 0.9 to 0.12. The output directory appears when it is complete.")]
pub struct ExportArgs {
    /// Directory, GGUF file or hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to write; it must not exist yet, or be empty
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Form of the weights
    #[arg(long, value_name = "FORMAT", value_parser = args::one_of(&FORMATS, ExportFormat::name))]
    format: ExportFormat,
    #[command(flatten)]
    threads: Threads,
}

/// Forms of weights.
const FORMATS: [(ExportFormat, &str); 2] = [
    (ExportFormat::Dense, "Plain bf16, zeros and all"),
    (
        ExportFormat::SparseBitmask,
        "A bitmask and the non-zero values, for linear layers that get smaller by it",
    ),
];

/// What came of it, as `--json` prints it.
#[derive(Serialize)]
struct Summary {
    output: String,
    files: usize,
    bitmask_tensors: usize,
    dense_tensors: usize,
    sparsity: f64,
    bytes_before: u64,
    bytes_after: u64,
    rounded_weights: u64,
}

/// Writes and reports.
///
/// # Errors
/// The model cannot be read, or the output cannot be written; nothing is left of it then.
pub fn run(args: &ExportArgs, common: Common) -> Result<()> {
    sparamx_compress::check_output(&args.output, false)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = loading::open(&source::resolve(&args.model, common)?, common)?;
    let format = args.format;
    let bar = progress::byte_bar(common, 0, "writing");
    let _watch = interrupt::watch();
    let report = sparamx_compress::export(&checkpoint, &args.output, format, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        interrupt::flow()
    })?;
    bar.finish_and_clear();
    if !common.quiet && format == ExportFormat::SparseBitmask && report.bitmask.tensors == 0 {
        output::complain(
            "warning: no tensor gets smaller by a bitmask, so all are dense: the model has few zeros",
        );
    }
    if common.json {
        return output::json(&Summary::new(&report));
    }
    output::text_out(&text(&report))
}

fn text(report: &ExportReport) -> String {
    let table = totals(&[
        ("bitmask", &report.bitmask),
        ("dense", &report.dense),
        ("all", &report.all()),
    ]);
    let files = if report.files == 1 { "file" } else { "files" };
    let rounded = match report.rounded {
        0 => String::new(),
        rounded => format!("; {} weights were rounded to bf16", units::count(rounded)),
    };
    format!(
        "{table}\n{}: {} {files} of weights{rounded}\n",
        report.dir.display(),
        report.files
    )
}

impl Summary {
    fn new(report: &ExportReport) -> Self {
        let all = report.all();
        Summary {
            output: report.dir.display().to_string(),
            files: report.files,
            bitmask_tensors: report.bitmask.tensors,
            dense_tensors: report.dense.tensors,
            sparsity: all.sparsity(),
            bytes_before: all.bytes_before,
            bytes_after: all.bytes_after,
            rounded_weights: report.rounded,
        }
    }
}
