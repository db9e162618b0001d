//! Damaged and contradictory models: one line that names the file, never a panic.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fails, model, run, stdout, text};
use serde_json::{Value, json};
use tempfile::TempDir;

fn packed() -> TempDir {
    let root = TempDir::new().expect("a directory");
    stdout(&run(&[
        "compress",
        text(&model::directory()),
        "-o",
        text(&root.path().join("m")),
        "--sparsity",
        "0.5",
    ]));
    root
}

fn inspect(dir: &Path) -> Output {
    run(&["inspect", text(dir), "--json"])
}

/// Success, or a failure of one line that names the model: nothing else may come of damage that cannot always be told.
#[track_caller]
fn no_panic(output: &Output, directory: &str) {
    if !output.status.success() {
        fails(output, 1, &[directory]);
    }
}

fn header_bytes(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize
}

/// First byte of a tensor in the file.
fn start_of(file: &[u8], tensor: &str) -> usize {
    let end = header_bytes(file);
    let header: Value = serde_json::from_slice(&file[8..end]).expect("a header");
    end + header[tensor]["data_offsets"][0]
        .as_u64()
        .expect("an offset") as usize
}

#[test]
fn a_file_cut_short_is_refused() {
    for (what, root, dir) in [("dense", model::made(), ""), ("packed", packed(), "m")] {
        let dir = root.path().join(dir);
        let path = dir.join("model.safetensors");
        let whole = fs::read(&path).expect("a file");
        let header = header_bytes(&whole);
        for len in [
            0,
            4,
            8,
            9,
            header / 2,
            header,
            header + 1,
            whole.len() / 2,
            whole.len() - 1,
        ] {
            fs::write(&path, &whole[..len]).expect("a file");
            let line = fails(&inspect(&dir), 1, &["model.safetensors"]);
            assert!(!line.contains("panic"), "{what} {len}: {line}");
        }
        let mut long = whole.clone();
        long.push(0);
        fs::write(&path, &long).expect("a file");
        fails(&inspect(&dir), 1, &["model.safetensors"]);
    }
}

#[test]
fn damage_to_a_packed_weight_is_told() {
    let root = packed();
    let dir = root.path().join("m");
    let path = dir.join("model.safetensors");
    let whole = fs::read(&path).expect("a file");
    let weight = "model.layers.1.mlp.up_proj.weight";
    // A bit of the masks: their count no longer fits the offsets. An offset. A value that becomes NaN.
    let damages: [(&str, usize, u8); 3] = [
        (".mask", 4, 0x01),
        (".offsets", 8, 0x04),
        (".values", 1, 0x7f),
    ];
    for (part, at, bits) in damages {
        let mut damaged = whole.clone();
        let byte = start_of(&whole, &format!("{weight}{part}")) + at;
        damaged[byte] ^= bits;
        if part == ".values" {
            damaged[byte - 1] = 0xff;
            damaged[byte] = 0x7f;
        }
        fs::write(&path, &damaged).expect("a file");
        fails(&inspect(&dir), 1, &["model.safetensors", weight]);
        fails(
            &run(&["run", text(&dir), "x", "-n", "1"]),
            1,
            &["model.safetensors", weight],
        );
    }
}

#[test]
fn any_flipped_bit_ends_in_a_result_or_one_line() {
    let root = packed();
    let dir = root.path().join("m");
    let path = dir.join("model.safetensors");
    let whole = fs::read(&path).expect("a file");
    let header = header_bytes(&whole);
    // Every byte of the length, many of the header, some of the rest.
    let places = (0..8)
        .chain((8..header).step_by(97))
        .chain((header..whole.len()).step_by(9973));
    for (turn, place) in places.enumerate() {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (turn % 8);
        fs::write(&path, &damaged).expect("a file");
        no_panic(&inspect(&dir), text(&dir));
    }
}

