//! `sparamx report`: how much quality is left at how many bytes.

mod plot;
pub mod results;
mod setting;
mod table;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use sparamx_compress::layer::LayerSpec;
use sparamx_compress::{Calibration, Method, Pattern, Report, Scope, layer_errors};
use sparamx_engine::{Loaded, Tokenizer};
use sparamx_evaluate::{Prediction, Questions, Scoring};
use sparamx_format::{ElementKind, GROUP_ELEMS};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Model};

use self::results::{Accuracy, File, Inputs, Layers, Results, Row, Tensor};
use self::setting::{Grid, Setting, Way};
use super::{eval, perplexity};
use crate::args::{self, Common, Memory, Threads, UsageError};
use crate::calibration::{CalibrationArgs, Sample};
use crate::texts::Text;
use crate::{interrupt, loading, output, progress, runtime, source, units};

/// Hidden states kept for each token, at most: of the pruned model and of the dense one.
const STREAMS: u64 = 2;
/// Files of the report.
const TABLE: &str = "results.md";
const PLOT: &str = "quality.svg";

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx report models/stories-5m --text stories.txt -o stories-quality
  sparamx report llama-8b --text wiki.test.raw --eval arc_easy_validation.jsonl --limit 500 --calibration c4.jsonl -o quality
  sparamx report llama-8b --text wiki.test.raw --sparsities 0.5 --methods wanda,sparsegpt+refit --weights bf16,int8 -o quality

The model is compressed in every combination of --methods, --sparsities and --weights, one after the other, and each is measured:
bytes of weights, perplexity over all texts as `sparamx perplexity` does, and questions as `sparamx eval` does. Dense int8 and int4
stand beside them. With a calibrated method (all but magnitude) the calibration text goes through the model: dense int8 and int4
are rounded by it, too, and errors of single layers are compared by method.

DIR gets results.json after every step, and at the end results.md with one table and quality.svg with one plot. A report that was
stopped is continued by the same command; more sparsities, methods or weights are added to it.

--json prints what is in results.json.")]
pub struct ReportArgs {
    /// Directory, GGUF file or hub id of a dense model
    #[arg(value_name = "MODEL")]
    model: String,
    /// Texts in UTF-8 to measure perplexity on
    #[arg(long = "text", value_name = "FILE", required = true, num_args = 1..)]
    texts: Vec<PathBuf>,
    /// Multiple-choice questions, as `sparamx eval` takes them
    #[arg(long = "eval", value_name = "FILE", num_args = 1..)]
    questions: Vec<PathBuf>,
    /// Take the first N questions of each file
    #[arg(long, value_name = "N", value_parser = args::whole::<usize>)]
    limit: Option<usize>,
    /// Directory of the report
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Ways to prune, as in `sparamx compress`; +refit also refits the weights that are kept
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = Way::ALL)]
    methods: Vec<Way>,
    /// Fractions of zeros
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,0.3,0.4,0.5,0.6,0.7", value_parser = args::sparsity)]
    sparsities: Vec<f64>,
    /// Dtypes of the weights
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "bf16,int8,int4"
    )]
    weights: Vec<ElementKind>,
    /// Columns that share a scale, for int4: 32, 64 or 128
    #[arg(long, value_name = "COLUMNS", default_value = "128", value_parser = args::whole::<usize>)]
    group: usize,
    /// Tokens in a window of a text [default: the model's context, at most 2048]
    #[arg(short, long, value_name = "N", value_parser = args::whole::<usize>)]
    ctx: Option<usize>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// Measures what is not measured yet, and writes the report.
///
/// # Errors
/// Anything that keeps the model from being compressed or measured, or the report from being written. What was measured before
/// is kept.
pub fn run(args: &ReportArgs, common: Common) -> Result<()> {
    check(args)?;
    let read = |path: &PathBuf| Ok(Text::read(path, common)?.joined());
    let texts = args.texts.iter().map(read);
    let texts: Vec<String> = texts.collect::<Result<_>>()?;
    let questions = eval::read(&args.questions, None, args.limit)?;
    let directory = source::resolve(&args.model, common)?;
    runtime::loading_threads(args.threads)?;
    let checkpoint = loading::open(&directory, common)?;
    if checkpoint.config().packed.is_some() {
        bail!(
            "{}: packed already; a report starts from the dense model it was made of",
            directory.display()
        );
    }
    let tokenizer = Arc::new(loading::tokenizer(&checkpoint, common)?);
    let grid = args.grid();
    let sample = needs_calibration(&grid, args.group)
        .then(|| {
            args.calibration
                .sample(&tokenizer, checkpoint.config(), STREAMS, common)
        })
        .transpose()?;
    let ctx = perplexity::window(args.ctx, checkpoint.config())?;
    let inputs = inputs(args, &checkpoint, &directory, sample.as_ref(), ctx)?;
    let results = Results::open(&args.output, inputs)?;
    let runtime = Arc::new(runtime::start(args.threads.count(), common)?);
    let mut study = Study {
        args,
        common,
        calibration: sample.as_ref().map(|sample| Calibration {
            runtime: &runtime,
            windows: &sample.windows,
            source: sample.source.clone(),
        }),
        runtime: &runtime,
        checkpoint: &checkpoint,
        tokenizer: &tokenizer,
        texts: &texts,
        questions: &questions,
        ctx,
        results,
    };
    study.layers()?;
    study.rows(&grid)?;
    study.write()
}

