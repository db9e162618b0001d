//! `sparamx compress`: prune and quantize a model and write it packed.

mod args;
mod report;

pub use args::CompressArgs;
pub use report::totals;

use std::time::Instant;

use anyhow::{Context, Result};
use sparamx_compress::{Calibration, CompressError, Options, Progress, Report, Step};
use sparamx_model::Checkpoint;

use crate::args::Common;
use crate::calibration::Sample;
use crate::{interrupt, loading, output, progress, runtime, source};

/// Compresses and reports.
///
/// # Errors
/// The model or the calibration text cannot be used, or the output cannot be written. Nothing is left of it then, or the error
/// says what is and how to go on.
pub fn run(args: &CompressArgs, common: Common) -> Result<()> {
    let options = args::options(args)?;
    sparamx_compress::check_output(&args.output, args.resume)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = loading::open(&source::resolve(&args.model, common)?, common)?;
    let start = Instant::now();
    // A packed model is refused before its tokenizer is read.
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
            interrupt::flow()
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
