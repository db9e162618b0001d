//! `report`: what it measures, writes and goes on from.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fails, json, model, output, run, sparamx, stdout, text};
use serde_json::Value;
use tempfile::TempDir;

const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day \
                     she saw a big, red ball. She wanted to play with it, but it was too high up in a tree. ";

/// A folder with a text, questions and a place for the report.
fn folder() -> TempDir {
    let root = TempDir::new().expect("a directory");
    fs::write(root.path().join("text.txt"), STORY).expect("a file");
    fs::write(root.path().join("calibration.txt"), STORY.repeat(4)).expect("a file");
    let question = r#"{"goal": "Sew.", "sol1": "With a needle.", "sol2": "With a", "label": 1}"#;
    fs::write(root.path().join("piqa.jsonl"), question).expect("a file");
    root
}

fn report(root: &Path, options: &[&str]) -> Output {
    let mut command = sparamx();
    command
        .current_dir(root)
        .args(["report", text(&model::directory())]);
    command.args(["--text", "text.txt", "--calibration", "calibration.txt"]);
    command.args(["--calibration-tokens", "64", "-o", "out"]);
    output(command.args(options))
}

fn rows(report: &Value) -> Vec<(String, f64, String)> {
    let rows = report["rows"].as_array().expect("a list");
    let row = |row: &Value| {
        let method = row["way"]["method"].as_str().unwrap_or("dense");
        let refit = if row["way"]["refit"] == true {
            "+refit"
        } else {
            ""
        };
        let sparsity = row["sparsity"].as_f64().expect("a number");
        let weights = row["weights"].as_str().expect("a text");
        (format!("{method}{refit}"), sparsity, weights.to_owned())
    };
    rows.iter().map(row).collect()
}

#[test]
fn everything_is_measured_once_and_written() {
    let root = folder();
    let narrow = [
        "--methods",
        "magnitude,sparsegpt+refit",
        "--sparsities",
        "0.5",
    ];
    let first = [
        &narrow[..],
        &["--weights", "bf16,int8", "--eval", "piqa.jsonl", "--json"],
    ]
    .concat();
    let found = json(&report(root.path(), &first));
    let names = rows(&found);
    let expected = [
        ("dense", 0.0, "bf16"),
        ("dense", 0.0, "int8"),
        ("dense", 0.0, "int8"),
        ("magnitude", 0.5, "bf16"),
        ("magnitude", 0.5, "int8"),
        ("sparsegpt+refit", 0.5, "bf16"),
        ("sparsegpt+refit", 0.5, "int8"),
    ]
    .map(|(method, sparsity, weights)| (method.to_owned(), sparsity, weights.to_owned()));
    assert_eq!(names, expected);

    // The dense row is the model itself.
    let row = &found["rows"][0];
    let path = root.path().join("text.txt");
    let directory = model::directory();
    let score = json(&run(&[
        "perplexity",
        text(&directory),
        text(&path),
        "--json",
    ]));
    assert_eq!(row["perplexity"], score["perplexity"]);
    assert_eq!(row["text_perplexities"][0], score["perplexity"]);
    assert_eq!(row["accuracies"][0]["task"], "piqa");
    assert_eq!(row["accuracies"][0]["acc"], 1.0);
    let bytes = |index: usize| found["rows"][index]["bytes"].as_u64().expect("a number");
    assert!(bytes(1) < bytes(0) && bytes(3) < bytes(0) && bytes(4) < bytes(3));
    // SparseGPT is made for the inputs, on which its error counts.
    let layers = found["layers"][0]["tensors"].as_array().expect("a list");
    assert_eq!(layers.len(), 14);
    for tensor in layers {
        let error = |method: &str| tensor[method].as_f64().expect("a number");
        assert!(error("sparsegpt") < error("magnitude"), "{tensor}");
        assert!(error("magnitude_by_row") > 0.0, "{tensor}");
        // Nobody asked for it.
        assert!(tensor["wanda"].is_null(), "{tensor}");
    }

    let out = root.path().join("out");
    let saved: Value =
        serde_json::from_slice(&fs::read(out.join("results.json")).expect("a file")).expect("JSON");
    assert_eq!(saved, found);
    let table = fs::read_to_string(out.join("results.md")).expect("a file");
    for words in [
        "| sparsegpt+refit",
        "| dense, gptq",
        "## At 50 %",
        "piqa acc_norm",
        "quality.svg",
    ] {
        assert!(table.contains(words), "no {words} in {table}");
    }
    let plot = fs::read_to_string(out.join("quality.svg")).expect("a file");
    assert!(plot.starts_with("<svg") && plot.ends_with("</svg>\n"));
    assert_eq!(plot.matches("</title></circle>").count(), 4);
    let left = fs::read_dir(&out).expect("a directory").count();
    assert_eq!(left, 3, "nothing is left but the report");

    // Another kind of numbers is added, and the others are not measured again.
    let marked = out.join("results.json");
    let mut edited = saved;
    edited["rows"][3]["perplexity"] = 12345.0.into();
    fs::write(&marked, edited.to_string()).expect("a file");
    let more = [
        &narrow[..],
        &["--weights", "int4,bf16", "--eval", "piqa.jsonl", "--json"],
    ]
    .concat();
    let found = json(&report(root.path(), &more));
    assert_eq!(found["rows"][3]["perplexity"], 12345.0);
    assert_eq!(rows(&found).len(), 7 + 4);

    // Without questions it is another report.
    let other = report(root.path(), &narrow);
    fails(&other, 1, &["results.json", "another model", "--output"]);
}

