//! `run`, `perplexity`, `eval` and `bench`: what they print, and that threads and instruction sets do not change it.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{fails, json, model, output, run, sparamx, stdout, text};
use serde_json::{Value, json};
use sparamx_cpu::{Cpu, Isa};
use sparamx_engine::PagedCache;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Input, LoadOptions, Model, Want, Workspace};
use tempfile::TempDir;

/// The model that ships, dense: enough of a model to have clear preferences.
fn stories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m")
}

/// The model that ships, pruned and packed.
fn packed_stories() -> PathBuf {
    stories().with_file_name("stories-5m-50")
}

/// Greedy text as JSON, with further options and variables.
fn greedy(directory: &Path, prompt: &str, options: &[&str], variables: &[(&str, &str)]) -> Value {
    let mut command = sparamx();
    command.args([
        "run",
        text(directory),
        prompt,
        "--json",
        "--temperature",
        "0",
        "-n",
        "60",
    ]);
    json(&output(
        command.args(options).envs(variables.iter().copied()),
    ))
}

fn ids(answer: &Value, field: &str) -> Vec<u32> {
    let list = answer[field].as_array().expect("a list");
    list.iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

#[test]
fn texts_keep_to_a_form() {
    let schema = r#"{"type": "object", "properties": {"name": {"enum": ["Tom", "Lily"]}, "age": {"type": "integer", "minimum": 3,
                    "maximum": 5}}, "required": ["name", "age"], "additionalProperties": false}"#;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("schema.json");
    fs::write(&file, schema).expect("a file");
    for schema in [schema, text(&file)] {
        let answer = greedy(&stories(), "Once", &["--json-schema", schema], &[]);
        let value: Value =
            serde_json::from_str(answer["text"].as_str().expect("a text")).expect("JSON");
        assert!(value["name"] == "Tom" || value["name"] == "Lily", "{value}");
        assert!(
            (3..=5).contains(&value["age"].as_i64().expect("a number")),
            "{value}"
        );
        assert_eq!(answer["finish_reason"], "stop");
    }
    let answer = greedy(&stories(), "Once", &["--regex", "^(ab|cd){2}$"], &[]);
    let answer = answer["text"].as_str().expect("a text");
    assert!(
        ["abab", "abcd", "cdab", "cdcd"].contains(&answer),
        "{answer}"
    );
    let refuse = |options: &[&str], status: i32, words: &[&str]| {
        let mut command = sparamx();
        command
            .args(["run", text(&stories()), "Once upon"])
            .args(options);
        fails(&output(&mut command), status, words);
    };
    refuse(&["--regex", "(a"], 1, &["unclosed group"]);
    refuse(&["--json-schema", "{\"not\": {}}"], 1, &["not"]);
    refuse(&["--json-schema", "{"], 2, &["--json-schema: not JSON"]);
    refuse(&["--json-schema", "absent.json"], 1, &["absent.json"]);
    refuse(&["--json-schema", "{}", "--regex", "a"], 2, &["--regex"]);
}

#[test]
fn the_answer_has_its_fields_and_nothing_else() {
    let done = run(&[
        "run",
        text(&model::directory()),
        "ab",
        "--json",
        "--temperature",
        "0",
        "-n",
        "5",
    ]);
    let answer = json(&done);
    let fields: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    assert_eq!(
        fields,
        [
            "prompt_ids",
            "ids",
            "text",
            "finish_reason",
            "cached_tokens",
            "drafted_tokens",
            "accepted_tokens",
            "prefill_tokens_per_s",
            "decode_tokens_per_s"
        ]
    );
    // BOS, then the bytes.
    assert_eq!(
        ids(&answer, "prompt_ids"),
        [0, 2 + u32::from(b'a'), 2 + u32::from(b'b')]
    );
    assert!(["length", "stop"].contains(&answer["finish_reason"].as_str().expect("text")));
    assert!(answer["prefill_tokens_per_s"].as_f64() > Some(0.0));
    // Which model, how fast, and why it ended.
    let summary = String::from_utf8(done.stderr).expect("UTF-8");
    let lines: Vec<&str> = summary.lines().collect();
    assert_eq!(lines.len(), 2, "{summary}");
    assert!(lines[0].starts_with("model: "), "{summary}");
    assert!(
        lines[1].contains("tokens at ") && lines[1].contains(" tokens/s ("),
        "{summary}"
    );
    assert!(!summary.contains("linear_"), "{summary}");
}

