//! `sparamx compress`: prune and quantize a model and write it packed.

mod report;
mod request;

pub use report::totals;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use sparamx_compress::layer::Pattern;
use sparamx_compress::{Calibration, CompressError, Options, Progress, Report, Step};
use sparamx_format::GROUP_ELEMS;
use sparamx_model::Checkpoint;

use crate::args::{self, Common, Threads};
use crate::calibration::{CalibrationArgs, Sample};
use crate::{interrupt, loading, output, progress, runtime, source};

/// Options of `compress`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx compress models/stories-5m -o stories-5m-50 --sparsity 0.5 --method sparsegpt
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50 --method wanda --sparsity 0.5 --calibration c4.jsonl
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50-int8 --method sparsegpt --sparsity 0.5 --weights int8
  sparamx compress meta-llama/Llama-3.1-8B -o llama-24 --method sparsegpt --pattern 2:4
  sparamx compress meta-llama/Llama-3.1-8B -o llama-int4 --weights int4 --group 64 --rounding gptq
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50-fast --sparsity 0.5
  sparamx compress a-pruned-model -o a-pruned-model-packed

Weights of the decoder's linear layers become zero, and with --weights int8 or int4 the others are rounded to 8 or 4 bits. Embeddings,
norms and the output head stay as they are. A tensor is packed, with a bitmap of what is not zero, where that makes it smaller.

Magnitude is quick and needs nothing but the model. wanda and sparsegpt run a text through it, layer by layer, and keep more quality.
NAME is one or more consecutive parts of a module's name, * for any characters: layers.0, mlp.down_proj, layers.1*.self_attn.
--sparsity-file is a JSON object such as {\"down_proj\": 0.4, \"layers.0\": 0.3, \"layers.5.mlp\": \"2:4\"}; the last name that fits counts.

The output directory appears when it is complete. A run that is stopped leaves what it has in .DIR.partial beside it: --resume goes
on from there, to the same bytes; without it, remove the directory to begin anew.")]
pub struct CompressArgs {
    /// Directory, GGUF file or hub id of a model that is not packed yet
    #[arg(value_name = "MODEL")]
    model: String,
    /// Directory to write; it must not exist yet, or be empty
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// How the weights to prune are chosen
    #[arg(long, value_name = "METHOD", default_value = "magnitude")]
    method: Method,
    /// Fraction of zeros in every pruned tensor; 0 packs the zeros that are there
    #[arg(long, value_name = "FRACTION", default_value = "0", value_parser = args::sparsity)]
    sparsity: f64,
    /// Keep N of every M consecutive weights of a row instead: 2:4, 4:8, 8:16
    #[arg(long, value_name = "N:M", value_parser = request::pattern, conflicts_with_all = ["sparsity", "scope"])]
    pattern: Option<Pattern>,
    /// Other sparsities for some tensors: a JSON object of names and fractions or N:M
    #[arg(long, value_name = "FILE")]
    sparsity_file: Option<PathBuf>,
    /// How the sparsity is shared out among layers
    #[arg(long, value_name = "HOW", default_value = "uniform")]
    allocate: Allocate,
    /// Tensors to leave as they are, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    skip: Vec<String>,
    /// Among which weights of a tensor those to prune are looked for, for magnitude and sparsegpt [default: tensor]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<ScopeArg>,
    /// Refit the kept weights to the outputs of the dense model [default: auto]
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    reconstruct: Reconstruct,
    /// Numbers of the pruned tensors
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    weights: Weights,
    /// Columns that share a scale, for int4: 32, 64 or 128 [default: 128]
    #[arg(long, value_name = "COLUMNS", value_parser = group)]
    group: Option<usize>,
    /// How weights become int8 or int4 [default: gptq where there is calibration, else nearest]
    #[arg(long, value_name = "HOW")]
    rounding: Option<RoundingArg>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Prune and quantize the output head too
    #[arg(long)]
    include_lm_head: bool,
    /// Go on from where a run with the same options was stopped
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    threads: Threads,
}

/// Ways to choose the weights to prune.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// The smallest go
    Magnitude,
    /// The smallest by weight times the norm of its input go, within each output row
    Wanda,
    /// Those go that the others can make up for best, and the others do
    Sparsegpt,
}

/// Ways to share out a sparsity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Allocate {
    /// The same in each layer
    Uniform,
    /// Less in layers with many outliers, the same in the mean
    Owl,
}

/// Whether to reconstruct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reconstruct {
    /// Always
    On,
    /// Never
    Off,
    /// For wanda and sparsegpt
    Auto,
}

/// Formats of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// bf16, as the model has them
    Bf16,
    /// 8 bits, and a scale for each output row
    Int8,
    /// 4 bits, and a scale for each group of columns
    Int4,
}