#[test]
fn magnitude_alone_needs_no_calibration() {
    let root = folder();
    let plain = |options: &[&str]| {
        let mut command = sparamx();
        command.current_dir(root.path());
        command.args(["report", text(&model::directory()), "--text", "text.txt"]);
        command.args(["-o", "out", "--sparsities", "0.5", "--json"]);
        output(command.args(options))
    };
    // The sample would have more windows than anybody waits for here.
    let found = json(&plain(&[
        "--methods",
        "magnitude",
        "--weights",
        "bf16,int8",
    ]));
    assert_eq!(rows(&found).len(), 4);
    assert_eq!(found["layers"].as_array().map(Vec::len), Some(0));
    let inputs = found["inputs"].as_object().expect("inputs");
    assert!(!inputs.contains_key("calibration"), "{found}");
    let useless = plain(&["--methods", "magnitude", "--calibration", "text.txt"]);
    fails(&useless, 2, &["--calibration changes nothing"]);

    // What is calibrated goes into the same table, by whatever text.
    let more = ["--methods", "wanda", "--weights", "bf16", "--calibration"];
    let calibrated = [
        &more[..],
        &["calibration.txt", "--calibration-tokens", "64"],
    ]
    .concat();
    let found = json(&plain(&calibrated));
    assert_eq!(rows(&found).len(), 5);
    assert_eq!(found["inputs"]["calibration"], "calibration.txt");
    assert_eq!(found["layers"].as_array().map(Vec::len), Some(1));
    // Another text would mix two.
    let other = [&more[..], &["text.txt", "--calibration-tokens", "64"]].concat();
    fails(&plain(&other), 1, &["results.json", "another model"]);
}

#[test]
fn what_cannot_be_reported_is_refused() {
    let root = folder();
    for (options, words) in [
        (
            &["--methods", "obs"][..],
            &["'obs'", "--methods", "sparsegpt+refit"][..],
        ),
        (&["--sparsities", "0.5,1"], &["'1'", "--sparsities"]),
        (&["--weights", "fp8"], &["'fp8'", "int8"]),
        (&["--group", "100"], &["--group", "32, 64 or 128"]),
        (&["--ctx", "1"], &["--ctx", "at least 2"]),
        (&["--limit", "0"], &["--limit"]),
        (&["--limit", "5"], &["--limit", "--eval"]),
    ] {
        fails(&report(root.path(), options), 2, words);
    }
    let missing = ["--eval", "nothing.jsonl"];
    fails(&report(root.path(), &missing), 1, &["nothing.jsonl"]);
    assert!(!root.path().join("out").exists());

    let packed = root.path().join("packed");
    let directory = model::directory();
    let pack = [
        "compress",
        text(&directory),
        "-o",
        text(&packed),
        "--sparsity",
        "0.5",
    ];
    stdout(&run(&pack));
    let text_file = root.path().join("text.txt");
    let out = root.path().join("out");
    let again = [
        "report",
        text(&packed),
        "--text",
        text(&text_file),
        "-o",
        text(&out),
    ];
    fails(&run(&again), 1, &["packed already", "dense"]);
}