#[test]
fn details_are_there_on_demand() {
    let directory = model::directory();
    let done = run(&["run", text(&directory), "ab", "-n", "5", "-v"]);
    let details = String::from_utf8(done.stderr).expect("UTF-8");
    for word in ["3 prompt tokens (", "threads", "linear_"] {
        assert!(details.contains(word), "{details}");
    }
}

#[test]
fn text_is_streamed_and_the_rest_is_silent_on_demand() {
    let directory = model::directory();
    let answer = greedy(&directory, "ab", &[], &[]);
    let done = run(&[
        "run",
        text(&directory),
        "ab",
        "--temperature",
        "0",
        "-n",
        "60",
        "-q",
    ]);
    assert!(done.stderr.is_empty());
    assert_eq!(
        stdout(&done),
        format!("ab{}\n", answer["text"].as_str().expect("text"))
    );
}

#[test]
fn threads_change_no_token() {
    for directory in [model::directory(), stories(), packed_stories()] {
        let one = greedy(&directory, "Once upon a time", &["-t", "1"], &[]);
        for threads in ["2", "3"] {
            let more = greedy(&directory, "Once upon a time", &["-q", "-t", threads], &[]);
            assert_eq!(ids(&one, "ids"), ids(&more, "ids"), "{threads} threads");
            assert_eq!(one["text"], more["text"]);
        }
    }
}

/// The least difference between the best and the second best logit that a comparison relies on. Kernels of other
/// instruction sets add in another order and may round activations to bf16, which moves logits of this model by some
/// hundredths.
const GAP: f32 = 0.2;

/// Greedy tokens after a prompt, as far as the choice is clear by [`GAP`] on this machine.
fn clear_tokens(directory: &Path, prompt: &[u32], count: usize) -> Vec<u32> {
    let rt = Runtime::new(Cpu::detect().expect("a CPU"), 1).expect("a thread");
    let checkpoint = Checkpoint::open(directory).expect("a checkpoint");
    let model =
        Model::load(&rt, &checkpoint, &LoadOptions::default(), &mut |_| {}).expect("a model");
    let mut cache = PagedCache::new(model.config(), prompt.len() + count).expect("a cache");
    let mut workspace = Workspace::new();
    let (mut next, mut clear) = (prompt.to_vec(), Vec::new());
    while clear.len() < count {
        cache.reserve(next.len()).expect("memory");
        let mut inputs = [Input {
            tokens: &next,
            cache: &mut cache,
            logits: Want::Last,
        }];
        let logits = model
            .forward(&rt, &mut inputs, &mut workspace)
            .expect("logits");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if logits[order[0]] - logits[order[1]] < GAP {
            break;
        }
        clear.push(order[0] as u32);
        next = vec![order[0] as u32];
    }
    clear
}

#[test]
fn instruction_sets_agree_where_the_choice_is_clear() {
    for directory in [stories(), packed_stories()] {
        instruction_sets_agree(&directory);
    }
}

#[track_caller]
fn instruction_sets_agree(directory: &Path) {
    let mut compared = 0;
    for prompt in [
        "Once upon a time",
        "One day, a girl named Lily",
        "The little dog",
    ] {
        let native = greedy(directory, prompt, &[], &[]);
        let clear = clear_tokens(directory, &ids(&native, "prompt_ids"), 60);
        compared += clear.len();
        for isa in Isa::ALL
            .into_iter()
            .filter(|&isa| isa <= Cpu::detect().expect("a CPU").isa())
        {
            let answer = greedy(directory, prompt, &[], &[("SPARAMX_ISA", &isa.to_string())]);
            assert_eq!(ids(&answer, "ids")[..clear.len()], clear, "{isa}: {prompt}");
        }
    }
    // Of 180; otherwise the comparison says little.
    assert!(
        compared >= 20,
        "{}: only {compared} tokens were clear by {GAP}",
        directory.display()
    );
}

