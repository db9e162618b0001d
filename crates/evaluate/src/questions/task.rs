//! Data sets of multiple-choice questions, and what a model is asked by them.
//!
//! Prompts and continuations are those of lm-evaluation-harness (0.4.13, no examples before the question), so that figures
//! can be compared with published ones.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::python::{capitalize, remove_brackets, strip};

/// What stands between a context and a choice.
const DELIMITER: &str = " ";

/// A question: for every choice a text to read and a text to score.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The choices, at least two.
    pub choices: Vec<Choice>,
    /// Index of the right one.
    pub answer: usize,
}

/// One choice of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// What the model reads.
    pub context: String,
    /// What its likelihood is taken of.
    pub continuation: String,
    /// The choice itself, by whose length `acc_norm` divides.
    pub text: String,
}

/// Data sets by the fields of their lines: as the hub has them, one JSON object a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// ARC, easy or challenge.
    Arc,
    /// BoolQ.
    BoolQ,
    /// COPA.
    Copa,
    /// HellaSwag.
    HellaSwag,
    /// OpenBookQA.
    OpenBookQa,
    /// PIQA.
    Piqa,
    /// SciQ.
    SciQ,
    /// WinoGrande.
    WinoGrande,
}

/// A task, its name, the fields that tell it from the others, and whether its choices differ in length so much that the
/// harness reports `acc_norm` too.
struct Row {
    task: Task,
    name: &'static str,
    fields: &'static [&'static str],
    has_norm: bool,
}

const fn row(task: Task, name: &'static str, fields: &'static [&'static str], norm: bool) -> Row {
    Row {
        task,
        name,
        fields,
        has_norm: norm,
    }
}

#[rustfmt::skip]
const TASKS: [Row; 8] = [
    row(Task::Arc, "arc", &["question", "choices", "answerKey"], true),
    row(Task::BoolQ, "boolq", &["question", "passage"], false),
    row(Task::Copa, "copa", &["premise", "choice1", "choice2", "question"], false),
    row(Task::HellaSwag, "hellaswag", &["activity_label", "ctx_a", "ctx_b", "endings"], true),
    row(Task::OpenBookQa, "openbookqa", &["question_stem", "choices", "answerKey"], true),
    row(Task::Piqa, "piqa", &["goal", "sol1", "sol2"], true),
    row(Task::SciQ, "sciq", &["question", "correct_answer", "distractor1", "distractor2", "distractor3"], true),
    row(Task::WinoGrande, "winogrande", &["sentence", "option1", "option2"], false),
];

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = TASKS.iter().find(|row| row.name == text);
        found.map(|row| row.task).ok_or_else(|| {
            let names: Vec<&str> = TASKS.iter().map(|row| row.name).collect();
            format!("one of {} is needed", names.join(", "))
        })
    }
}

impl Task {
    fn row(self) -> &'static Row {
        let found = TASKS.iter().find(|row| row.task == self);
        found.expect("every task has a row")
    }

    /// Whether the harness reports `acc_norm` of it.
    pub fn has_norm(self) -> bool {
        self.row().has_norm
    }

    /// The task that a line belongs to, by its fields.
    ///
    /// # Errors
    /// What is expected, if the fields are those of no task or of several.
    pub(super) fn detect(line: &Map<String, Value>) -> Result<Self, String> {
        let fits = |row: &&Row| row.fields.iter().all(|field| line.contains_key(*field));
        let found: Vec<&Row> = TASKS.iter().filter(fits).collect();
        match found[..] {
            [row] => Ok(row.task),
            [] => Err(format!(
                "the fields are those of no task that is known; expected are {}",
                expected(&TASKS.iter().collect::<Vec<_>>())
            )),
            _ => Err(format!(
                "the fields are those of several tasks, {}; say which is meant",
                expected(&found)
            )),
        }
    }

    /// The question in a line.
    ///
    /// # Errors
    /// The field that is missing or is not what it should be.
    pub(super) fn question(self, line: &Map<String, Value>) -> Result<Question, String> {
        let text = |field| text(line, field);
        Ok(match self {
            Task::Arc => {
                let context = format!("Question: {}\nAnswer:", text("question")?);
                labelled(line, &context, text("answerKey")?)?
            }
            Task::OpenBookQa => {
                let key = text("answerKey")?.trim_start();
                labelled(line, text("question_stem")?, key)?
            }
            Task::BoolQ => {
                let (passage, question) = (text("passage")?, text("question")?);
                let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
                let answer = match line.get("answer") {
                    Some(Value::Bool(answer)) => usize::from(*answer),
                    _ => label(line, "label", 2)?,
                };
                Question::new(&context, &["no", "yes"], answer)
            }
            Task::Copa => copa(
                text("premise")?,
                text("question")?,
                [text("choice1")?, text("choice2")?],
                label(line, "label", 2)?,
            )?,
            Task::HellaSwag => hellaswag(line)?,
            Task::Piqa => {
                let context = format!("Question: {}\nAnswer:", text("goal")?);
                let choices = [text("sol1")?, text("sol2")?];
                Question::new(&context, &choices, label(line, "label", 2)?)
            }
            Task::SciQ => {
                // The test split is used with an empty support as well as with a paragraph.
                let support = line.get("support").and_then(Value::as_str);
                let support = support.unwrap_or_default().trim_start();
                let context = format!("{support}\nQuestion: {}\nAnswer:", text("question")?);
                let choices = [
                    text("distractor1")?,
                    text("distractor2")?,
                    text("distractor3")?,
                    text("correct_answer")?,
                ];
                Question::new(&context, &choices, 3)
            }
            Task::WinoGrande => winogrande(line)?,
        })
    }
}

