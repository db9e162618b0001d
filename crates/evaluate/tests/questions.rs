//! Multiple-choice questions: against lm-evaluation-harness, and against the forward pass called by hand.

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{BYTE_LEVEL_IDS, byte_level, load, loaded, model, runtime, tokenizer};
use serde_json::{Value, json};
use sparamx_engine::{Loaded, PagedCache};
use sparamx_evaluate::{
    Answer, Choice, EvaluateError, Evaluation, Question, Questions, Task, evaluate,
};
use sparamx_kernels::Runtime;
use sparamx_model::{Input, Model, Want, Workspace};

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    dir.join(name)
}

fn ask(loaded: &Loaded, file: &Questions) -> Result<(Evaluation, Vec<Answer>), EvaluateError> {
    let mut answers = Vec::new();
    let figures = evaluate(loaded, file, &mut |done, answer: &Answer| {
        answers.push(answer.clone());
        assert_eq!(done, answers.len());
    })?;
    Ok((figures, answers))
}

/// The figures in `expected.json` were made by lm-evaluation-harness with a forward pass in float64
/// (`tools/reference/eval_goldens.py`, which also checks that no two likeliest choices are closer than the tolerance here).
/// Rounding of activations, keys and values to bf16 moves a log likelihood by a few thousandths a token.
#[test]
fn figures_are_those_of_the_harness() {
    let rt = runtime(2);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    let model = load(&rt, &dir);
    let expected: Value =
        serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), 8);
    for (task, want) in expected {
        let file = Questions::read(&fixture(&format!("{task}.jsonl")), None, None).unwrap();
        assert_eq!(file.task.to_string(), *task);
        let (figures, answers) = ask(&model, &file).unwrap();
        let same = |found: Option<f64>, name: &str| match (found, want.get(name)) {
            (Some(found), Some(want)) => (found - want.as_f64().unwrap()).abs() < 1e-12,
            (found, want) => found.is_none() && want.is_none(),
        };
        assert!(same(Some(figures.acc), "acc"), "{task}: {figures:?}");
        assert!(
            same(figures.acc_stderr, "acc_stderr"),
            "{task}: {figures:?}"
        );
        assert!(same(figures.acc_norm, "acc_norm"), "{task}: {figures:?}");
        assert!(
            same(figures.acc_norm_stderr, "acc_norm_stderr"),
            "{task}: {figures:?}"
        );
        let wanted = want["log_likelihoods"].as_array().unwrap();
        assert_eq!(answers.len(), wanted.len());
        for ((answer, wanted), question) in answers.iter().zip(wanted).zip(&file.questions) {
            let wanted = wanted.as_array().unwrap();
            assert_eq!(answer.log_likelihoods.len(), wanted.len());
            let each = answer.log_likelihoods.iter().zip(wanted);
            for ((found, wanted), choice) in each.zip(&question.choices) {
                let tokens = model
                    .tokenizer
                    .encode(&choice.continuation, false)
                    .unwrap()
                    .len();
                let off = (found - wanted.as_f64().unwrap()).abs();
                assert!(
                    off < 0.02 + 0.01 * tokens as f64,
                    "{task}: {found}, not {wanted}, of {choice:?}"
                );
            }
        }
    }
}

/// A log likelihood from one pass over everything.
fn by_hand(rt: &Runtime, model: &Model, context: &[u32], continuation: &[u32]) -> f64 {
    let ids = [context, &continuation[..continuation.len() - 1]].concat();
    let mut cache = PagedCache::new(model.config(), ids.len()).unwrap();
    let input = Input {
        tokens: &ids,
        cache: &mut cache,
        logits: Want::All,
    };
    let mut workspace = Workspace::new();
    let logits = model.forward(rt, &mut [input], &mut workspace).unwrap();
    let rows = logits.chunks_exact(BYTE_LEVEL_IDS).skip(context.len() - 1);
    let each = rows.zip(continuation).map(|(row, &target)| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        f64::from(row[target as usize]) - sum.ln()
    });
    each.sum()
}

fn choice(context: &str, continuation: &str) -> Choice {
    Choice {
        context: context.to_owned(),
        continuation: continuation.to_owned(),
        text: continuation.to_owned(),
    }
}