#[test]
fn the_model_that_ships_is_the_default() {
    let tell = |options: &[&str]| {
        let args = [
            "run",
            "Once upon a time",
            "--json",
            "--temperature",
            "0",
            "-n",
            "40",
        ];
        json(&output(sparamx().args(args).args(options)))
    };
    let story = tell(&["-t", "1"]);
    assert_eq!(ids(&story, "ids"), ids(&tell(&["-t", "2"]), "ids"));
    assert!(
        story["text"]
            .as_str()
            .expect("text")
            .split_whitespace()
            .count()
            >= 15,
        "{story}"
    );
    let listing = json(&run(&["inspect", text(&packed_stories()), "--json"]));
    let sparsity = listing["totals"]["sparsity_of_packed"]
        .as_f64()
        .expect("a number");
    assert!((0.45..0.8).contains(&sparsity), "{sparsity}");
}

#[test]
fn packing_at_sparsity_0_changes_no_token() {
    let root = TempDir::new().expect("a directory");
    let packed = root.path().join("packed");
    let half = root.path().join("half");
    let dense = model::directory();
    stdout(&run(&["compress", text(&dense), "-o", text(&packed), "-q"]));
    assert_eq!(
        greedy(&dense, "x", &[], &[])["ids"],
        greedy(&packed, "x", &[], &[])["ids"]
    );
    stdout(&run(&[
        "compress",
        text(&dense),
        "-o",
        text(&half),
        "--sparsity",
        "0.5",
    ]));
    let pruned = greedy(&half, "x", &["-t", "1"], &[]);
    assert_eq!(pruned["ids"], greedy(&half, "x", &["-t", "2"], &[])["ids"]);
}

