//! Multiple-choice questions: which choice a model takes to be the likeliest, by the rules of lm-evaluation-harness.

mod python;
mod task;

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use sparamx_engine::{EngineError, KvOptions, Loaded, Tokenizer, negative_log_likelihood};

use crate::EvaluateError;
use crate::scorer::Scorer;

use python::is_space;
pub use task::{Choice, Question, Task};

/// A file of questions, all of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Questions {
    /// The task.
    pub task: Task,
    /// The questions, at least one, in the order of the file.
    pub questions: Vec<Question>,
}

impl Questions {
    /// Reads the first `limit` questions, or all, of a JSON Lines file. Unless the task is given, the fields of the first line
    /// decide it.
    ///
    /// # Errors
    /// [`EngineError::Io`]; [`EngineError::Json`] if the file has no questions; [`EvaluateError::Question`] for a line that is no
    /// JSON object, or whose fields are not those of one task.
    pub fn read(
        path: &Path,
        task: Option<Task>,
        limit: Option<usize>,
    ) -> Result<Self, EvaluateError> {
        let bytes = std::fs::read(path).map_err(|error| EngineError::Io {
            path: path.to_owned(),
            error,
        })?;
        let bad_file = |error: &str| EngineError::Json {
            path: path.to_owned(),
            error: error.to_owned(),
        };
        if bytes.starts_with(b"PAR1") {
            return Err(bad_file(
                "a Parquet file; convert it to JSON Lines, with the datasets package of Python for one: \
                 Dataset.from_parquet(FILE).to_json(OUT)",
            )
            .into());
        }
        let text = String::from_utf8(bytes).map_err(|_| bad_file("not UTF-8 text"))?;
        Self::parse(&text, path, task, limit)?
            .ok_or_else(|| bad_file("no questions; one JSON object a line is expected").into())
    }

    fn parse(
        text: &str,
        path: &Path,
        task: Option<Task>,
        limit: Option<usize>,
    ) -> Result<Option<Self>, EvaluateError> {
        let mut all: Option<Questions> = None;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines.take(limit.unwrap_or(usize::MAX)) {
            let bad = |error: String| EvaluateError::Question {
                path: path.to_owned(),
                line: index + 1,
                error,
            };
            let fields: Map<String, Value> = serde_json::from_str(line)
                .map_err(|error| bad(format!("not a JSON object: {error}")))?;
            let file = match &mut all {
                Some(file) => file,
                None => all.insert(Questions {
                    task: match task {
                        Some(task) => task,
                        None => Task::detect(&fields).map_err(bad)?,
                    },
                    questions: Vec::new(),
                }),
            };
            let question = file.task.question(&fields).map_err(bad)?;
            file.questions.push(question);
        }
        Ok(all)
    }
}

/// What [`evaluate`] measures. Standard errors are those of a mean over questions; there is none of a single question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of questions.
    pub questions: usize,
    /// Share of right answers if choices are drawn at random.
    pub chance: f64,
    /// Share of questions whose right choice has the largest log likelihood.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: Option<f64>,
    /// The same with each log likelihood divided by the characters of the choice; none for tasks where the harness reports none.
    pub acc_norm: Option<f64>,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
    /// Questions with a context that was cut on the left because it does not fit the model.
    pub truncated: usize,
}

/// Log likelihoods of the choices of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// One for each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Whether a context was cut.
    pub truncated: bool,
}

impl Answer {
    /// The choice of the largest log likelihood, the first of several.
    pub fn choice(&self) -> usize {
        first_largest(self.log_likelihoods.iter().copied())
    }

    /// The choice of the largest log likelihood for each of its characters, as `acc_norm` takes it.
    pub fn norm_choice(&self, question: &Question) -> usize {
        let lengths = question.choices.iter().map(|c| c.text.chars().count());
        let each = self.log_likelihoods.iter().zip(lengths);
        first_largest(each.map(|(likelihood, length)| likelihood / length as f64))
    }
}

fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Asks a model all questions. After each question `progress` gets the number of those done, and
/// the log likelihoods.
///
/// # Errors
/// [`EvaluateError::Choice`] for a choice without a token, or with more than fit the model; too little memory for the cache; what
/// tokenizer and model report.
pub fn evaluate(
    loaded: &Loaded,
    file: &Questions,
    progress: &mut dyn FnMut(usize, &Answer),
) -> Result<Evaluation, EvaluateError> {
    let mut reader = Reader {
        scorer: Scorer::new(loaded, &KvOptions::default())?,
        tokenizer: &loaded.tokenizer,
        longest: loaded.model.config().context_length(),
        context: Vec::new(),
        logits: Vec::new(),
    };
    let questions = &file.questions;
    let (mut right, mut right_norm) = (0, 0);
    let (mut chance, mut truncated) = (0.0, 0);
    for (index, question) in questions.iter().enumerate() {
        let answer = reader.answer(question, index + 1)?;
        right += usize::from(answer.choice() == question.answer);
        right_norm += usize::from(answer.norm_choice(question) == question.answer);
        chance += 1.0 / question.choices.len() as f64;
        truncated += usize::from(answer.truncated);
        progress(index + 1, &answer);
    }
    let norm = file.task.has_norm().then_some(right_norm);
    let count = questions.len();
    Ok(Evaluation {
        questions: count,
        chance: chance / count as f64,
        acc: right as f64 / count as f64,
        acc_stderr: standard_error(right, count),
        acc_norm: norm.map(|right| right as f64 / count as f64),
        acc_norm_stderr: norm.and_then(|right| standard_error(right, count)),
        truncated,
    })
}

/// The standard error of the mean of `count` values of which `ones` are 1 and the others 0: the deviation of a sample over the
/// square root of its size.
fn standard_error(ones: usize, count: usize) -> Option<f64> {
    let mean = ones as f64 / count as f64;
    (count > 1).then(|| (mean * (1.0 - mean) / (count - 1) as f64).sqrt())
}

/// Reads contexts, each once as long as the next is the same, and what the next has in common with it otherwise.
struct Reader<'a> {
    scorer: Scorer<'a>,
    tokenizer: &'a Tokenizer,
    /// Tokens that fit the model.
    longest: usize,
    /// The tokens that the sequence begins with.
    context: Vec<u32>,
    /// The logits after them.
    logits: Vec<f32>,
}

impl Reader<'_> {
    fn answer(&mut self, question: &Question, number: usize) -> Result<Answer, EvaluateError> {
        let mut answer = Answer {
            log_likelihoods: Vec::with_capacity(question.choices.len()),
            truncated: false,
        };
        for (index, choice) in question.choices.iter().enumerate() {
            let bad = |error| EvaluateError::Choice {
                question: number,
                choice: index + 1,
                error,
            };
            let (mut context, continuation) = encode_pair(self.tokenizer, choice)?;
            if context.is_empty() {
                return Err(bad("there is nothing before it that has a token"));
            }
            if continuation.is_empty() {
                return Err(bad("it has no token"));
            }
            if continuation.len() > self.longest {
                return Err(bad("it has more tokens than fit the model"));
            }
            // The last token is not read, so that one more fits.
            let spare = self.longest + 1 - continuation.len();
            if context.len() > spare {
                context.drain(..context.len() - spare);
                answer.truncated = true;
            }
            let likelihood = self.log_likelihood(context, &continuation)?;
            answer.log_likelihoods.push(likelihood);
        }
        Ok(answer)
    }

    fn log_likelihood(
        &mut self,
        context: Vec<u32>,
        continuation: &[u32],
    ) -> Result<f64, EvaluateError> {
        if context != self.context {
            let pairs = context.iter().zip(&self.context);
            let common = pairs.take_while(|(a, b)| a == b).count();
            // The last token is read for its logits in any case.
            let common = common.min(context.len() - 1);
            self.scorer.rewind(common);
            // Should reading fail, nothing else is known to be in the cache.
            self.context.truncate(common);
            self.logits = self.scorer.read(&context[common..])?;
            self.context = context;
        }
        self.scorer.rewind(self.context.len());
        let first = negative_log_likelihood(&self.logits, continuation[0])?;
        let read = &continuation[..continuation.len() - 1];
        let rest = self.scorer.score(read, &continuation[1..], &mut |_| ())?;
        Ok(-(first + rest))
    }
}

/// Tokens of a choice's context and continuation, as the harness divides them: spaces at the end of the context go to the
/// continuation, and the continuation is what the tokens of both together have more than those of the context.
fn encode_pair(
    tokenizer: &Tokenizer,
    choice: &Choice,
) -> Result<(Vec<u32>, Vec<u32>), EvaluateError> {
    if choice.context.is_empty() {
        let mut continuation = tokenizer.encode(&choice.continuation, false)?;
        let begin = tokenizer.bos().or(tokenizer.eos().first().copied());
        return Ok(match begin {
            Some(begin) if continuation.first() != Some(&begin) => (vec![begin], continuation),
            _ if continuation.is_empty() => (Vec::new(), continuation),
            _ => {
                let rest = continuation.split_off(1);
                (continuation, rest)
            }
        });
    }
    let context = choice.context.trim_end_matches(is_space);
    let spaces = &choice.context[context.len()..];
    let whole = tokenizer.encode(&format!("{context}{spaces}{}", choice.continuation), true)?;
    let context = tokenizer.encode(context, true)?;
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, continuation))
}

#[cfg(test)]
mod tests;
