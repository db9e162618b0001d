//! The options of the KV cache, `kv-report`, and `bench --kv-sparsity`.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fails, json, model, output, run, sparamx, stdout, text};
use serde_json::Value;
use tempfile::TempDir;

const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day \
                     she saw a big, red ball. She wanted to play with it, but it was too high up in a tree. ";

/// The model with room for 512 tokens, so that pages leave the window, and a text as long.
fn folder() -> TempDir {
    let root = model::made();
    let mut config = model::config();
    config["max_position_embeddings"] = 512.into();
    fs::write(root.path().join("config.json"), config.to_string()).expect("a file");
    fs::write(root.path().join("text.txt"), STORY.repeat(3)).expect("a file");
    root
}

fn perplexity(root: &Path, options: &[&str]) -> f64 {
    let mut command = sparamx();
    command
        .current_dir(root)
        .args(["perplexity", ".", "text.txt", "--json"]);
    let score = json(&output(command.args(options)));
    score["perplexity"].as_f64().expect("a number")
}

#[test]
fn what_is_pruned_and_what_stays_is_up_to_the_options() {
    let root = folder();
    let root = root.path();
    let dense = perplexity(root, &[]);
    for same in [
        &["--kv-sparsity", "0", "--kv-type", "bf16"][..],
        // The whole text is in the window, or among the first tokens.
        &["--kv-sparsity", "0.9", "--kv-window", "512"],
        &["--kv-sparsity", "0.9", "--kv-sinks", "512"],
    ] {
        assert_eq!(perplexity(root, same), dense, "{same:?}");
    }
    let pruned = [
        &["--kv-sparsity", "0.9"][..],
        &["--kv-sparsity", "0.9,0"],
        &["--kv-sparsity", "0,0.9"],
        &["--kv-sparsity", "0.9", "--kv-rule", "token"],
        &["--kv-sparsity", "0.9", "--kv-rule", "magnitude"],
        &["--kv-sparsity", "0.9", "--kv-sinks", "64"],
        &["--kv-sparsity", "0.9", "--kv-window", "128"],
        &["--kv-type", "int8"],
        &["--kv-type", "int8", "--kv-sparsity", "0.5"],
    ];
    let mut seen = vec![dense];
    for options in pruned {
        let other = perplexity(root, options);
        assert!(!seen.contains(&other), "{options:?} gives {other} again");
        assert!(
            (other / dense - 1.0).abs() < 0.2,
            "{options:?}: {other}, dense {dense}"
        );
        seen.push(other);
    }
}

#[test]
fn threads_and_guesses_do_not_change_what_a_sparse_cache_gives() {
    let root = folder();
    let generate = |options: &[&str]| {
        let mut command = sparamx();
        command
            .current_dir(root.path())
            .args(["run", ".", STORY, "-n", "100", "--json"]);
        command.args([
            "--temperature",
            "0.9",
            "--seed",
            "5",
            "--kv-sparsity",
            "0.5",
        ]);
        json(&output(command.args(options)))["ids"].clone()
    };
    let ids = generate(&["-t", "1"]);
    assert_eq!(ids.as_array().map(Vec::len), Some(100));
    assert_eq!(generate(&["-t", "3"]), ids);
    assert_eq!(generate(&["--no-speculation"]), ids);
}

#[test]
fn a_first_half_that_is_not_scored_is_read() {
    let root = folder();
    let mut command = sparamx();
    command
        .current_dir(root.path())
        .args(["perplexity", ".", "text.txt", "--json"]);
    let score = json(&output(command.args(["--ctx", "256", "--unscored", "128"])));
    // BOS and a token for each byte: whole windows of 256, and what is left over.
    let tokens = 1 + 3 * STORY.len();
    let rest = (tokens % 256).saturating_sub(128);
    assert_eq!(score["tokens"], tokens / 256 * 128 + rest);
}

fn kv_report(root: &Path, options: &[&str]) -> Output {
    let mut command = sparamx();
    command
        .current_dir(root)
        .args(["kv-report", ".", "--text", "text.txt", "-o", "out"]);
    output(command.args(options))
}

