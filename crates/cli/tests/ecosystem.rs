//! Models in the forms of other programs, from the command line.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fails, json, run, stdout, text};

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/checkpoints");
    fixtures.join(name)
}

fn generated(model: &Path) -> serde_json::Value {
    json(&run(&[
        "run",
        text(model),
        "the cat sat on",
        "-n",
        "8",
        "--temperature",
        "0",
        "--seed",
        "1",
        "--no-chat-template",
        "--json",
    ]))
}

/// A GGUF file runs by itself, and its text is that of the folder made from it.
#[test]
fn a_gguf_file_is_a_model() {
    for name in ["llama", "qwen2"] {
        let file = fixture(&format!("gguf/{name}.gguf"));
        let root = tempfile::tempdir().expect("a directory");
        let folder = root.path().join("folder");
        let summary = json(&run(&[
            "export",
            text(&file),
            "-o",
            text(&folder),
            "--format",
            "dense",
            "--json",
        ]));
        assert_eq!(summary["bitmask_tensors"], 0);
        let packed = root.path().join("packed");
        stdout(&run(&[
            "compress",
            text(&file),
            "-o",
            text(&packed),
            "--sparsity",
            "0.5",
        ]));
        assert_eq!(
            generated(&file)["prompt_ids"],
            generated(&folder)["prompt_ids"],
            "{name}"
        );
        assert_eq!(
            generated(&packed)["prompt_ids"],
            generated(&folder)["prompt_ids"],
            "{name}"
        );
        let listing = json(&run(&["inspect", text(&file), "--json"]));
        assert_eq!(listing["tensors"][0]["format"], "gguf");
        assert_eq!(listing["tensors"][0]["dtype"], "F16");
    }
}

/// A bitmask runs as the dense model does.
#[test]
fn bitmasks_run_as_the_dense_model() {
    let root = tempfile::tempdir().expect("a directory");
    // The fixtures have no tokenizer; that of a GGUF file with as many tokens does.
    let tokenizer = root.path().join("tokenizer");
    stdout(&run(&[
        "export",
        text(&fixture("gguf/llama.gguf")),
        "-o",
        text(&tokenizer),
        "--format",
        "dense",
    ]));
    let ids = ["dense", "bitmask-gen1", "bitmask-gen2"].map(|name| {
        let folder = root.path().join(name);
        fs::create_dir(&folder).expect("a directory");
        for (from, file) in [
            (&fixture(name), "config.json"),
            (&fixture(name), "model.safetensors"),
            (&tokenizer, "tokenizer.json"),
            (&tokenizer, "tokenizer_config.json"),
        ] {
            fs::copy(from.join(file), folder.join(file)).expect("a copy");
        }
        generated(&folder)["ids"].clone()
    });
    assert!(ids[0].as_array().is_some_and(|ids| !ids.is_empty()));
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
}

#[test]
fn inspect_says_what_became_of_levels_and_zeros() {
    let text_of = |name: &str| stdout(&run(&["inspect", text(&fixture(name))]));
    let dense = text_of("dense");
    assert!(dense.contains("of all weights are zeros and none are packed: sparamx compress MODEL -o DIR --sparsity 0"), "{dense}");
    let bitmask = text_of("bitmask-gen2");
    assert!(
        bitmask.contains("sparse-bitmask bf16") && !bitmask.contains("none are packed"),
        "{bitmask}"
    );
    assert!(text_of("int4").contains("pack-quantized i4"));
    let rounded = text_of("int8");
    assert!(
        rounded.contains("7 quantized tensors run in bf16: levels of -128"),
        "{rounded}"
    );
}

#[test]
fn zeros_of_a_dense_file_are_packed_as_they_are() {
    let root = tempfile::tempdir().expect("a directory");
    let packed = root.path().join("packed");
    let summary = json(&run(&[
        "compress",
        text(&fixture("dense")),
        "-o",
        text(&packed),
        "--json",
    ]));
    assert_eq!(summary["packed_tensors"], 7);
    let [before, after] =
        [&fixture("dense"), &packed].map(|model| json(&run(&["inspect", text(model), "--json"])));
    assert_eq!(before["totals"]["sparsity"], after["totals"]["sparsity"]);
    assert_eq!(after["totals"]["packed_tensors"], 7);
}

#[test]
fn what_is_not_supported_is_named_with_the_way_out() {
    let root = tempfile::tempdir().expect("a directory");
    let config = fs::read_to_string(fixture("int4").join("config.json")).expect("a file");
    let folder = root.path().join("gptq");
    fs::create_dir(&folder).expect("a directory");
    fs::copy(
        fixture("int4").join("model.safetensors"),
        folder.join("model.safetensors"),
    )
    .expect("a copy");
    fs::write(
        folder.join("config.json"),
        config.replace("compressed-tensors", "gptq"),
    )
    .expect("a file");
    fails(
        &run(&["inspect", text(&folder)]),
        1,
        &["config.json", "'gptq'", "pack-quantized", "sparse-bitmask"],
    );
    let file = root.path().join("model.gguf");
    fs::write(&file, "GGUF").expect("a file");
    fails(
        &run(&["inspect", text(&file)]),
        1,
        &["model.gguf", "'version'", "download or convert it again"],
    );
    fs::write(&file, "text").expect("a file");
    fails(
        &run(&["run", text(&file), "x"]),
        1,
        &["model.gguf", "not GGUF", "directory"],
    );
    fails(
        &run(&["run", "none.gguf", "x"]),
        1,
        &["none.gguf", "no such directory", "a GGUF file"],
    );
    let full = root.path().join("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("file"), "text").expect("a file");
    let export = run(&[
        "export",
        text(&fixture("dense")),
        "-o",
        text(&full),
        "--format",
        "dense",
    ]);
    fails(&export, 1, &["not an empty directory"]);
    fails(
        &run(&["export", text(&fixture("dense")), "-o", text(&full)]),
        2,
        &["--format"],
    );
}
