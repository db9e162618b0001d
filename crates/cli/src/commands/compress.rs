//! `sparamx compress`: prune and quantize a model and write it packed.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use sparamx_compress::{Options, Report, Scope, Totals};
use sparamx_format::GROUP_ELEMS;
use sparamx_model::{Checkpoint, Precision};

use crate::cli::{self, Common, Threads, UsageError};
use crate::output::Table;
use crate::{interrupt, output, progress, runtime, source, units};

/// Options of `compress`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx compress models/stories-5m -o stories-5m-50 --sparsity 0.5
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-50 --sparsity 0.5 --scope row
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-50-int8 --sparsity 0.5 --weights int8
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-int4 --weights int4 --group 64
  sparamx compress a-pruned-model -o a-pruned-model-packed

The smallest weights of the decoder's linear layers become zero, and with --weights int8 or int4 the others are rounded to 8 or
4 bits. Embeddings, norms and the output head stay as they are. A tensor is packed, with a bitmap of what is not zero, where that
makes it smaller. The output directory appears when it is complete.")]
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
    /// Numbers of the pruned tensors
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    weights: Weights,
    /// Columns that share a scale, for int4: 32, 64 or 128 [default: 128]
    #[arg(long, value_name = "COLUMNS", value_parser = group)]
    group: Option<usize>,
    /// Prune and quantize the output head too
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
    /// bf16, as the model has them
    Bf16,
    /// 8 bits, and a scale for each output row
    Int8,
    /// 4 bits, and a scale for each group of columns
    Int4,
}

/// Columns of a group if nobody says.
const DEFAULT_GROUP: usize = 128;

/// Reads a number of columns that the format has.
fn group(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(columns) if GROUP_ELEMS.contains(&columns) => Ok(columns),
        _ => Err("a group has 32, 64 or 128 columns".to_owned()),
    }
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
    weights: &'static str,
    packed_tensors: usize,
    quantized_tensors: usize,
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
    // There is one method so far, which the writer knows.
    let Method::Magnitude = args.method;
    let precision = precision(args)?;
    sparamx_compress::check_output(&args.output)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = Checkpoint::open(&source::resolve(&args.model, common)?)?;
    interrupt::install()?;
    let report = pack(args, precision, &checkpoint, common)?;
    warn(args, &checkpoint, &report, common);
    if common.json {
        output::json(&Summary::new(&report, precision))
    } else {
        output::text_out(&text(&report))
    }
}

/// The numbers asked for.
fn precision(args: &CompressArgs) -> Result<Precision> {
    Ok(match (args.weights, args.group) {
        (Weights::Bf16, None) => Precision::Bf16,
        (Weights::Int8, None) => Precision::Int8,
        (Weights::Int4, group) => Precision::Int4 {
            group_elems: group.unwrap_or(DEFAULT_GROUP),
        },
        (_, Some(_)) => bail!(UsageError(
            "--group is for --weights int4: int8 has a scale for each output row, bf16 has none"
                .to_owned()
        )),
    })
}

fn pack(
    args: &CompressArgs,
    precision: Precision,
    checkpoint: &Checkpoint,
    common: Common,
) -> Result<Report> {
    let options = Options {
        sparsity: args.sparsity,
        scope: match args.scope {
            ScopeArg::Tensor => Scope::Tensor,
            ScopeArg::Row => Scope::Row,
        },
        precision,
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
    if report.packed.tensors + report.quantized.tensors == 0 {
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
    if report.quantized.tensors > 0 {
        row("quantized", &report.quantized);
    }
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
    fn new(report: &Report, precision: Precision) -> Self {
        let all = report.all();
        Summary {
            output: report.dir.display().to_string(),
            files: report.files,
            weights: precision.name(),
            packed_tensors: report.packed.tensors,
            quantized_tensors: report.quantized.tensors,
            dense_tensors: report.dense.tensors,
            sparsity: report.packed.sparsity(),
            bytes_before: all.bytes_before,
            bytes_after: all.bytes_after,
            rounded_weights: report.rounded,
        }
    }
}