fn expected(rows: &[&Row]) -> String {
    let row = |row: &&Row| format!("{} ({})", row.name, row.fields.join(", "));
    rows.iter().map(row).collect::<Vec<_>>().join("; ")
}

impl Question {
    /// A question whose choices continue one context.
    fn new<S: AsRef<str>>(context: &str, choices: &[S], answer: usize) -> Self {
        let choice = |text: &S| Choice {
            context: context.to_owned(),
            continuation: format!("{DELIMITER}{}", text.as_ref()),
            text: text.as_ref().to_owned(),
        };
        Question {
            choices: choices.iter().map(choice).collect(),
            answer,
        }
    }
}

fn hellaswag(line: &Map<String, Value>) -> Result<Question, String> {
    let (a, b) = (text(line, "ctx_a")?, text(line, "ctx_b")?);
    let activity = text(line, "activity_label")?;
    let context = plain(&format!("{activity}: {a} {}", capitalize(b)));
    let endings = texts(line.get("endings"), "endings")?;
    let endings: Vec<String> = endings.iter().map(|text| plain(text)).collect();
    let answer = label(line, "label", endings.len())?;
    Ok(Question::new(&context, &endings, answer))
}

fn winogrande(line: &Map<String, Value>) -> Result<Question, String> {
    let (before, after) = text(line, "sentence")?
        .split_once('_')
        .ok_or("'sentence' has no _ where an option goes")?;
    let choice = |option: &str| Choice {
        context: format!("{before}{option}"),
        continuation: format!("{DELIMITER}{}", strip(after)),
        text: format!("{before}{option}"),
    };
    let [first, second] = [text(line, "option1")?, text(line, "option2")?];
    Ok(Question {
        choices: vec![choice(first), choice(second)],
        answer: numbered(line, "answer", 1, 2)?,
    })
}

/// HellaSwag's texts without what its second source, WikiHow, left in them.
fn plain(text: &str) -> String {
    remove_brackets(&strip(text).replace(" [title]", ". ")).replace("  ", " ")
}

fn copa(
    premise: &str,
    question: &str,
    choices: [&str; 2],
    answer: usize,
) -> Result<Question, String> {
    let connector = match question {
        "cause" => "because",
        "effect" => "therefore",
        other => return Err(format!("'question' is '{other}', not 'cause' or 'effect'")),
    };
    // Without the full stop.
    let mut premise = strip(premise).chars();
    premise.next_back();
    let choice = |text: &str| {
        let mut letters = text.chars();
        let first = letters.next().map(|c| c.to_lowercase().to_string());
        format!(" {}{}", first.unwrap_or_default(), letters.as_str())
    };
    let context = format!("{} {connector}", premise.as_str());
    Ok(Question::new(&context, &choices.map(choice), answer))
}

/// A question whose choices are `{"text": [..], "label": [..]}`.
fn labelled(line: &Map<String, Value>, context: &str, key: &str) -> Result<Question, String> {
    let choices = line.get("choices").and_then(Value::as_object);
    let choices = choices.ok_or("'choices' is not an object with the lists 'text' and 'label'")?;
    let found = texts(choices.get("text"), "choices.text")?;
    let labels = texts(choices.get("label"), "choices.label")?;
    if found.len() != labels.len() {
        let (texts, labels) = (found.len(), labels.len());
        return Err(format!(
            "'choices' has {texts} texts and {labels} labels; there must be one for each"
        ));
    }
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer.ok_or_else(|| no_answer("answerKey", key))?;
    Ok(Question::new(context, &found, answer))
}

fn text<'a>(line: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match line.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("'{field}' is not a text")),
        None => Err(format!(
            "there is no '{field}'; all lines of a file must be of one task"
        )),
    }
}

/// The texts in a list of two or more.
fn texts<'a>(value: Option<&'a Value>, field: &str) -> Result<Vec<&'a str>, String> {
    let list = value.and_then(Value::as_array);
    let texts = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    match texts {
        Some(texts) if texts.len() >= 2 => Ok(texts),
        _ => Err(format!("'{field}' is not a list of two texts or more")),
    }
}

/// The index of the right choice in a field that holds it as a number or as a text, counted from 0.
fn label(line: &Map<String, Value>, field: &str, choices: usize) -> Result<usize, String> {
    numbered(line, field, 0, choices)
}

/// The same, counted from `first` in the file.
fn numbered(
    line: &Map<String, Value>,
    field: &str,
    first: usize,
    choices: usize,
) -> Result<usize, String> {
    let value = line.get(field).unwrap_or(&Value::Null);
    let found = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64().map(|number| number as usize),
    };
    found
        .and_then(|number: usize| number.checked_sub(first))
        .filter(|&index| index < choices)
        .ok_or_else(|| no_answer(field, value))
}

fn no_answer(field: &str, value: impl fmt::Display) -> String {
    format!(
        "'{field}' is {value}, which is none of the choices; the test splits of some data sets have no answers: take the \
         validation split"
    )
}
