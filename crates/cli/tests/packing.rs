//! `compress` and `inspect` on a model made in the test.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fails, json, model, output, run, sparamx, stdout, text};
use sparamx_cpu::{Cpu, Isa};
use sparamx_testkit::names;
use tempfile::TempDir;

/// The model that ships.
fn stories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m")
}

fn root() -> TempDir {
    TempDir::new().expect("a directory")
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
        names(&packed),
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(names(root.path()), ["packed"]);

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
    assert_eq!(names(root.path()), ["notes.txt"]);
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

/// A text of the kind that the model that ships was trained on.
const STORY: &str = "\
Once upon a time, there was a little girl named Anna. She lived in a small house with her mom and her dog, Max. Every day Anna and \
Max went to the park to play. One day, they saw a big red ball under a tree. Anna wanted to play with it, but a boy named Ben came \
and said, \"That is my ball!\" Anna was sad, but she gave the ball to Ben. Ben saw that Anna was sad. He smiled and said, \"We can \
play together.\" Anna was very happy. They threw the ball and Max ran after it. They played all day. When the sun went down, Anna \
said, \"Thank you, Ben. You are a good friend.\" Then she went home and told her mom about her new friend. Her mom was proud of her. \
She said, \"It is good to share.\" Anna hugged her mom and went to bed. From that day on, Anna, Ben and Max played in the park every \
day, and they were the best of friends.\n";

/// The model that ships, rounded to `weights` at `sparsity`, and what `compress` said.
fn quantized(root: &Path, weights: &str, sparsity: &str) -> (PathBuf, serde_json::Value) {
    let output = root.join(format!("{weights}-{sparsity}"));
    let summary = json(&run(&[
        "compress",
        text(&stories()),
        "-o",
        text(&output),
        "--weights",
        weights,
        "--sparsity",
        sparsity,
        "--json",
    ]));
    (output, summary)
}

fn perplexity(model: &Path, story: &Path) -> f64 {
    let score = json(&run(&["perplexity", text(model), text(story), "--json"]));
    score["perplexity"].as_f64().expect("a number")
}

#[test]
fn quantized_models_predict_like_the_one_they_are_made_from() {
    let root = root();
    let story = root.path().join("story.txt");
    fs::write(&story, STORY).expect("a file");
    for sparsity in ["0", "0.5"] {
        let (reference, _) = quantized(root.path(), "bf16", sparsity);
        let expected = perplexity(&reference, &story);
        // A step of int8 is 1/127 of the largest weight of a row, so with weights of normal distribution (largest of a few
        // hundred: three standard deviations) the noise is 3 / 127 / sqrt(12), 0.7 % of the weights. Its effect on a loss
        // near its minimum is quadratic: next to nothing. What is left is the rounding of activations, as large again. The
        // step of int4 is 16 times as large; 2 % and 10 % leave room for that, and a wrong scale anywhere does not fit.
        for (weights, limit) in [("int8", 0.02), ("int4", 0.1)] {
            let (model, _) = quantized(root.path(), weights, sparsity);
            let found = perplexity(&model, &story);
            let difference = (found / expected).ln().abs();
            assert!(
                difference < limit,
                "{weights} at {sparsity}: {found}, bf16 {expected}"
            );
        }
    }
}

#[test]
fn quantized_models_are_listed_and_run() {
    let root = root();
    let mut sizes = Vec::new();
    for (weights, dtype) in [("int8", "I8"), ("int4", "I4")] {
        for (sparsity, format, kernel) in [("0", "dense", "linear_"), ("0.5", "strip16", "_bm")] {
            let (model, summary) = quantized(root.path(), weights, sparsity);
            let sparse = format == "strip16";
            assert_eq!(summary["weights"], weights);
            assert_eq!(summary["packed_tensors"], if sparse { 42 } else { 0 });
            assert_eq!(summary["quantized_tensors"], if sparse { 0 } else { 42 });
            sizes.push(summary["bytes_after"].as_u64().expect("a number"));

            let listing = json(&run(&["inspect", text(&model), "--json"]));
            assert_eq!(listing["totals"]["bytes_packed"], summary["bytes_after"]);
            assert_eq!(listing["totals"]["bytes_dense"], summary["bytes_before"]);
            let tensors = listing["tensors"].as_array().expect("a list");
            let projections = tensors
                .iter()
                .filter(|tensor| tensor["name"].as_str().expect("text").contains("_proj"));
            for tensor in projections {
                assert_eq!(tensor["format"], format, "{tensor}");
                assert_eq!(tensor["dtype"], dtype, "{tensor}");
                let name = tensor["kernel_m1"].as_str().expect("text");
                assert!(name.contains(kernel) && !name.contains("bf16"), "{name}");
                let zeros = tensor["sparsity"].as_f64().expect("a number");
                assert!(!sparse || (0.499..0.54).contains(&zeros), "{tensor}");
            }

            let tell = |threads: &str| {
                let args = [
                    "run",
                    text(&model),
                    "Once upon a time",
                    "--json",
                    "--temperature",
                    "0",
                    "-n",
                    "24",
                    "-t",
                    threads,
                ];
                json(&run(&args))
            };
            let told = tell("1");
            assert_eq!(told["ids"], tell("2")["ids"]);
            let words = told["text"].as_str().expect("text").split_whitespace();
            assert!(words.count() >= 12, "{told}");
        }
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
}

#[test]
fn a_benchmark_names_the_numbers_of_a_model() {
    let root = root();
    for (weights, sparsity) in [("bf16", "0"), ("int8", "0.5"), ("int4", "0.5")] {
        let (model, _) = quantized(root.path(), weights, sparsity);
        let args = ["-p", "4", "-n", "2", "-r", "1", "-t", "1", "--json"];
        let report = json(&run(&[&["bench", text(&model)], &args[..]].concat()));
        for row in report["rows"].as_array().expect("a list") {
            assert_eq!(row["weights"], weights, "{row}");
            let found = row["sparsity"].as_f64().expect("a number");
            let asked: f64 = sparsity.parse().expect("a number");
            assert!((found - asked).abs() < 0.05, "{row}");
        }
    }
}

#[test]
fn every_instruction_set_rounds_a_quantized_model_alike() {
    let root = root();
    let story = root.path().join("story.txt");
    fs::write(&story, STORY).expect("a file");
    for weights in ["int8", "int4"] {
        let (model, _) = quantized(root.path(), weights, "0.5");
        let native = perplexity(&model, &story);
        for isa in Isa::ALL
            .into_iter()
            .filter(|&isa| isa <= Cpu::detect().expect("a CPU").isa())
        {
            let mut command = sparamx();
            command.env("SPARAMX_ISA", isa.to_string());
            let score = output(command.args(["perplexity", text(&model), text(&story), "--json"]));
            let found = json(&score)["perplexity"].as_f64().expect("a number");
            // The integer sums are the same; attention, norms and the output head are not.
            assert!(
                (found / native).ln().abs() < 0.01,
                "{isa}: {found}, {native}"
            );
        }
    }
}

#[test]
fn numbers_and_groups_that_do_not_exist_are_wrong_usage() {
    let root = root();
    let dense = model::directory();
    let packed = root.path().join("packed");
    for (options, words) in [
        (&["--weights", "fp8"][..], &["fp8", "int8"][..]),
        (
            &["--weights", "int4", "--group", "48"],
            &["48", "32, 64 or 128"],
        ),
        (
            &["--weights", "int8", "--group", "64"],
            &["--group", "int4"],
        ),
        (&["--group", "64"], &["--group", "int4"]),
    ] {
        let args = [&["compress", text(&dense), "-o", text(&packed)], options].concat();
        fails(&run(&args), 2, words);
        assert!(!packed.exists());
    }
}

#[test]
fn the_output_head_is_quantized_on_demand() {
    let root = root();
    let dense = model::directory();
    for (options, head) in [(&[][..], "dense BF16"), (&["--include-lm-head"], "I8")] {
        let packed = root.path().join(head);
        let args = [
            "compress",
            text(&dense),
            "-o",
            text(&packed),
            "-q",
            "--weights",
            "int8",
        ];
        stdout(&run(&[&args[..], options].concat()));
        let listing = json(&run(&["inspect", text(&packed), "--json"]));
        let tensors = listing["tensors"].as_array().expect("a list");
        let tensor = tensors
            .iter()
            .find(|tensor| tensor["name"] == "lm_head.weight");
        let tensor = tensor.expect("an output head");
        assert!(
            head.ends_with(tensor["dtype"].as_str().expect("text")),
            "{tensor}"
        );
        stdout(&run(&["run", text(&packed), "ab", "-n", "4", "-q"]));
    }
}