#[test]
fn a_prompt_comes_from_standard_input() {
    let directory = model::directory();
    let mut command = sparamx();
    command.args([
        "run",
        text(&directory),
        "-",
        "--json",
        "--temperature",
        "0",
        "-n",
        "60",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"ab\n")
        .expect("written");
    let answer = json(&child.wait_with_output().expect("ends"));
    assert_eq!(answer["ids"], greedy(&directory, "ab", &[], &[])["ids"]);
}

#[test]
fn without_a_prompt_a_terminal_is_needed() {
    let directory = model::directory();
    fails(
        &run(&["run", text(&directory)]),
        2,
        &["terminal", "give a prompt"],
    );
    fails(
        &run(&["run", text(&directory), "--json"]),
        2,
        &["--json", "prompt"],
    );
}

#[test]
fn the_seed_decides() {
    let directory = model::directory();
    let sample = |seed: &str| {
        let args = [
            "run",
            text(&directory),
            "ab",
            "--json",
            "--temperature",
            "1.5",
            "-n",
            "30",
            "--seed",
            seed,
        ];
        ids(&json(&run(&args)), "ids")
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn a_stop_string_ends_the_text() {
    let directory = stories();
    let whole = greedy(&directory, "Once upon a time", &[], &[]);
    let whole = whole["text"].as_str().expect("text").to_owned();
    let word = whole.split(' ').nth(8).expect("some words");
    let stopped = greedy(&directory, "Once upon a time", &["--stop", word], &[]);
    assert_eq!(stopped["finish_reason"], "stop");
    let begin = &whole[..whole.find(word).expect("it is there")];
    assert_eq!(stopped["text"], begin);
}

#[test]
fn a_chat_template_frames_the_prompt() {
    let root = model::made();
    let template =
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}!";
    fs::write(root.path().join("chat_template.jinja"), template).expect("a file");
    let framed = ids(&greedy(root.path(), "hi", &[], &[]), "prompt_ids");
    let bytes = |text: &str| {
        text.bytes()
            .map(|byte| u32::from(byte) + 2)
            .collect::<Vec<_>>()
    };
    assert_eq!(framed, [vec![0], bytes("[user]hi!")].concat());
    let plain = ids(
        &greedy(root.path(), "hi", &["--no-chat-template"], &[]),
        "prompt_ids",
    );
    assert_eq!(plain, [vec![0], bytes("hi")].concat());
    fs::write(root.path().join("chat_template.jinja"), "{% for %}").expect("a file");
    fails(
        &run(&["run", text(root.path()), "hi"]),
        1,
        &["chat_template.jinja", "line 1"],
    );
}

#[test]
fn an_empty_prompt_starts_from_bos() {
    let answer = greedy(&model::directory(), "", &[], &[]);
    assert_eq!(ids(&answer, "prompt_ids"), [0]);
}

#[test]
fn perplexity_is_measured() {
    let root = TempDir::new().expect("a directory");
    let file = root.path().join("text.txt");
    let story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    fs::write(&file, story).expect("a file");
    let directory = model::directory();
    let measure = |options: &[&str]| -> Output {
        output(
            sparamx()
                .args(["perplexity", text(&directory), text(&file), "--json"])
                .args(options),
        )
    };
    let score = json(&measure(&[]));
    let fields: Vec<&String> = score.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["perplexity", "tokens", "bits_per_byte"]);
    // BOS and one token a byte; the first is not scored.
    assert_eq!(score["tokens"], story.len());
    let (perplexity, bits) = (
        score["perplexity"].as_f64(),
        score["bits_per_byte"].as_f64(),
    );
    let (perplexity, bits) = (perplexity.expect("a number"), bits.expect("a number"));
    assert!(
        (perplexity.log2() - bits).abs() < 1e-9,
        "one token a byte: {perplexity}, {bits}"
    );
    // A random model knows nothing: about as many choices as there are tokens.
    assert!((50.0..2000.0).contains(&perplexity), "{perplexity}");
    assert_eq!(json(&measure(&["--ctx", "10"]))["tokens"], 93 - 10);
    let text_form = stdout(&run(&["perplexity", text(&directory), text(&file)]));
    assert!(
        text_form.starts_with("perplexity ") && text_form.contains("bits per byte"),
        "{text_form}"
    );

    fails(&measure(&["--ctx", "1"]), 2, &["--ctx", "at least 2"]);
    fails(&measure(&["--ctx", "129"]), 2, &["--ctx 129", "128"]);
    fs::write(&file, "").expect("a file");
    fails(&measure(&[]), 1, &["text.txt", "tokens"]);
    fs::write(&file, [0xff, 0xfe, 0]).expect("a file");
    fails(&measure(&[]), 1, &["text.txt", "UTF-8"]);
    fails(
        &run(&["perplexity", text(&directory), "./nothing.txt"]),
        1,
        &["./nothing.txt"],
    );
}

#[test]
fn several_texts_are_measured_each_and_together() {
    let root = TempDir::new().expect("a directory");
    let (one, two) = (root.path().join("one.txt"), root.path().join("two.txt"));
    fs::write(&one, "The cat sat on the mat.").expect("a file");
    fs::write(
        &two,
        "Once upon a time, there was a little girl named Lily.",
    )
    .expect("a file");
    let directory = model::directory();
    let measure = |files: &[&Path], options: &[&str]| {
        let files = files.iter().map(|path| text(path));
        let mut command = sparamx();
        command.args(["perplexity", text(&directory)]);
        output(command.args(files).args(options))
    };
    let both = json(&measure(&[&one, &two], &["--json"]));
    let (mut nll, mut tokens) = (0.0, 0.0);
    for (index, path) in [&one, &two].into_iter().enumerate() {
        let alone = json(&measure(&[path], &["--json"]));
        let mut found = both["files"][index].clone();
        let name = found.as_object_mut().and_then(|file| file.remove("file"));
        assert_eq!(name.expect("a name"), text(path));
        assert_eq!(found, alone);
        let count = alone["tokens"].as_f64().expect("a number");
        nll += alone["perplexity"].as_f64().expect("a number").ln() * count;
        tokens += count;
    }
    assert_eq!(both["all"]["tokens"].as_f64(), Some(tokens));
    let all = both["all"]["perplexity"].as_f64().expect("a number");
    assert!((all.ln() - nll / tokens).abs() < 1e-12, "{both}");
    let lines = stdout(&measure(&[&one, &two], &[]));
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with(&format!("{}: perplexity ", text(&two))));
    assert!(lines[2].starts_with("all: perplexity "));

    // A text that cannot be read is refused before the first is measured.
    let nothing = root.path().join("nothing.txt");
    fails(&measure(&[&one, &nothing], &[]), 1, &["nothing.txt"]);
}