/// Whether any setting needs a text that goes through the model.
fn needs_calibration(grid: &Grid, group_elems: usize) -> bool {
    let mut settings = grid.settings().into_iter();
    settings.any(|setting| setting.options(group_elems).needs_calibration().is_some())
}

impl ReportArgs {
    fn grid(&self) -> Grid {
        Grid {
            ways: self.methods.clone(),
            sparsities: self.sparsities.clone(),
            weights: self.weights.clone(),
        }
    }
}

/// Refuses what is wrong without reading anything.
fn check(args: &ReportArgs) -> Result<()> {
    perplexity::check_window(args.ctx)?;
    args.calibration.check()?;
    let wrong = if args.limit == Some(0) {
        "--limit must be at least 1".to_owned()
    } else if args.limit.is_some() && args.questions.is_empty() {
        "--limit changes nothing without questions: give --eval".to_owned()
    } else if !GROUP_ELEMS.contains(&args.group) {
        format!("--group {}: a group has 32, 64 or 128 columns", args.group)
    } else if args.calibration.given() && !needs_calibration(&args.grid(), args.group) {
        "--calibration changes nothing here: none of --methods is calibrated".to_owned()
    } else {
        return Ok(());
    };
    bail!(UsageError(wrong))
}

fn inputs(
    args: &ReportArgs,
    checkpoint: &Checkpoint,
    directory: &Path,
    sample: Option<&Sample>,
    ctx: usize,
) -> Result<Inputs> {
    Ok(Inputs {
        model: source::name(&args.model, directory),
        parameters: checkpoint
            .plan()
            .iter()
            .map(|tensor| tensor.elements())
            .sum(),
        texts: args
            .texts
            .iter()
            .map(|path| File::of(path))
            .collect::<Result<_>>()?,
        ctx,
        questions: args
            .questions
            .iter()
            .map(|path| File::of(path))
            .collect::<Result<_>>()?,
        limit: args.limit,
        calibration: sample.map(|sample| results::Text {
            calibration: sample.source.clone(),
            calibration_windows: sample.windows.len(),
            calibration_tokens: sample.windows[0].len(),
        }),
        group: args.group,
    })
}

/// A model as one setting makes it.
struct Compressed {
    report: Report,
    model: Model,
    /// What compressing took.
    seconds: f64,
}

/// A report under way.
struct Study<'a> {
    args: &'a ReportArgs,
    common: Common,
    calibration: Option<Calibration<'a>>,
    runtime: &'a Arc<Runtime>,
    checkpoint: &'a Checkpoint,
    tokenizer: &'a Arc<Tokenizer>,
    texts: &'a [String],
    questions: &'a [(String, Questions)],
    ctx: usize,
    results: Results,
}

