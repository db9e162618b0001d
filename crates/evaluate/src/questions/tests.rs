use super::*;

fn parse(text: &str) -> Result<Questions, EvaluateError> {
    let parsed = Questions::parse(text, Path::new("q.jsonl"), None, None)?;
    Ok(parsed.expect("questions"))
}

fn one(line: &str) -> Question {
    parse(line).unwrap().questions.remove(0)
}

/// A question in several lines of a source.
fn joined(lines: &str) -> Question {
    one(&lines.replace('\n', " "))
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn prompts_are_those_of_the_harness() {
    let question = one(
        r#"{"question": "Why?", "choices": {"text": ["a", "b "], "label": ["1", "2"]}, "answerKey": "2", "id": "x"}"#,
    );
    assert_eq!(question.answer, 1);
    assert_eq!(question.choices[1].context, "Question: Why?\nAnswer:");
    assert_eq!(question.choices[1].continuation, " b ");
    assert_eq!(question.choices[1].text, "b ");

    let question = joined(
        r#"{"activity_label": "Art", "ctx_a": "[header] How [step] to.", "ctx_b": "the MAN",
            "endings": [" [title] x  y [a]", "z"], "label": "1", "ind": 4}"#,
    );
    assert_eq!(question.answer, 1);
    assert_eq!(question.choices[0].context, "Art: How to. The man");
    // What is before " [title]" is stripped first, so that its bracket is one like the others.
    assert_eq!(question.choices[0].continuation, "  x y ");
    assert_eq!(question.choices[0].text, " x y ");

    let question = one(r#"{"goal": "Sew.", "sol1": "a", "sol2": "b", "label": 1}"#);
    assert_eq!((question.answer, question.choices.len()), (1, 2));
    assert_eq!(question.choices[0].context, "Question: Sew.\nAnswer:");

    let question = one(
        r#"{"sentence": "Ann saw _  run_fast . ", "option1": "Bob", "option2": "Cy ", "answer": "1"}"#,
    );
    assert_eq!(question.answer, 0);
    assert_eq!(question.choices[1].context, "Ann saw Cy ");
    assert_eq!(question.choices[1].continuation, " run_fast .");
    assert_eq!(question.choices[0].text, "Ann saw Bob");

    let question = one(
        r#"{"question_stem": "Dogs", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": " B"}"#,
    );
    assert_eq!(
        (question.answer, &*question.choices[0].context),
        (1, "Dogs")
    );

    let question = one(r#"{"question": "is it", "passage": "It is.", "answer": true}"#);
    assert_eq!(question.answer, 1);
    assert_eq!(
        question.choices[0].context,
        "It is.\nQuestion: is it?\nAnswer:"
    );
    assert_eq!(question.choices[1].continuation, " yes");

    let question = one(
        r#"{"premise": "It rained. ", "choice1": "I slept.", "choice2": "Éa.", "question": "effect", "label": 0}"#,
    );
    assert_eq!(question.choices[0].context, "It rained therefore");
    assert_eq!(question.choices[0].continuation, "  i slept.");
    assert_eq!(question.choices[1].continuation, "  éa.");

    let question = one(
        r#"{"question": "What?", "support": " S.", "correct_answer": "d", "distractor1": "a", "distractor2": "b", "distractor3": "c"}"#,
    );
    assert_eq!(question.choices[0].context, "S.\nQuestion: What?\nAnswer:");
    assert_eq!((question.answer, &*question.choices[3].text), (3, "d"));
}

#[test]
fn lines_that_are_no_questions_are_named() {
    let good = r#"{"goal": "Sew.", "sol1": "a", "sol2": "b", "label": 1}"#;
    for (line, words) in [
        ("[1]", "not a JSON object"),
        (r#"{"goal": "#, "not a JSON object"),
        (
            r#"{"goal": "Sew.", "sol1": "a", "label": 1}"#,
            "there is no 'sol2'",
        ),
        (
            r#"{"goal": 1, "sol1": "a", "sol2": "b", "label": 1}"#,
            "'goal' is not a text",
        ),
        (
            r#"{"goal": "", "sol1": "a", "sol2": "b", "label": 2}"#,
            "'label' is 2, which is none of the choices",
        ),
        (
            r#"{"goal": "", "sol1": "a", "sol2": "b"}"#,
            "take the validation split",
        ),
    ] {
        // The blank line is no question, and counts.
        let found = message(&format!("{good}\n\n{line}\n"));
        assert!(
            found.starts_with("q.jsonl, line 3: ") && found.contains(words),
            "{found}"
        );
    }
    let arc = |choices: &str, key: &str| {
        message(&format!(
            r#"{{"question": "", "choices": {choices}, "answerKey": "{key}"}}"#
        ))
    };
    for (choices, words) in [
        (r#"["a", "b"]"#, "'choices' is not an object"),
        (r#"{"text": ["a", "b"]}"#, "'choices.label' is not a list"),
        (
            r#"{"text": ["a"], "label": ["A"]}"#,
            "'choices.text' is not a list of two",
        ),
        (
            r#"{"text": ["a", "b"], "label": ["A", "B", "C"]}"#,
            "2 texts and 3 labels",
        ),
        (
            r#"{"text": ["a", "b"], "label": ["A", "B"]}"#,
            "'answerKey' is D",
        ),
    ] {
        let found = arc(choices, "D");
        assert!(found.contains(words), "{found}");
    }
    let blank = r#"{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}"#;
    assert!(message(blank).contains("no _"));
    let third = r#"{"sentence": "a _", "option1": "a", "option2": "b", "answer": "0"}"#;
    assert!(message(third).contains("'answer' is \"0\""));
    let why = r#"{"premise": "a.", "choice1": "a", "choice2": "b", "question": "why", "label": 0}"#;
    assert!(message(why).contains("'question' is 'why'"));
}

#[test]
fn the_task_is_known_by_the_fields_or_from_the_user() {
    let unknown = message(r#"{"prompt": "a"}"#);
    for words in ["no task that is known", "piqa (goal, sol1, sol2)"] {
        assert!(unknown.contains(words), "{unknown}");
    }
    let both = r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 0, "sentence": "_", "option1": "d", "option2": "e", "answer": "1"}"#;
    let found = message(both);
    for words in ["piqa (", "winogrande (", "say which is meant"] {
        assert!(found.contains(words), "{found}");
    }
    let task = "winogrande".parse().unwrap();
    let file = Questions::parse(both, Path::new("q"), Some(task), None);
    assert_eq!(file.unwrap().unwrap().questions[0].choices[0].context, "d");
    assert!("wino".parse::<Task>().unwrap_err().contains("winogrande"));
}

#[test]
fn limits_cut_and_files_without_questions_are_refused() {
    let line = r#"{"goal": "Sew.", "sol1": "a", "sol2": "b", "label": 1}"#;
    let text = format!("{line}\n\n{line}\n not read");
    let file = Questions::parse(&text, Path::new("q"), None, Some(2));
    assert_eq!(file.unwrap().unwrap().questions.len(), 2);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.jsonl");
    for (content, words) in [
        (&b"\n\n"[..], "q.jsonl: no questions"),
        (b"PAR1\x15\x04", "q.jsonl: a Parquet file"),
        (b"\xff\xfe", "q.jsonl: not UTF-8"),
    ] {
        std::fs::write(&path, content).unwrap();
        let found = Questions::read(&path, None, None).unwrap_err().to_string();
        assert!(found.contains(words), "{found}");
    }
}

#[test]
fn choices_and_errors_are_computed_by_hand() {
    let question = Question {
        choices: ["é", "abcd", ""]
            .map(|text| Choice {
                context: String::new(),
                continuation: String::new(),
                text: text.to_owned(),
            })
            .to_vec(),
        answer: 0,
    };
    let answer = |log_likelihoods: &[f64]| Answer {
        log_likelihoods: log_likelihoods.to_vec(),
        truncated: false,
    };
    // For each character -3 and -2; by bytes it would be -1.5 and -2. Nothing of a length of 0 wins.
    let found = answer(&[-3.0, -8.0, -1.0]);
    assert_eq!((found.choice(), found.norm_choice(&question)), (2, 1));
    // Of equals, the first.
    assert_eq!(answer(&[-5.0, -4.0, -4.0]).choice(), 1);
    assert_eq!(answer(&[f64::NEG_INFINITY; 2]).choice(), 0);

    // Three right of four: the sample's variance is (3 * 0.25^2 + 0.75^2) / 3 = 0.25, its mean's a quarter of that.
    assert_eq!(standard_error(3, 4), Some(0.25));
    assert_eq!(standard_error(4, 4), Some(0.0));
    assert_eq!(standard_error(1, 1), None);
}
