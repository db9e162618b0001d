//! Models and texts whose files are not as they should be, and which are read all the same, or told from others.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fails, json, model, run, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model whose `config.json` ties the output head to the embedding, with a head of its own or without one.
fn tied(head: bool) -> TempDir {
    let root = model::made();
    let mut config = model::config();
    config["tie_word_embeddings"] = json!(true);
    fs::write(root.path().join("config.json"), config.to_string()).expect("a file");
    if !head {
        let mut tensors = model::tensors();
        tensors.retain(|tensor| tensor.name != "lm_head.weight");
        let bytes = model::safetensors(&tensors);
        fs::write(root.path().join("model.safetensors"), bytes).expect("a file");
    }
    root
}

/// The warnings of a run.
fn warnings(output: &Output) -> String {
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = lines.lines().filter(|line| line.starts_with("warning"));
    lines.collect()
}

fn ids(model: &Path) -> (Value, String) {
    let args = [
        "run",
        text(model),
        "ab",
        "-n",
        "12",
        "--temperature",
        "0",
        "--json",
    ];
    let output = run(&args);
    (json(&output)["ids"].clone(), warnings(&output))
}

#[test]
fn a_head_of_its_own_is_used_told_and_written_as_such() {
    let untied = ids(&model::directory()).0;
    let root = tied(true);
    let (found, warning) = ids(root.path());
    assert_eq!(found, untied);
    assert!(
        warning.starts_with("warning: ") && warning.contains("'lm_head.weight' that differs"),
        "{warning}"
    );
    let quiet = run(&["inspect", text(root.path()), "--json", "-q"]);
    assert_eq!(warnings(&quiet), "");
    for command in ["compress", "export"] {
        let out = root.path().join(command);
        let how = match command {
            "compress" => ["--sparsity", "0"],
            _ => ["--format", "dense"],
        };
        let mut args = vec![command, text(root.path()), "-o", text(&out), "-q"];
        args.extend(how);
        assert!(run(&args).status.success());
        let config = fs::read_to_string(out.join("config.json")).expect("a file");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["tie_word_embeddings"], false);
        assert_eq!(ids(&out), (untied.clone(), String::new()), "{command}");
    }
}

#[test]
fn a_head_that_is_the_embedding_is_not_compressed() {
    let root = tied(false);
    let out = root.path().join("out");
    let args = [
        "compress",
        text(root.path()),
        "-o",
        text(&out),
        "--sparsity",
        "0.5",
        "-q",
    ];
    fails(
        &run(&[&args[..], &["--include-lm-head"]].concat()),
        1,
        &["output head", "embedding", "--include-lm-head"],
    );
    assert!(!out.exists());
    assert!(run(&args).status.success());
}

#[test]
fn a_pointer_of_git_lfs_is_no_text() {
    let root = TempDir::new().expect("a directory");
    let file = root.path().join("wiki.test.raw");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    fs::write(&file, pointer).expect("a file");
    fails(
        &run(&["perplexity", text(&model::directory()), text(&file)]),
        1,
        &["wiki.test.raw", "git lfs pull"],
    );
}

#[cfg(unix)]
#[test]
fn texts_come_from_pipes_and_not_from_devices() {
    let model = model::directory();
    for file in ["/dev/zero", "/dev/random"] {
        fails(
            &run(&["perplexity", text(&model), file]),
            1,
            &[file, "a device"],
        );
    }
    let args = [
        "compress",
        text(&model),
        "-o",
        "/nowhere",
        "--sparsity",
        "0.5",
        "--method",
        "wanda",
    ];
    let args = [&args[..], &["--calibration", "/dev/zero"]].concat();
    assert!(!run(&args).status.success());
    let root = TempDir::new().expect("a directory");
    let pipe = root.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let words = "a b c ".repeat(40);
    let writer = {
        let (pipe, words) = (pipe.clone(), words.clone());
        std::thread::spawn(move || fs::write(pipe, words))
    };
    let piped = json(&run(&["perplexity", text(&model), text(&pipe), "--json"]));
    writer.join().expect("no panic").expect("written");
    let file = root.path().join("file");
    fs::write(&file, words).expect("a file");
    let read = json(&run(&["perplexity", text(&model), text(&file), "--json"]));
    assert_eq!(piped, read);
}