impl Study<'_> {
    /// Errors of single layers, at every sparsity that lacks them, if there are calibrated methods to compare.
    fn layers(&mut self) -> Result<()> {
        let asked = |method: &Method| self.args.methods.iter().any(|way| way.method == *method);
        let asked: Vec<Method> = [Method::Wanda, Method::SparseGpt]
            .into_iter()
            .filter(asked)
            .collect();
        let mut sparsities = self.args.sparsities.clone();
        sparsities.retain(|&sparsity| {
            let mut known = self.results.layers.iter();
            let known = known.find(|layers| layers.sparsity == sparsity);
            let lacks = |&method: &Method| known.is_none_or(|layers| !layers.has(method));
            sparsity > 0.0 && asked.iter().any(lacks)
        });
        sparsities.sort_by(f64::total_cmp);
        sparsities.dedup();
        let Some(calibration) = self.calibration.as_ref().filter(|_| !sparsities.is_empty()) else {
            return Ok(());
        };
        let mut methods = vec![
            (Method::Magnitude, Scope::Tensor),
            (Method::Magnitude, Scope::Row),
        ];
        methods.extend(asked.iter().map(|&method| (method, Scope::Row)));
        let specs: Vec<LayerSpec> = sparsities
            .iter()
            .flat_map(|&sparsity| methods.iter().map(move |&method| spec(sparsity, method)))
            .collect();
        let layers = self.checkpoint.config().num_hidden_layers as u64;
        let bar = progress::count_bar(self.common, layers, "layers", "errors of layers");
        let all = layer_errors(self.checkpoint, calibration, &specs, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        for (index, &sparsity) in sparsities.iter().enumerate() {
            let tensor = |layer: &sparamx_compress::LayerErrors| {
                let errors = &layer.errors[index * methods.len()..][..methods.len()];
                let of = |method| Some(errors[methods.iter().position(|(m, _)| *m == method)?]);
                Tensor {
                    name: layer.tensor.clone(),
                    magnitude: errors[0],
                    magnitude_by_row: errors[1],
                    wanda: of(Method::Wanda),
                    sparsegpt: of(Method::SparseGpt),
                }
            };
            let tensors = all.iter().map(tensor).collect();
            self.results.add_layers(Layers { sparsity, tensors });
        }
        self.results.save(&self.args.output)?;
        Ok(interrupt::check()?)
    }

    /// Rows of the table, those that are missing.
    fn rows(&mut self, grid: &Grid) -> Result<()> {
        let settings = grid.settings();
        let count = settings.len();
        for (index, setting) in settings.into_iter().enumerate() {
            if self.results.row(&setting).is_some() {
                continue;
            }
            let row = self.row(&setting).with_context(|| setting.to_string())?;
            if !self.common.quiet {
                output::complain(&format!(
                    "{} of {count}: {setting}: {}, perplexity {:.3}",
                    index + 1,
                    units::bytes(row.bytes),
                    row.perplexity
                ));
            }
            self.results.rows.push(row);
            self.results.save(&self.args.output)?;
            interrupt::check()?;
        }
        Ok(())
    }

    /// The row of one setting.
    fn row(&self, setting: &Setting) -> Result<Row> {
        let Compressed {
            report,
            model,
            seconds,
        } = self.compressed(setting)?;
        let loaded = Loaded::new(
            Arc::clone(self.runtime),
            Arc::new(model),
            Arc::clone(self.tokenizer),
        );
        let mut all = Prediction::default();
        let mut text_perplexities = Vec::with_capacity(self.texts.len());
        for (path, text) in self.args.texts.iter().zip(self.texts) {
            let measured = perplexity::measure(
                &loaded,
                text,
                &Scoring::windows_of(self.ctx),
                "scoring".to_owned(),
                self.common,
            )
            .with_context(|| path.display().to_string())?;
            text_perplexities.push(measured.perplexity().perplexity);
            all += measured;
        }
        let mut accuracies = Vec::with_capacity(self.questions.len());
        for (path, file) in self.questions {
            let outcome = eval::measure(&loaded, path, file, self.common)?;
            let figures = outcome.figures;
            accuracies.push(Accuracy {
                task: outcome.task,
                questions: figures.questions,
                acc: figures.acc,
                acc_stderr: figures.acc_stderr,
                acc_norm: figures.acc_norm,
                acc_norm_stderr: figures.acc_norm_stderr,
            });
        }
        let solved = &report.counts.solved;
        let errors: f64 = solved.iter().map(|tensor| tensor.error).sum();
        let figures = all.perplexity();
        Ok(Row {
            setting: *setting,
            bytes: report.counts.all().bytes_after,
            memory_bytes: loaded.model.weight_bytes(),
            perplexity: figures.perplexity,
            bits_per_byte: figures.bits_per_byte,
            text_perplexities,
            accuracies,
            layer_error: (!solved.is_empty()).then(|| errors / solved.len() as f64),
            compress_seconds: seconds,
        })
    }

    /// Compresses to a directory inside the report's and loads what is there. The directory is gone then, and with it what a run
    /// that was stopped may have left.
    fn compressed(&self, setting: &Setting) -> Result<Compressed> {
        let directory = self.args.output.join("model");
        let remove = || {
            remove(&directory)?;
            remove(&self.args.output.join(".model.partial"))
        };
        let _watch = interrupt::watch();
        remove()?;
        let start = Instant::now();
        let bar = progress::byte_bar(self.common, 0, "compressing");
        let report = sparamx_compress::compress(
            self.checkpoint,
            &directory,
            &setting.options(self.args.group),
            self.calibration.as_ref(),
            &mut |progress| {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
                interrupt::flow()
            },
        );
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let loaded = report.map_err(Into::into).and_then(|report| {
            let checkpoint = Checkpoint::open(&report.dir)?;
            let model = loading::weights(self.runtime, &checkpoint, self.args.memory, self.common)?;
            Ok(Compressed {
                report,
                model,
                seconds,
            })
        });
        remove()?;
        interrupt::check()?;
        loaded
    }

    /// Table, plot, and what is printed.
    fn write(&self) -> Result<()> {
        let output = &self.args.output;
        let table = results::write(output, TABLE, &table::markdown(&self.results))?;
        let plot = match plot::svg(&self.results) {
            Some(svg) => Some(results::write(output, PLOT, &svg)?),
            None => None,
        };
        if self.common.json {
            return output::json(&self.results);
        }
        let mut text = String::new();
        for line in table::summary(&self.results) {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("{}\n", table.display()));
        if let Some(plot) = plot {
            text.push_str(&format!("{}\n", plot.display()));
        }
        output::text_out(&text)
    }
}

/// A method by itself, in bf16.
fn spec(sparsity: f64, (method, scope): (Method, Scope)) -> LayerSpec {
    LayerSpec {
        method,
        pattern: Pattern::Unstructured(sparsity),
        scope,
        ..LayerSpec::default()
    }
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