#[test]
fn the_report_measures_each_setting_once_and_goes_on() {
    let root = folder();
    let root = root.path();
    let narrow = [
        "--kv-sparsities",
        "0.5",
        "--kv-rules",
        "magnitude",
        "--json",
    ];
    let report = json(&kv_report(root, &narrow));
    let rows = report["rows"].as_array().expect("a list");
    // Dense in both types, and keys, values and both in each.
    assert_eq!(rows.len(), 2 + 2 * 3);
    let bits = |row: &Value| row["bits"].as_f64().expect("a number");
    assert_eq!(
        (rows[0]["precision"].as_str(), bits(&rows[0])),
        (Some("bf16"), 16.0)
    );
    for row in &rows[1..] {
        // These heads of 16 are padded in packed pages, so that there may be more than in dense ones.
        assert!(bits(row) > 4.0, "{row}");
        assert_eq!(row["tokens"], rows[0]["tokens"]);
    }
    for file in ["results.md", "kv-quality.svg"] {
        assert!(root.join("out").join(file).is_file(), "{file}");
    }
    let more = [
        "--kv-sparsities",
        "0.5",
        "--kv-rules",
        "magnitude,token",
        "--kv-types",
        "bf16",
    ];
    let again = kv_report(root, &more);
    assert!(stdout(&again).contains("kv-quality.svg"));
    let progress = String::from_utf8_lossy(&again.stderr);
    assert!(
        progress.contains("token") && !progress.contains("magnitude"),
        "{progress}"
    );

    let other = kv_report(root, &["--kv-window", "128", "--kv-sparsities", "0.5"]);
    fails(&other, 1, &["results.json", "--output"]);
}

#[test]
fn bench_compares_with_dense_keys_and_values() {
    let directory = folder();
    let bench = |sparsities: &[&str]| {
        let mut command = sparamx();
        command.args(["bench", text(directory.path()), "-n", "2", "-r", "2"]);
        command.args(["--depth", "256", "--json"]);
        for sparsity in sparsities {
            command.args(["--kv-sparsity", sparsity]);
        }
        output(&mut command)
    };
    let report = json(&bench(&["0.3,0.5;0.5"]));
    let rows = report["rows"].as_array().expect("a list");
    let sparsities = |report: &Value| -> Vec<f64> {
        let rows = report["rows"].as_array().expect("a list").iter();
        rows.map(|row| row["kv_sparsity"].as_f64().expect("a number"))
            .collect()
    };
    assert_eq!(sparsities(&report), [0.0, 0.4, 0.5]);
    for row in rows {
        assert_eq!(
            (row["depth"].as_u64(), row["test"].as_str()),
            (Some(256), Some("tg2"))
        );
        assert!(row["over_dense_kv"].as_f64().expect("a number") > 0.0);
    }
    assert_eq!(rows[0]["over_dense_kv"], 1.0);
    let repeated = bench(&["0.3:0.5", "0.5"]);
    assert_eq!(sparsities(&json(&repeated)), [0.0, 0.4, 0.5]);
    assert!(!String::from_utf8_lossy(&repeated.stderr).contains("warning"));
    let by_commas = bench(&["0.3:0.5,0.5"]);
    assert_eq!(sparsities(&json(&by_commas)), [0.0, 0.4, 0.5]);
    let warning = String::from_utf8_lossy(&by_commas.stderr);
    assert!(warning.contains("warning: --kv-sparsity"), "{warning}");
}

#[test]
fn wrong_values_are_refused() {
    let directory = model::directory();
    let refused = |option: &str, value: &str, word: &str| {
        fails(
            &run(&["run", text(&directory), "hi", option, value]),
            2,
            &[option, word],
        );
    };
    refused("--kv-sparsity", "1", "below 1");
    refused("--kv-sparsity", "0.5,x", "below 1");
    refused("--kv-type", "int4", "int8");
    refused("--kv-rule", "random", "query");
    refused("--kv-window", "-1", "whole number");
    refused("--kv-memory", "much", "size");
    let deep = run(&["bench", text(&directory), "--depth", "1000"]);
    fails(&deep, 2, &["context", "--depth"]);
    let too_deep = run(&[
        "bench",
        "--shape",
        "tinyllama-1.1b",
        "--depth",
        "1000000000000",
    ]);
    fails(&too_deep, 1, &["memory", "measure fewer"]);
    let small = run(&["run", text(&directory), "hi", "--kv-memory", "1K"]);
    fails(&small, 1, &["KV cache", "bytes"]);
}

#[test]
fn options_of_pages_that_nobody_packs_are_told() {
    let directory = model::directory();
    let said = |options: &[&str]| {
        let mut command = sparamx();
        command.args(["run", text(&directory), "abc", "-n", "1"]);
        let done = output(command.args(options));
        stdout(&done);
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let useless = "warning: --kv-window changes nothing without --kv-sparsity or --kv-type int8";
    assert!(said(&["--kv-window", "128"]).contains(useless));
    for options in [
        &["--kv-window", "128", "--kv-sparsity", "0.5"][..],
        &["--kv-window", "128", "--kv-type", "int8"],
        &["--kv-window", "128", "-q"],
        &[],
    ] {
        assert!(!said(options).contains("changes nothing"), "{options:?}");
    }
}
