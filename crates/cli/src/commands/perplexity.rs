//! `sparamx perplexity`: how well a model predicts a text.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use sparamx_engine::perplexity;

use crate::cli::{self, Common, Memory, Threads, UsageError};
use crate::{loading, output, progress, source, units};

/// The window if nobody says, where the model's context is larger.
const DEFAULT_WINDOW: usize = 2048;
/// The first token of a window is not scored, so one alone would score nothing.
const MIN_WINDOW: usize = 2;

/// Options of `perplexity`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx perplexity llama-8b-50 wiki.test.raw
  sparamx perplexity models/stories-5m-50 stories.txt --ctx 512 --json

The text is split into windows of --ctx tokens that do not overlap; the first token of each is not scored. Printed are the
exponential of the mean negative log likelihood, the number of tokens scored, and bits per byte of the text.")]
pub struct PerplexityArgs {
    /// Directory or hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text in UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tokens in a window [default: the model's context, at most 2048]
    #[arg(short, long, value_name = "N", value_parser = cli::whole::<usize>)]
    ctx: Option<usize>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// Measures and prints.
///
/// # Errors
/// The model or the text cannot be read, or the window does not fit the model.
pub fn run(args: &PerplexityArgs, common: Common) -> Result<()> {
    if args.ctx.is_some_and(|window| window < MIN_WINDOW) {
        bail!(UsageError(format!(
            "--ctx must be at least {MIN_WINDOW}: the first token of a window is not scored"
        )));
    }
    let bytes =
        fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{}: not UTF-8 text; convert it first", args.file.display()))?;
    let loaded = loading::load(
        &source::resolve(&args.model, common)?,
        args.threads,
        args.memory,
        common,
    )?;
    let context = loaded.model.config().context_length();
    let window = args.ctx.unwrap_or(context.min(DEFAULT_WINDOW));
    if window > context {
        bail!(UsageError(format!(
            "--ctx {window} is more than the context of the model, {context}"
        )));
    }
    let bar = progress::count_bar(common, 0, "tokens", "scoring");
    let score = perplexity(
        &loaded.runtime,
        &loaded.model,
        &loaded.tokenizer,
        &text,
        window,
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )
    .with_context(|| args.file.display().to_string())?;
    bar.finish_and_clear();
    if common.json {
        return output::json(&score);
    }
    output::text_out(&format!(
        "perplexity {:.4} over {} tokens in windows of {window}; {:.4} bits per byte\n",
        score.perplexity,
        units::count(score.tokens as u64),
        score.bits_per_byte
    ))
}