#[test]
fn questions_are_asked() {
    let root = TempDir::new().expect("a directory");
    let file = root.path().join("piqa.jsonl");
    let line = |label: u32| {
        format!(
            r#"{{"goal": "Sew.", "sol1": "With a needle.", "sol2": "With a", "label": {label}}}"#
        )
    };
    fs::write(&file, [line(0), line(1), line(0)].join("\n")).expect("a file");
    let directory = model::directory();
    let ask = |options: &[&str]| -> Output {
        let mut command = sparamx();
        output(
            command
                .args(["eval", text(&directory), text(&file)])
                .args(options),
        )
    };
    let report = json(&ask(&["--json"]));
    let result = &report["results"][0];
    assert_eq!(result["file"], text(&file));
    assert_eq!(result["task"], "piqa");
    assert_eq!(result["questions"], 3);
    assert_eq!(result["chance"], 0.5);
    // The second choice is the beginning of the first, and so the likelier one.
    assert_eq!(result["acc"], 1.0 / 3.0);
    let error = result["acc_stderr"].as_f64().expect("a number");
    assert!((error - 1.0 / 3.0).abs() < 1e-12, "{error}");
    for field in ["acc_norm", "acc_norm_stderr", "truncated"] {
        assert!(result[field].is_number(), "no {field} in {report}");
    }
    assert!(result.get("log_likelihoods").is_none(), "{report}");
    let report = json(&ask(&["--json", "--samples"]));
    let samples = report["results"][0]["log_likelihoods"].as_array();
    let samples = samples.expect("a list for each question");
    assert_eq!(samples.len(), 3);
    // The questions are the same but for the label.
    assert_eq!(samples[0], samples[1]);
    let of = |choice: usize| samples[0][choice].as_f64().expect("a number");
    assert!(of(0) < of(1) && of(1) < 0.0, "{samples:?}");
    fails(&ask(&["--samples"]), 2, &["--samples", "--json"]);
    let table = stdout(&ask(&["--limit", "2", "--task", "piqa"]));
    assert!(
        table.contains("acc_norm") && table.contains("0.5000 ± 0.5000"),
        "{table}"
    );

    let wrong = ask(&["--task", "arc"]);
    fails(
        &wrong,
        1,
        &["piqa.jsonl", "line 1", "'question'", "one task"],
    );
    fs::write(&file, r#"{"prompt": "a"}"#).expect("a file");
    fails(&ask(&[]), 1, &["piqa.jsonl", "line 1", "expected"]);
}

#[test]
fn benchmarks_report_all_combinations() {
    let directory = model::directory();
    let args = [
        "bench",
        text(&directory),
        "-p",
        "8",
        "-n",
        "4",
        "-b",
        "1,2",
        "-t",
        "1,2",
        "--depth",
        "0,3",
        "-r",
        "2",
    ];
    let report = json(&output(sparamx().args(args).arg("--json")));
    for field in ["cpu", "isa", "threads", "read_bandwidth_gb_s", "rows"] {
        assert!(report.get(field).is_some(), "no {field}");
    }
    let rows = report["rows"].as_array().expect("a list");
    assert_eq!(rows.len(), 2 * 2 * 2 * 2);
    for row in rows {
        for (field, kind) in [("test", "text"), ("shape", "text"), ("weights", "text")] {
            assert!(row[field].is_string(), "{field} is no {kind} in {row}");
        }
        for field in [
            "sparsity",
            "kv_sparsity",
            "depth",
            "batch",
            "tokens_per_s",
            "packed_gb_s",
            "bandwidth_share",
        ] {
            assert!(row[field].is_number(), "no number {field} in {row}");
        }
        assert!(row["tokens_per_s"].as_f64() > Some(0.0), "{row}");
        let impossible = row["bandwidth_share"].as_f64() > Some(1.0);
        assert_eq!(row["from_cache"], impossible, "{row}");
    }
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert!(tests.contains(&&json!("pp8")) && tests.contains(&&json!("tg4")));

    let table = stdout(&output(sparamx().args(args)));
    assert!(
        table.contains("read bandwidth") && table.contains("| tg4 @ d3 |"),
        "{table}"
    );
    let csv = stdout(&output(sparamx().args(args).args(["-o", "csv"])));
    assert_eq!(csv.lines().count(), 1 + rows.len());
    let svg = stdout(&output(sparamx().args(args).args(["-o", "svg"])));
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(
        svg.matches("</title></circle>").count(),
        rows.len(),
        "{svg}"
    );
}
