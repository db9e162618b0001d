//! `sparamx eval`: how many multiple-choice questions a model gets right.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sparamx_engine::Loaded;
use sparamx_evaluate::{Evaluation, Questions, Task, evaluate};

use crate::args::{self, Common, Memory, Threads, UsageError};
use crate::output::Table;
use crate::{loading, output, progress, source, texts, units};

/// Options of `eval`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx eval llama-8b-50 arc_easy_validation.jsonl piqa_validation.jsonl
  sparamx eval llama-8b-50 hellaswag_val.jsonl --limit 500
  sparamx eval llama-8b-50 winogrande_validation.jsonl --json

A question has some choices, and the model takes the one that it finds most probable after the question. Printed is the share of
questions that it gets right:
  acc         it takes the most probable choice
  acc_norm    it takes the most probable choice for its length, which is fairer where choices differ in length
  ±           the standard error: two figures closer than about twice that may differ by luck alone
  chance      the share that choosing at random gets right
Compare a compressed model with the dense one it was made of on the same files. Prompts and rules are those of
lm-evaluation-harness without examples (0-shot), so that the figures can be compared with published ones.

A file has one question in JSON a line, as the data sets have them on the hub. Its fields say which task it is:
  arc          question, choices {text, label}, answerKey
  boolq        question, passage, answer or label
  copa         premise, choice1, choice2, question, label
  hellaswag    activity_label, ctx_a, ctx_b, endings, label
  openbookqa   question_stem, choices {text, label}, answerKey
  piqa         goal, sol1, sol2, label
  sciq         question, support, correct_answer, distractor1, distractor2, distractor3
  winogrande   sentence, option1, option2, answer

--json prints {results: [{file, task, questions, chance, acc, acc_stderr, acc_norm, acc_norm_stderr, truncated}, ..]}. With --samples
log_likelihoods is there, too: for each question those of its choices, in nats.")]
pub struct EvalArgs {
    /// Directory, GGUF file or hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Files of questions, one in JSON a line
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The task of all files, where their fields do not show it
    #[arg(long, value_name = "NAME")]
    task: Option<Task>,
    /// Take the first N questions of each file
    #[arg(long, value_name = "N", value_parser = args::whole::<usize>)]
    limit: Option<usize>,
    /// Print the log likelihood of every choice; needs --json
    #[arg(long)]
    samples: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    results: Vec<Outcome>,
}

/// Figures of a file.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The file.
    pub file: String,
    /// The task.
    pub task: String,
    /// The figures.
    #[serde(flatten)]
    pub figures: Evaluation,
    /// The log likelihoods of the choices of each question, in nats, where they are asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<Vec<f64>>,
}

/// Measures and prints.
///
/// # Errors
/// The model or a file cannot be read, or a question does not fit the model.
pub fn run(args: &EvalArgs, common: Common) -> Result<()> {
    if args.limit == Some(0) {
        bail!(UsageError("--limit must be at least 1".to_owned()));
    }
    if args.samples && !common.json {
        bail!(UsageError("--samples needs --json".to_owned()));
    }
    let files = read(&args.files, args.task, args.limit)?;
    let loaded = loading::load(
        &source::resolve(&args.model, common)?,
        args.threads,
        args.memory,
        common,
    )?;
    let measured = files
        .iter()
        .map(|(path, file)| measure(&loaded, path, file, common));
    let mut results: Vec<Outcome> = measured.collect::<Result<_>>()?;
    if !args.samples {
        results
            .iter_mut()
            .for_each(|result| result.log_likelihoods.clear());
    }
    for result in results.iter().filter(|_| !common.quiet) {
        if result.figures.truncated > 0 {
            output::complain(&format!(
                "warning: {}: {} questions are longer than the context of the model and were cut on the left",
                result.file, result.figures.truncated
            ));
        }
    }
    if common.json {
        return output::json(&Report { results });
    }
    let with_error = |value: Option<f64>, error: Option<f64>| match (value, error) {
        (Some(value), Some(error)) => format!("{value:.4} ± {error:.4}"),
        (Some(value), None) => format!("{value:.4}"),
        (None, _) => "-".to_owned(),
    };
    let mut table = Table::new(&["file", "task", "questions", "chance", "acc", "acc_norm"]);
    for Outcome {
        file,
        task,
        figures,
        ..
    } in &results
    {
        table.row(vec![
            file.clone(),
            task.clone(),
            units::count(figures.questions as u64),
            format!("{:.4}", figures.chance),
            with_error(Some(figures.acc), figures.acc_stderr),
            with_error(figures.acc_norm, figures.acc_norm_stderr),
        ]);
    }
    output::text_out(&table.aligned())
}

/// Reads files of questions.
///
/// # Errors
/// A file cannot be read, or a line in it is no question of its task.
pub fn read(
    paths: &[PathBuf],
    task: Option<Task>,
    limit: Option<usize>,
) -> Result<Vec<(String, Questions)>> {
    let read = |path: &PathBuf| {
        let file = Questions::read(path, task, limit)?;
        Ok((path.display().to_string(), file))
    };
    paths.iter().try_for_each(|path| texts::check_file(path))?;
    paths.iter().map(read).collect()
}

/// Asks the questions of one file, with a bar.
///
/// # Errors
/// A question does not fit the model, or the model fails on it.
pub fn measure(loaded: &Loaded, path: &str, file: &Questions, common: Common) -> Result<Outcome> {
    let total = file.questions.len() as u64;
    let bar = progress::count_bar(common, total, "questions", file.task.to_string());
    let mut log_likelihoods = Vec::with_capacity(file.questions.len());
    let figures = evaluate(loaded, file, &mut |done, answer| {
        bar.set_position(done as u64);
        log_likelihoods.push(answer.log_likelihoods.clone());
    })
    .with_context(|| path.to_owned())?;
    bar.finish_and_clear();
    Ok(Outcome {
        file: path.to_owned(),
        task: file.task.to_string(),
        figures,
        log_likelihoods,
    })
}
