//! `sparamx perplexity`: how well a model predicts texts.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sparamx_engine::Loaded;
use sparamx_evaluate::{Perplexity, Prediction, Scoring, perplexity};
use sparamx_model::Config;

use crate::args::{self, Common, Memory, Threads, UsageError};
use crate::kv::KvArgs;
use crate::texts::Text;
use crate::{loading, output, progress, source, units};

/// The default window, where the model's context is larger.
const DEFAULT_WINDOW: usize = 2048;
/// The first token of a window is not scored, so one alone would score nothing.
const MIN_WINDOW: usize = 2;

/// Options of `perplexity`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx perplexity llama-8b-50 wiki.test.raw
  sparamx perplexity llama-8b-50 wiki.test.raw c4.txt stories.txt
  sparamx perplexity models/stories-5m-50 stories.txt --ctx 512 --json

A perplexity of P says that the model is as unsure of each token as of a draw among P. Lower is better.
Compare a compressed model with the dense one it was made of, on the same text and with the same --ctx: what the figure rises
by is what compression costs. Models with different tokenizers are compared by bits per byte of text.

The text is cut into windows of --ctx tokens, each read by itself. Its first token is not scored, as nothing comes before it. Of
several files each gets a line, and all together one, in which every token weighs the same. A .json or .jsonl file is read as the
documents in it, see --calibration of `sparamx compress`; text may be packed as .gz.

--json prints {perplexity, tokens, bits_per_byte}, and of several files {files: [{file, perplexity, ..}, ..], all: {perplexity, ..}}.")]
pub struct PerplexityArgs {
    /// Directory, GGUF file or hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Texts in UTF-8
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Tokens in a window [default: the model's context, at most 2048]
    #[arg(short, long, value_name = "N", value_parser = args::whole::<usize>)]
    ctx: Option<usize>,
    /// Tokens at the start of each window that are not scored, but read; the first never is
    #[arg(long, value_name = "N", default_value = "0", value_parser = args::whole::<usize>)]
    unscored: usize,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// What `--json` prints of several files.
#[derive(Serialize)]
struct Several {
    files: Vec<OfFile>,
    all: Perplexity,
}

#[derive(Serialize)]
struct OfFile {
    file: String,
    #[serde(flatten)]
    figures: Perplexity,
}

/// Measures and prints.
///
/// # Errors
/// The model or a text cannot be read, or the window does not fit the model.
pub fn run(args: &PerplexityArgs, common: Common) -> Result<()> {
    check_window(args.ctx)?;
    args.kv.warn_of_useless(common);
    let read = |path: &PathBuf| {
        let text = Text::read(path, common)?.joined();
        Ok((path.display().to_string(), text))
    };
    let texts: Vec<(String, String)> = args.files.iter().map(read).collect::<Result<_>>()?;
    let loaded = loading::load(
        &source::resolve(&args.model, common)?,
        args.threads,
        args.memory,
        common,
    )?;
    let window = window(args.ctx, loaded.model.config())?;
    let scoring = Scoring {
        ctx: window,
        unscored: args.unscored,
        kv: args.kv.options(),
    };
    let mut all = Prediction::default();
    let mut files = Vec::with_capacity(texts.len());
    for (index, (file, text)) in texts.iter().enumerate() {
        let title = match texts.len() {
            1 => "scoring".to_owned(),
            count => format!("scoring file {} of {count}", index + 1),
        };
        let measured = measure(&loaded, text, &scoring, title, common).context(file.clone())?;
        all += measured;
        let figures = measured.perplexity();
        if !common.json {
            let name = match texts.len() {
                1 => String::new(),
                _ => format!("{file}: "),
            };
            output::text_out(&format!("{name}{}", line(figures, window)))?;
        }
        files.push(OfFile {
            file: file.clone(),
            figures,
        });
    }
    let all = all.perplexity();
    match (common.json, files.len()) {
        (true, 1) => output::json(&all),
        (true, _) => output::json(&Several { files, all }),
        (false, 1) => Ok(()),
        (false, _) => output::text_out(&format!("all: {}", line(all, window))),
    }
}

fn line(figures: Perplexity, window: usize) -> String {
    format!(
        "perplexity {:.4} over {} tokens in windows of {window}; {:.4} bits per byte\n",
        figures.perplexity,
        units::count(figures.tokens as u64),
        figures.bits_per_byte
    )
}

/// Refuses a window that would score nothing.
///
/// # Errors
/// It has less than two tokens.
pub fn check_window(ctx: Option<usize>) -> Result<()> {
    if ctx.is_some_and(|window| window < MIN_WINDOW) {
        bail!(UsageError(format!(
            "--ctx must be at least {MIN_WINDOW}: the first token of a window is not scored"
        )));
    }
    Ok(())
}

/// The window asked for, or the one that suits the model.
///
/// # Errors
/// It is larger than the model's context.
pub fn window(ctx: Option<usize>, config: &Config) -> Result<usize> {
    let context = config.context_length();
    let window = ctx.unwrap_or(context.min(DEFAULT_WINDOW));
    if window > context {
        bail!(UsageError(format!(
            "--ctx {window} is more than the context of the model, {context}"
        )));
    }
    Ok(window)
}

/// Measures one text, with a bar.
///
/// # Errors
/// The text is too short, or the model fails on it.
pub fn measure(
    loaded: &Loaded,
    text: &str,
    scoring: &Scoring,
    title: String,
    common: Common,
) -> Result<Prediction> {
    let bar = progress::count_bar(common, 0, "tokens", title);
    let measured = perplexity(loaded, text, scoring, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(measured)
}
