//! `sparamx kv-report`: how much quality a pruned and rounded KV cache leaves at how many bytes.

mod results;
mod show;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use sparamx_engine::{KvPrecision, KvRule, Loaded};
use sparamx_evaluate::{Prediction, Scoring};

use self::results::{Inputs, Results, Row, Setting};
use super::perplexity;
use super::report::results::{File, write};
use crate::args::{self, Common, Memory, Threads, UsageError};
use crate::kv::{self, KvKeptArgs, KvSparsity};
use crate::texts::Text;
use crate::{interrupt, loading, output, source};

/// Files of the report, beside the results.
const TABLE: &str = "results.md";
const PLOT: &str = "kv-quality.svg";

/// Options of `kv-report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx kv-report models/stories-5m --text stories.txt -o stories-kv
  sparamx kv-report llama-8b-50 --text wiki.test.raw --ctx 4096 --kv-sparsities 0.3,0.5 --kv-rules magnitude -o kv

Perplexity of the second half of each window of --ctx tokens, with the first half as its prompt. Whatever has left the window of
recent tokens is pruned and rounded as it would be when text is generated, so that almost all that is scored is attended through
packed pages. Each sparsity is tried for keys alone, values alone and both.

DIR gets results.json after every step, and at the end results.md with one table and kv-quality.svg with one plot. A report that
was stopped is continued by the same command; more sparsities, types or rules are added to it.

--json prints what is in results.json.")]
pub struct KvReportArgs {
    /// Directory, GGUF file or hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Texts in UTF-8
    #[arg(long = "text", value_name = "FILE", required = true, num_args = 1..)]
    texts: Vec<PathBuf>,
    /// Directory of the report
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Fractions of zeros
    #[arg(long = "kv-sparsities", value_name = "LIST", value_delimiter = ',', value_parser = args::sparsity)]
    #[arg(default_value = "0.1,0.2,0.3,0.4,0.5,0.6,0.7")]
    sparsities: Vec<f64>,
    /// Dtypes of keys and values
    #[arg(
        long = "kv-types",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16,int8",
        value_parser = kv::precision
    )]
    types: Vec<KvPrecision>,
    /// How elements are chosen, see `sparamx run --help`
    #[arg(
        long = "kv-rules",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "magnitude,token,query",
        value_parser = kv::rule
    )]
    rules: Vec<KvRule>,
    #[command(flatten)]
    kept: KvKeptArgs,
    /// Tokens in a window of a text, at least 4 [default: the model's context, at most 2048]
    #[arg(short, long, value_name = "N", value_parser = args::whole::<usize>)]
    ctx: Option<usize>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// Measures what is not measured yet, and writes the report.
///
/// # Errors
/// The model or a text cannot be read, the window does not fit the model, or the report cannot be written. What was measured
/// before is kept.
pub fn run(args: &KvReportArgs, common: Common) -> Result<()> {
    if args.ctx.is_some_and(|ctx| ctx < 4) {
        bail!(UsageError(
            "--ctx must be at least 4: half of a window is scored".to_owned()
        ));
    }
    let read = |path: &PathBuf| Ok(Text::read(path, common)?.joined());
    let texts = args.texts.iter().map(read);
    let texts: Vec<String> = texts.collect::<Result<_>>()?;
    let directory = source::resolve(&args.model, common)?;
    let loaded = loading::load(&directory, args.threads, args.memory, common)?;
    let ctx = perplexity::window(args.ctx, loaded.model.config())?;
    let inputs = Inputs {
        model: source::name(&args.model, &directory),
        texts: args
            .texts
            .iter()
            .map(|path| File::of(path))
            .collect::<Result<_>>()?,
        ctx,
        window: args.kept.window(),
        sinks: args.kept.sinks(),
    };
    let mut results = Results::open(&args.output, inputs)?;
    let settings = settings(&args.sparsities, &args.types, &args.rules);
    let count = settings.len();
    for (index, setting) in settings.into_iter().enumerate() {
        if results.row(&setting).is_some() {
            continue;
        }
        let row = measure(args, &loaded, &texts, ctx, setting, common)
            .with_context(|| setting.to_string())?;
        if !common.quiet {
            output::complain(&format!(
                "{}/{count} {setting}: {:.1} bits an element, perplexity {:.4}",
                index + 1,
                row.bits,
                row.perplexity
            ));
        }
        results.rows.push(row);
        results.save(&args.output)?;
        interrupt::check()?;
    }
    show(args, &results, common)
}

/// All combinations, each once: dense ones first, of which bf16 is the measure of all others.
fn settings(sparsities: &[f64], types: &[KvPrecision], rules: &[KvRule]) -> Vec<Setting> {
    let mut settings = vec![Setting::dense(KvPrecision::Bf16)];
    settings.extend(types.iter().map(|&precision| Setting::dense(precision)));
    for &rule in rules {
        for &precision in types {
            for &s in sparsities.iter().filter(|&&s| s > 0.0) {
                settings.extend([(s, 0.0), (0.0, s), (s, s)].map(|(keys, values)| Setting {
                    precision,
                    rule: Some(rule),
                    sparsity: KvSparsity { keys, values },
                }));
            }
        }
    }
    let mut once: Vec<Setting> = Vec::new();
    for setting in settings {
        if !once.contains(&setting) {
            once.push(setting);
        }
    }
    once
}

fn measure(
    args: &KvReportArgs,
    loaded: &Loaded,
    texts: &[String],
    ctx: usize,
    setting: Setting,
    common: Common,
) -> Result<Row> {
    let rule = setting.rule.unwrap_or(KvRule::Magnitude);
    let scoring = Scoring {
        ctx,
        unscored: ctx / 2,
        kv: args.kept.options(setting.sparsity, setting.precision, rule),
    };
    let mut all = Prediction::default();
    for (path, text) in args.texts.iter().zip(texts) {
        all += perplexity::measure(loaded, text, &scoring, "scoring".to_owned(), common)
            .with_context(|| path.display().to_string())?;
    }
    let tokens = all.perplexity();
    Ok(Row {
        setting,
        bits: scoring.kv.bits_per_element(loaded.model.config().head_dim),
        perplexity: tokens.perplexity,
        tokens: tokens.tokens,
    })
}

/// Table, plot, and what is printed.
fn show(args: &KvReportArgs, results: &Results, common: Common) -> Result<()> {
    let table = write(&args.output, TABLE, &show::markdown(results))?;
    let plot = show::svg(results)
        .map(|svg| write(&args.output, PLOT, &svg))
        .transpose()?;
    if common.json {
        return output::json(results);
    }
    let mut text = String::new();
    for line in show::summary(results) {
        text.push_str(&format!("{line}\n"));
    }
    for path in [Some(table), plot].into_iter().flatten() {
        text.push_str(&format!("{}\n", path.display()));
    }
    output::text_out(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_once_and_dense_bf16_first() {
        let types = [KvPrecision::Int8, KvPrecision::Bf16];
        let names: Vec<String> = settings(&[0.0, 0.5, 0.5], &types, &[KvRule::Token])
            .iter()
            .map(Setting::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "bf16, dense",
                "int8, dense",
                "int8, keys 50.0 %, values 0.0 %, token",
                "int8, keys 0.0 %, values 50.0 %, token",
                "int8, keys 50.0 %, values 50.0 %, token",
                "bf16, keys 50.0 %, values 0.0 %, token",
                "bf16, keys 0.0 %, values 50.0 %, token",
                "bf16, keys 50.0 %, values 50.0 %, token",
            ]
        );
    }
}