/// Contexts that are read once, partly again, and cut because they are too long give what one pass gives.
#[test]
fn shared_contexts_change_nothing() {
    let (rt, longest) = (runtime(2), 40);
    let model = model(&rt, longest);
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS);
    let long = "tall tales ".repeat(9);
    let questions = [
        vec![
            choice("abc", " x"),
            choice("abc", " y and z"),
            choice("abc", "d"),
        ],
        vec![
            choice("abcd", " z"),
            choice("abxyz ", "z"),
            choice("a", " b"),
        ],
        vec![
            choice(&long, " end"),
            choice(&long, " the end"),
            choice("a", " b"),
        ],
        vec![choice("\u{1f980}", "\u{1f980}"), choice("h", "e")],
    ];
    let file = Questions {
        task: Task::Arc,
        questions: questions
            .map(|choices| Question { choices, answer: 0 })
            .to_vec(),
    };
    // "h" and "e" are one token together, so that nothing is left of the continuation.
    let error = ask(&loaded(&rt, &model, &tokenizer), &file)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "question 4, choice 2: it has no token");

    let mut file = file;
    file.questions[3].choices[1] = choice("h", "el");
    let (figures, answers) = ask(&loaded(&rt, &model, &tokenizer), &file).unwrap();
    assert_eq!(figures.truncated, 1);
    let ids = |text: &str| tokenizer.encode(text, true).unwrap();
    for (question, answer) in file.questions.iter().zip(&answers) {
        for (choice, &found) in question.choices.iter().zip(&answer.log_likelihoods) {
            let begin = choice.context.trim_end();
            let whole = ids(&format!("{}{}", choice.context, choice.continuation));
            let (context, continuation) = (ids(begin), &whole[ids(begin).len()..]);
            let all = [&context, continuation].concat();
            let kept = all.len().min(longest + 1);
            let context = &all[all.len() - kept..all.len() - continuation.len()];
            let want = by_hand(&rt, &model, context, continuation);
            // Passes of other lengths run other kernels.
            assert!(
                (found - want).abs() < 1e-2,
                "{found}, not {want}: {choice:?}"
            );
        }
    }
    assert!(answers[2].truncated && !answers[0].truncated);
}

#[test]
fn choices_that_cannot_be_scored_are_refused() {
    let rt = runtime(1);
    let model = model(&rt, 10);
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())], BYTE_LEVEL_IDS);
    let message = |bad: Choice| {
        let file = Questions {
            task: Task::Arc,
            questions: vec![Question {
                choices: vec![choice("a", " b"), bad],
                answer: 0,
            }],
        };
        ask(&loaded(&rt, &model, &tokenizer), &file)
            .unwrap_err()
            .to_string()
    };
    let nothing = "question 1, choice 2: there is nothing before it that has a token";
    assert_eq!(message(choice("  ", "a")), nothing);
    assert_eq!(message(choice("", "")), nothing);
    let long = "question 1, choice 2: it has more tokens than fit the model";
    assert_eq!(message(choice("a", " 0123456789")), long);
}

/// Without a context the text begins after BOS, or after its own first token where there is no BOS.
#[test]
fn an_empty_context_is_bos() {
    let rt = runtime(1);
    let model = model(&rt, 40);
    let bos = json!({"bos_token": "<|end|>"});
    let files = [
        ("tokenizer.json", byte_level()),
        ("tokenizer_config.json", bos),
    ];
    for (files, context) in [(&files[..], Some(260)), (&files[..1], None)] {
        let tokenizer = tokenizer(files, BYTE_LEVEL_IDS);
        let mut want = tokenizer.encode(" tall", false).unwrap();
        let context = context.unwrap_or_else(|| want.remove(0));
        let file = Questions {
            task: Task::Arc,
            questions: vec![Question {
                choices: vec![choice("", " tall"), choice("", " small")],
                answer: 0,
            }],
        };
        let (_, answers) = ask(&loaded(&rt, &model, &tokenizer), &file).unwrap();
        let want = by_hand(&rt, &model, &[context], &want);
        assert!((answers[0].log_likelihoods[0] - want).abs() < 1e-2);
    }
}