/// A dense model whose header was rewritten.
fn with_header(change: impl Fn(&mut Value)) -> TempDir {
    let root = model::made();
    let path = root.path().join("model.safetensors");
    let file = fs::read(&path).expect("a file");
    let end = header_bytes(&file);
    let mut header: Value = serde_json::from_slice(&file[8..end]).expect("a header");
    change(&mut header);
    let header = header.to_string();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(header.as_bytes());
    changed.extend_from_slice(&file[end..]);
    fs::write(&path, changed).expect("a file");
    root
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let up = "model.layers.0.mlp.up_proj.weight";
    let gate = "model.layers.0.mlp.gate_proj.weight";
    let spoiled = [
        with_header(|header| header[up]["data_offsets"] = header[gate]["data_offsets"].clone()),
        with_header(|header| header[up]["shape"] = json!([u64::MAX, 64])),
        with_header(|header| header[up]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        with_header(|header| header[up]["shape"] = json!([-1, 64])),
        with_header(|header| header[up]["data_offsets"] = json!([64, 0])),
        with_header(|header| header[up]["data_offsets"] = json!([u64::MAX - 1, u64::MAX])),
        with_header(|header| header[up]["dtype"] = json!("F999")),
        with_header(|header| *header = json!([])),
        with_header(|header| *header = json!({})),
    ];
    for root in spoiled {
        fails(&inspect(root.path()), 1, &[text(root.path())]);
    }
    for length in [0u64, 1 << 20, 1 << 33, u64::MAX - 7, u64::MAX] {
        let root = model::made();
        let path = root.path().join("model.safetensors");
        let mut file = fs::read(&path).expect("a file");
        file[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, file).expect("a file");
        fails(&inspect(root.path()), 1, &["model.safetensors"]);
    }
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_named() {
    let up = "model.layers.0.mlp.up_proj.weight";
    let take = |header: &mut Value| {
        header
            .as_object_mut()
            .expect("an object")
            .remove(up)
            .expect("a tensor")
    };
    let renamed = with_header(|header| {
        let entry = take(header);
        header["model.layers.0.mlp.upward.weight"] = entry;
    });
    fails(&inspect(renamed.path()), 1, &[up]);
    let turned = with_header(|header| header[up]["shape"] = json!([64, 96]));
    fails(
        &inspect(turned.path()),
        1,
        &["model.safetensors", up, "[96, 64]", "[64, 96]"],
    );
    let retyped = with_header(|header| header[up]["dtype"] = json!("I16"));
    fails(
        &inspect(retyped.path()),
        1,
        &["model.safetensors", up, "I16"],
    );
}

/// A model whose `config.json` was changed.
fn with_config(change: impl Fn(&mut Value)) -> TempDir {
    let root = model::made();
    let mut config = model::config();
    change(&mut config);
    fs::write(root.path().join("config.json"), config.to_string()).expect("a file");
    root
}

#[test]
fn a_configuration_that_lacks_or_contradicts_is_refused() {
    for field in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ] {
        let root = with_config(|config| {
            config.as_object_mut().expect("an object").remove(field);
        });
        fails(&inspect(root.path()), 1, &["config.json", field]);
        let root = with_config(|config| config[field] = json!("many"));
        fails(&inspect(root.path()), 1, &["config.json", field]);
    }
    // More than the tensors have.
    for (field, value) in [
        ("hidden_size", 128),
        ("intermediate_size", 128),
        ("num_hidden_layers", 3),
        ("vocab_size", 300),
    ] {
        let root = with_config(|config| config[field] = json!(value));
        fails(&inspect(root.path()), 1, &[text(root.path()), "weight"]);
    }
    let family = with_config(|config| config["architectures"] = json!(["MambaForCausalLM"]));
    fails(
        &inspect(family.path()),
        1,
        &["config.json", "MambaForCausalLM"],
    );
    for nonsense in ["", "{", "[]", "null", "\u{0}"] {
        let root = model::made();
        fs::write(root.path().join("config.json"), nonsense).expect("a file");
        fails(&inspect(root.path()), 1, &["config.json"]);
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    fails(
        &run(&["inspect", "./no/such/directory"]),
        1,
        &["./no/such/directory", "no such directory", "org/name"],
    );
    fails(
        &run(&["inspect", "gpt2"]),
        1,
        &["gpt2", "no such directory"],
    );
    let empty = TempDir::new().expect("a directory");
    fails(&inspect(empty.path()), 1, &["config.json"]);
    let root = model::made();
    fails(
        &run(&["inspect", text(&root.path().join("config.json"))]),
        1,
        &["give the directory"],
    );
    fs::remove_file(root.path().join("model.safetensors")).expect("a file");
    fails(
        &inspect(root.path()),
        1,
        &[text(root.path()), "safetensors"],
    );
    let index = root.path().join("model.safetensors.index.json");
    fs::write(&index, model::index("model-00001-of-00002.safetensors")).expect("a file");
    fails(
        &inspect(root.path()),
        1,
        &[
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
        ],
    );
    fs::write(&index, model::index("../../etc/passwd")).expect("a file");
    fails(
        &inspect(root.path()),
        1,
        &["model.safetensors.index.json", "etc/passwd"],
    );
}

#[test]
fn nan_in_a_weight_is_named_and_nothing_is_written() {
    let root = model::made();
    let mut tensors = model::tensors();
    let spoiled = tensors
        .iter_mut()
        .find(|tensor| tensor.name.contains("1.self_attn.k_proj"))
        .expect("a tensor");
    spoiled.bytes[10..12].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(
        root.path().join("model.safetensors"),
        model::safetensors(&tensors),
    )
    .expect("a file");
    let parent = TempDir::new().expect("a directory");
    let output = parent.path().join("packed");
    let refused = run(&[
        "compress",
        text(root.path()),
        "-o",
        text(&output),
        "--sparsity",
        "0.5",
    ]);
    let line = fails(
        &refused,
        1,
        &[
            "model.safetensors",
            "model.layers.1.self_attn.k_proj.weight",
        ],
    );
    assert!(line.to_lowercase().contains("nan"), "{line}");
    assert_eq!(
        fs::read_dir(parent.path()).expect("a directory").count(),
        0,
        "something is left"
    );
}

#[test]
fn a_tokenizer_that_cannot_be_used_is_refused() {
    let root = model::made();
    let path = root.path().join("tokenizer.json");
    let run_it = || run(&["run", text(root.path()), "x", "-n", "1"]);
    let mut tokenizer = model::tokenizer();
    tokenizer["post_processor"]["special_tokens"] = json!({});
    fs::write(&path, tokenizer.to_string()).expect("a file");
    let refused = run_it();
    fails(&refused, 1, &["tokenizer.json", "post_processor"]);
    no_panic(&refused, text(root.path()));
    fs::write(&path, "{\"model\": 3}").expect("a file");
    fails(&run_it(), 1, &["tokenizer.json"]);
    fs::remove_file(&path).expect("a file");
    fails(&run_it(), 1, &["tokenizer.json"]);
}

#[test]
fn tokens_that_the_model_lacks_are_refused_where_a_prompt_has_them() {
    let root = model::made();
    let mut tokenizer = model::tokenizer();
    let mut pad = tokenizer["added_tokens"][0].clone();
    (pad["id"], pad["content"]) = (json!(model::VOCAB), json!("<pad>"));
    tokenizer["added_tokens"]
        .as_array_mut()
        .expect("a list")
        .push(pad);
    let write = |tokenizer: &Value| {
        fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    };
    write(&tokenizer);
    let done = run(&["run", text(root.path()), "x", "-n", "1"]);
    let said = |done: &Output| String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!said(&done).contains("warning"), "{}", said(&done));
    stdout(&done);
    fails(
        &run(&["run", text(root.path()), "x<pad>", "-n", "1"]),
        1,
        &["<pad>", "258"],
    );
    tokenizer["model"]["vocab"]["zebra"] = json!(model::VOCAB + 40);
    write(&tokenizer);
    let done = run(&["run", text(root.path()), "x", "-n", "1"]);
    assert!(
        said(&done).contains("warning: tokenizer.json")
            && said(&done).contains("'zebra' with id 298"),
        "{}",
        said(&done)
    );
    stdout(&done);
}

#[test]
fn prompts_that_cannot_be_run_are_refused() {
    let directory = model::directory();
    let long = "x".repeat(model::CONTEXT + 1);
    let refused = run(&["run", text(&directory), &long]);
    fails(&refused, 1, &[&model::CONTEXT.to_string(), "prompt"]);

    let root = model::made();
    let mut tokenizer = model::tokenizer();
    tokenizer["post_processor"] = Value::Null;
    fs::write(root.path().join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    fs::write(
        root.path().join("tokenizer_config.json"),
        r#"{"bos_token": null}"#,
    )
    .expect("a file");
    let mut config = model::config();
    config["bos_token_id"] = Value::Null;
    fs::write(root.path().join("config.json"), config.to_string()).expect("a file");
    fails(
        &run(&["run", text(root.path()), "", "-n", "1"]),
        1,
        &["prompt is empty", "BOS"],
    );
    stdout(&run(&["run", text(root.path()), "x", "-n", "1"]));
}

#[test]
fn a_model_larger_than_memory_is_refused_with_what_it_needs() {
    // Four tebibytes of embedding and output head, of which the disk holds nothing.
    let (vocab, hidden) = (1 << 24, 1 << 16);
    let root = model::made();
    let mut config = model::config();
    (config["vocab_size"], config["hidden_size"]) = (json!(vocab), json!(hidden));
    fs::write(root.path().join("config.json"), config.to_string()).expect("a file");
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in model::shapes(vocab, hidden) {
        let start = end;
        end += shape.iter().product::<usize>() as u64 * 2;
        header.insert(
            name,
            json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }),
        );
    }
    let header = Value::Object(header).to_string();
    let path = root.path().join("model.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length, header.as_bytes()].concat()).expect("a file");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("a file");
    if let Err(error) = file.set_len((length.len() + header.len()) as u64 + end) {
        println!("SKIPPED: this file system has no files of 4 TiB ({error})");
        return;
    }
    fails(
        &run(&["run", text(root.path()), "x", "-n", "1"]),
        1,
        &["memory", "need"],
    );
}

#[test]
fn benchmarks_larger_than_memory_are_refused_before_anything_is_built() {
    let many: Vec<String> = (1..500).map(|index| format!("0.{index:03}")).collect();
    let refused = run(&[
        "bench",
        "--shape",
        "llama3-8b",
        "--sparsity",
        &many.join(","),
    ]);
    fails(
        &refused,
        1,
        &["499 models", "TiB", "memory", "measure fewer"],
    );
}