/// Ways to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoundingArg {
    /// Each weight to the nearest
    Nearest,
    /// One column after the other, those to come making up for the error
    Gptq,
}

/// Sets of weights that are pruned to the same sparsity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// All weights of a tensor
    Tensor,
    /// The weights of each output row
    Row,
}

/// Reads a number of columns that the format has.
fn group(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(columns) if GROUP_ELEMS.contains(&columns) => Ok(columns),
        _ => Err("a group has 32, 64 or 128 columns".to_owned()),
    }
}

/// Compresses and reports.
///
/// # Errors
/// The model or the calibration text cannot be used, or the output cannot be written. Nothing is left of it then, or the error
/// says what is and how to go on.
pub fn run(args: &CompressArgs, common: Common) -> Result<()> {
    let options = request::options(args)?;
    sparamx_compress::check_output(&args.output, args.resume)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = loading::open(&source::resolve(&args.model, common)?, common)?;
    let start = Instant::now();
    // A packed model is refused before anybody looks for a tokenizer.
    let needed = options.needs_calibration().is_some() && checkpoint.config().packed.is_none();
    let sample = needed
        .then(|| sample(args, &options, &checkpoint, common))
        .transpose()?;
    let report = match &sample {
        Some(sample) => {
            let runtime = runtime::start(args.threads.count(), common)?;
            let calibration = Calibration {
                runtime: &runtime,
                windows: &sample.windows,
                source: sample.source.clone(),
            };
            compress(args, &options, &checkpoint, Some(&calibration), common)?
        }
        None => compress(args, &options, &checkpoint, None, common)?,
    };
    let done = report::Done {
        report: &report,
        sample: sample.as_ref(),
        time: start.elapsed(),
    };
    report::print(&options, &done, common)
}

/// The text to calibrate with, for this model.
fn sample(
    args: &CompressArgs,
    options: &Options,
    checkpoint: &Checkpoint,
    common: Common,
) -> Result<Sample> {
    let config = checkpoint.config();
    let tokenizer = loading::tokenizer(checkpoint, common)?;
    let streams = if options.reconstruct { 2 } else { 1 };
    args.calibration.sample(&tokenizer, config, streams, common)
}

fn compress(
    args: &CompressArgs,
    options: &Options,
    checkpoint: &Checkpoint,
    calibration: Option<&Calibration<'_>>,
    common: Common,
) -> Result<Report> {
    let bar = progress::layer_bar(common);
    let mut noted = false;
    let _watch = interrupt::watch();
    let done = sparamx_compress::compress(
        checkpoint,
        &args.output,
        options,
        calibration,
        &mut |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
            bar.set_message(message(&progress));
            bar.suspend(|| tell(&progress, &mut noted, common));
            if interrupt::asked() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    bar.finish_and_clear();
    match done {
        Err(error @ CompressError::UnknownName { .. }) => {
            Err(error).context(match &args.sparsity_file {
                Some(file) if args.skip.is_empty() => file.display().to_string(),
                Some(file) => format!("--skip or {}", file.display()),
                None => "--skip".to_owned(),
            })
        }
        done => Ok(done?),
    }
}

/// What the bar says: layer, module, error.
fn message(progress: &Progress<'_>) -> String {
    let layer = match progress.layer {
        Some(layer) => format!("layer {}/{} ", layer + 1, progress.layers),
        None => String::new(),
    };
    match progress.step {
        Step::Calibrating { window, windows } => format!("{layer}window {window}/{windows}"),
        Step::Tensor { name, error, .. } => {
            let name = name.strip_suffix(".weight").unwrap_or(name);
            let module = name.rsplit('.').next().unwrap_or(name);
            let error = error.map(|error| format!(" error {error:.4}"));
            format!("{layer}{module}{}", error.unwrap_or_default())
        }
        Step::Resumed => format!("{layer}done before"),
        Step::Damaged { part, .. } => format!("part {part} again"),
    }
}

/// Errors of tensors for who asks for them; for all but who asks for silence, the first note of a tensor and parts made again.
fn tell(progress: &Progress<'_>, noted: &mut bool, common: Common) {
    let (name, error, note) = match progress.step {
        Step::Tensor { name, error, note } => (name, error, note),
        Step::Damaged { part, parts } if !common.quiet => {
            return output::complain(&format!(
                "note: part {part} of {parts} is not as it was written and is made again"
            ));
        }
        _ => return,
    };
    if let (Some(error), true) = (error, common.verbose) {
        output::complain(&format!("{name}: error {error:.6}"));
    }
    if let Some(note) = note.filter(|_| !*noted && !common.quiet) {
        *noted = true;
        output::complain(&format!("note: {name}: {note} (said once)"));
    }
}
