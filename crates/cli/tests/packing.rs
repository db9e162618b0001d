//! `compress` and `inspect` on a model made in the test.

mod common;

use std::fs;
use std::path::Path;

use common::{fails, json, model, output, run, sparamx, stdout, text};
use tempfile::TempDir;

fn root() -> TempDir {
    TempDir::new().expect("a directory")
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> = names
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_is_pruned_packed_and_listed() {
    let root = root();
    let packed = root.path().join("packed");
    let dense = model::directory();
    let summary = json(&run(&[
        "compress",
        text(&dense),
        "-o",
        text(&packed),
        "--sparsity",
        "0.5",
        "--json",
    ]));
    assert_eq!(summary["packed_tensors"], 14);
    assert_eq!(summary["sparsity"], 0.5);
    assert!(summary["bytes_after"].as_u64() < summary["bytes_before"].as_u64());
    assert_eq!(
        entries(&packed),
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(entries(root.path()), ["packed"]);

    let listing = json(&run(&["inspect", text(&packed), "--json"]));
    assert_eq!(listing["architecture"], "llama");
    assert_eq!(listing["totals"]["packed_tensors"], 14);
    assert_eq!(listing["totals"]["sparsity_of_packed"], 0.5);
    let tensors = listing["tensors"].as_array().expect("a list");
    let total = |field: &str| {
        tensors
            .iter()
            .map(|tensor| tensor[field].as_u64().expect("a number"))
            .sum::<u64>()
    };
    assert_eq!(listing["totals"]["bytes_packed"], total("bytes_packed"));
    assert_eq!(listing["totals"]["bytes_packed"], summary["bytes_after"]);
    assert_eq!(listing["totals"]["bytes_dense"], summary["bytes_before"]);
    for tensor in tensors {
        let projection = tensor["name"].as_str().expect("text").contains("_proj");
        assert_eq!(
            tensor["format"],
            if projection { "strip16" } else { "dense" },
            "{tensor}"
        );
        let name = tensor["name"].as_str().expect("text");
        let multiplied = projection || name == "lm_head.weight";
        assert_eq!(tensor["kernel_m1"].is_string(), multiplied, "{tensor}");
        assert_eq!(tensor["kernel_large_m"].is_string(), multiplied, "{tensor}");
        if projection {
            assert_eq!(tensor["sparsity"], 0.5, "{tensor}");
            assert!(
                tensor["kernel_m1"]
                    .as_str()
                    .expect("text")
                    .contains("bmbf16"),
                "{tensor}"
            );
        }
    }
    let table = stdout(&run(&["inspect", text(&packed)]));
    assert!(
        table.contains("model.layers.1.mlp.down_proj.weight"),
        "{table}"
    );
    assert!(
        table.contains("14 of them packed (50.0 % zeros)"),
        "{table}"
    );
}

#[test]
fn the_result_is_summed_up() {
    let root = root();
    let packed = root.path().join("deep/er/packed");
    let dense = model::directory();
    let table = stdout(&run(&[
        "compress",
        text(&dense),
        "-o",
        text(&packed),
        "--sparsity",
        "0.5",
        "--scope",
        "row",
        "-t",
        "1",
    ]));
    for word in ["packed", "dense", "all", "50.0 %", "1 file of weights"] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    assert!(packed.join("config.json").is_file());
}

#[test]
fn threads_change_no_byte() {
    let root = root();
    let dense = model::directory();
    let with = |threads: &str| {
        let packed = root.path().join(threads);
        stdout(&run(&[
            "compress",
            text(&dense),
            "-o",
            text(&packed),
            "--sparsity",
            "0.3",
            "-t",
            threads,
        ]));
        fs::read(packed.join("model.safetensors")).expect("a file")
    };
    assert!(with("1") == with("2"));
}

#[test]
fn a_model_without_zeros_is_left_dense_with_a_warning() {
    let root = root();
    let packed = root.path().join("packed");
    let dense = model::directory();
    let done = run(&["compress", text(&dense), "-o", text(&packed), "--json"]);
    let warning = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        warning.starts_with("warning: ") && warning.contains("--sparsity"),
        "{warning}"
    );
    assert_eq!(json(&done)["packed_tensors"], 0);
    let quiet = run(&[
        "compress",
        text(&dense),
        "-o",
        text(&root.path().join("quiet")),
        "-q",
    ]);
    assert!(quiet.stderr.is_empty());
    stdout(&quiet);
}

#[test]
fn an_output_directory_in_use_is_left_alone() {
    let root = root();
    let dense = model::directory();
    let file = root.path().join("notes.txt");
    fs::write(&file, "mine").expect("a file");
    for target in [root.path(), &file, &dense] {
        let refused = run(&[
            "compress",
            text(&dense),
            "-o",
            text(target),
            "--sparsity",
            "0.5",
        ]);
        fails(
            &refused,
            1,
            &[text(target), "choose another output directory"],
        );
    }
    assert_eq!(entries(root.path()), ["notes.txt"]);
    assert_eq!(fs::read_to_string(&file).expect("a file"), "mine");
}

#[test]
fn a_packed_model_is_not_packed_again() {
    let root = root();
    let (once, twice) = (root.path().join("once"), root.path().join("twice"));
    let dense = model::directory();
    stdout(&run(&[
        "compress",
        text(&dense),
        "-o",
        text(&once),
        "--sparsity",
        "0.5",
    ]));
    let refused = run(&[
        "compress",
        text(&once),
        "-o",
        text(&twice),
        "--sparsity",
        "0.7",
    ]);
    fails(&refused, 1, &[text(&once), "packed already", "dense model"]);
    assert!(!twice.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let disk = root();
    let dense = model::directory();
    let packed = disk.path().join("packed");
    let mut command = sparamx();
    command.args([
        "compress",
        text(&dense),
        "-o",
        text(&packed),
        "--sparsity",
        "0.5",
    ]);
    if let Some(done) = common::on_small_disk(&command, disk.path(), "100k") {
        // What is left on the disk would be listed on standard output.
        fails(&done, 1, &["packed", "the disk is full", "make room"]);
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let root = root();
    let big = root.path().join("big");
    fs::create_dir(&big).expect("a directory");
    model::write(&big);
    let mut child = sparamx()
        .args([
            "compress",
            text(&big),
            "-o",
            text(&root.path().join("packed")),
            "--sparsity",
            "0.5",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let id = child.id().to_string();
    // As soon as the staging folder is there; the work may be done by then, which is fine too.
    while entries(root.path()).len() == 1 && child.try_wait().expect("a status").is_none() {
        std::thread::yield_now();
    }
    let _ = output(std::process::Command::new("kill").args(["-INT", &id]));
    let done = child.wait_with_output().expect("ends");
    if done.status.success() {
        assert_eq!(entries(root.path()), ["big", "packed"]);
    } else {
        assert!(done.status.signal().is_none(), "{}", done.status);
        fails(&done, 1, &["interrupted", "nothing was written"]);
        assert_eq!(entries(root.path()), ["big"]);
    }
}
