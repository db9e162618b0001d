//! `sparamx compress`: prune a model and write it packed.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use sparamx_compress::{Options, Report, Scope, Totals};
use sparamx_model::Checkpoint;

use crate::cli::{self, Common, Threads};
use crate::output::Table;
use crate::{interrupt, output, progress, runtime, source, units};

/// Options of `compress`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx compress models/stories-5m -o stories-5m-50 --sparsity 0.5
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-50 --sparsity 0.5 --scope row
  sparamx compress a-pruned-model -o a-pruned-model-packed

The smallest weights of the decoder's linear layers become zero. Embeddings, norms and the output head stay as they are. A
tensor that would not get smaller stays dense. The output directory appears when it is complete.")]
pub struct CompressArgs {
    /// Directory or hub id of a dense model
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to write; it must not exist yet, or be empty
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Fraction of zeros in every pruned tensor; 0 packs the zeros that are there
    #[arg(long, value_name = "FRACTION", default_value = "0", value_parser = cli::sparsity)]
    sparsity: f64,
    /// How the weights to prune are chosen
    #[arg(long, value_name = "METHOD", default_value = "magnitude")]
    method: Method,
    /// Among which weights the smallest are looked for
    #[arg(long, value_name = "SCOPE", default_value = "tensor")]
    scope: ScopeArg,
    /// Format of the weights
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    weights: Weights,
    /// Prune the output head too
    #[arg(long)]
    include_lm_head: bool,
    #[command(flatten)]
    threads: Threads,
}

/// Ways to choose the weights to prune.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    /// The smallest go
    Magnitude,
}

/// Formats of weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    /// Bitmap and bf16 values
    Bf16,
}

/// Sets of weights that are pruned to the same sparsity.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScopeArg {
    /// All weights of a tensor
    Tensor,
    /// The weights of each output row
    Row,
}

/// What came of it, as `--json` prints it.
#[derive(Serialize)]
struct Summary {
    output: String,
    files: usize,
    packed_tensors: usize,
    dense_tensors: usize,
    sparsity: f64,
    bytes_before: u64,
    bytes_after: u64,
    rounded_weights: u64,
}

/// Packs and reports.
///
/// # Errors
/// The model cannot be read or is packed already, or the output cannot be written; nothing is left of it then.
pub fn run(args: &CompressArgs, common: Common) -> Result<()> {
    // Each option has one value so far, which the writer knows.
    let (Method::Magnitude, Weights::Bf16) = (args.method, args.weights);
    sparamx_compress::check_output(&args.output)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = Checkpoint::open(&source::resolve(&args.model, common)?)?;
    interrupt::install()?;
    let report = pack(args, &checkpoint, common)?;
    warn(args, &checkpoint, &report, common);
    if common.json {
        output::json(&Summary::new(&report))
    } else {
        output::text_out(&text(&report))
    }
}

fn pack(args: &CompressArgs, checkpoint: &Checkpoint, common: Common) -> Result<Report> {
    let options = Options {
        sparsity: args.sparsity,
        scope: match args.scope {
            ScopeArg::Tensor => Scope::Tensor,
            ScopeArg::Row => Scope::Row,
        },
        include_lm_head: args.include_lm_head,
        ..Options::default()
    };
    let bar = progress::byte_bar(common, 0, "packing");
    let report = sparamx_compress::compress(checkpoint, &args.output, &options, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        if interrupt::asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    bar.finish_and_clear();
    Ok(report)
}

/// Says what the user may not have expected.
fn warn(args: &CompressArgs, checkpoint: &Checkpoint, report: &Report, common: Common) {
    if common.quiet {
        return;
    }
    if report.packed.tensors == 0 {
        output::complain(
            "warning: no tensor got smaller by packing, so all are dense: the model has few zeros; prune it with --sparsity 0.5",
        );
    }
    if args.include_lm_head && checkpoint.config().tie_word_embeddings {
        output::complain(
            "warning: the output head of this model is its embedding, which stays dense",
        );
    }
    if report.rounded > 0 {
        output::complain(&format!(
            "note: {} weights were rounded to bf16",
            units::count(report.rounded)
        ));
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["", "tensors", "weights", "sparsity", "before", "after"]);
    let mut row = |name: &str, totals: &Totals| {
        table.row(vec![
            name.to_owned(),
            totals.tensors.to_string(),
            units::count(totals.elements),
            units::percent(totals.sparsity()),
            units::bytes(totals.bytes_before),
            units::bytes(totals.bytes_after),
        ]);
    };
    row("packed", &report.packed);
    row("dense", &report.dense);
    row("all", &report.all());
    let files = if report.files == 1 { "file" } else { "files" };
    format!(
        "{}\n{}: {} {files} of weights\n",
        table.aligned(),
        report.dir.display(),
        report.files
    )
}

impl Summary {
    fn new(report: &Report) -> Self {
        let all = report.all();
        Summary {
            output: report.dir.display().to_string(),
            files: report.files,
            packed_tensors: report.packed.tensors,
            dense_tensors: report.dense.tensors,
            sparsity: report.packed.sparsity(),
            bytes_before: all.bytes_before,
            bytes_after: all.bytes_after,
            rounded_weights: report.rounded,
        }
    }
}
