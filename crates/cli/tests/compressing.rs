//! `compress` with calibration, and what becomes of a run that is stopped.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use common::{fails, json, model, output, run, sparamx, stdout, text};
use sparamx_testkit::{content, names};

fn root() -> TempDir {
    TempDir::new().expect("a directory")
}

/// The dense model in the repository.
fn stories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m")
}

/// `compress` by SparseGPT on a little text.
fn command(from: &Path, to: &Path) -> Command {
    let mut command = sparamx();
    // Progress is left out: how much of it there is depends on the machine.
    command.args(["compress", text(from), "-o", text(to), "-q"]);
    command.args(["--method", "sparsegpt"]);
    command.args([
        "--sparsity",
        "0.5",
        "--calibration-windows",
        "4",
        "--calibration-tokens",
        "64",
    ]);
    command
}

fn started(command: &mut Command) -> Child {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().expect("starts")
}

/// Waits until so many parts are recorded as done, or the process has ended.
fn wait_for_parts(child: &mut Child, partial: &Path, parts: usize) {
    let done = || {
        let record = fs::read_to_string(partial.join("progress.json")).unwrap_or_default();
        record.matches("\"packed\":").count()
    };
    while done() < parts && child.try_wait().expect("a status").is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn every_method_makes_a_model_that_runs() {
    let (root, dense) = (root(), model::directory());
    for (name, options) in [
        ("wanda", vec!["--method", "wanda", "--sparsity", "0.5"]),
        (
            "sparsegpt",
            vec![
                "--method",
                "sparsegpt",
                "--sparsity",
                "0.5",
                "--weights",
                "int8",
            ],
        ),
        (
            "pattern",
            vec![
                "--method",
                "wanda",
                "--pattern",
                "2:4",
                "--reconstruct",
                "off",
            ],
        ),
        (
            "owl",
            vec![
                "--method",
                "wanda",
                "--sparsity",
                "0.6",
                "--allocate",
                "owl",
            ],
        ),
        (
            "gptq",
            vec!["--weights", "int4", "--group", "32", "--rounding", "gptq"],
        ),
        ("refit", vec!["--sparsity", "0.5", "--reconstruct", "on"]),
        (
            "head",
            vec![
                "--method",
                "sparsegpt",
                "--sparsity",
                "0.5",
                "--include-lm-head",
            ],
        ),
    ] {
        let to = root.path().join(name);
        let mut command = sparamx();
        command.args(["compress", text(&dense), "-o", text(&to), "--json", "-q"]);
        command.args(["--calibration-windows", "6"]).args(&options);
        let summary = json(&output(&mut command));
        let solved = summary["solved"].as_array().expect("errors of tensors");
        assert_eq!(solved.len(), if name == "head" { 15 } else { 14 }, "{name}");
        for tensor in solved {
            let error = tensor["error"].as_f64().expect("a number");
            assert!(error > 0.0 && error < 1.0, "{name}: {tensor}");
        }
        assert_eq!(summary["layer_sparsities"].is_array(), name == "owl");
        let config = fs::read_to_string(to.join("config.json")).expect("a file");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["calibration"]["text"], "built-in sample");
        assert_eq!(quantization["calibration"]["windows"], 6);
        let text_out = stdout(&run(&["run", text(&to), "abc", "-n", "4", "-q"]));
        assert!(!text_out.is_empty(), "{name}");
    }
}

#[test]
fn threads_change_no_byte() {
    let (root, dense) = (root(), model::directory());
    let with = |threads: &str| {
        let to = root.path().join(threads);
        stdout(&output(command(&dense, &to).args([
            "-t",
            threads,
            "--weights",
            "int8",
        ])));
        content(&to)
    };
    let one = with("1");
    assert!(one == with("2") && one == with("3"));
}

/// What an interrupted run says and leaves: nothing, or what `--resume` needs.
fn check_stopped(done: &Output, status: i32, root: &Path, partial: &str) {
    if String::from_utf8_lossy(&done.stderr).contains("nothing was written") {
        fails(done, status, &["interrupted"]);
        assert!(!names(root).contains(&partial.to_owned()));
    } else {
        fails(
            done,
            status,
            &[
                "interrupted after",
                "of 8 parts",
                "--resume",
                "or remove",
                partial,
            ],
        );
        assert!(names(root).contains(&partial.to_owned()));
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bytes() {
    use std::os::unix::process::ExitStatusExt;
    let (root, dense) = (root(), stories());
    let whole = root.path().join("whole");
    stdout(&output(&mut command(&dense, &whole)));
    for signal in ["-KILL", "-INT", "-TERM"] {
        let name = format!("stopped{signal}");
        let (to, partial) = (root.path().join(&name), format!(".{name}.partial"));
        let mut child = started(&mut command(&dense, &to));
        wait_for_parts(&mut child, &root.path().join(&partial), 3);
        // It has 5 more to do, so that it is there yet; and if not, the rest holds all the same.
        let _ = output(Command::new("kill").args([signal, &child.id().to_string()]));
        let done = child.wait_with_output().expect("ends");
        if !done.status.success() {
            assert!(!to.exists());
            match signal {
                "-KILL" => assert_eq!(done.status.signal(), Some(9)),
                "-INT" => check_stopped(&done, 130, root.path(), &partial),
                _ => check_stopped(&done, 143, root.path(), &partial),
            }
            let again = output(&mut command(&dense, &to));
            fails(&again, 1, &[&partial, "--resume", "or remove it"]);
            let other = output(command(&dense, &to).args(["--resume", "--weights", "int8"]));
            fails(&other, 1, &[&partial, "weights was Bf16 and is Int8"]);
            stdout(&output(command(&dense, &to).arg("--resume")));
        }
        assert!(content(&to) == content(&whole), "{signal}");
        assert!(!names(root.path()).contains(&partial), "{signal}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_without_calibration_leaves_nothing_or_what_it_says() {
    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let root = root();
        let big = root.path().join("big");
        fs::create_dir(&big).expect("a directory");
        model::write(&big);
        let to = root.path().join("packed");
        let mut child =
            started(sparamx().args(["compress", text(&big), "-o", text(&to), "--sparsity", "0.5"]));
        while names(root.path()).len() == 1 && child.try_wait().expect("a status").is_none() {
            std::thread::yield_now();
        }
        let _ = output(Command::new("kill").args([signal, &child.id().to_string()]));
        let done = child.wait_with_output().expect("ends");
        let left = names(root.path());
        let error = String::from_utf8_lossy(&done.stderr);
        if done.status.success() {
            assert_eq!(left, ["big", "packed"]);
        } else if error.contains("nothing was written") {
            fails(&done, status, &["interrupted"]);
            assert_eq!(left, ["big"]);
        } else {
            fails(
                &done,
                status,
                &["interrupted after", "of 4 parts", "--resume"],
            );
            assert_eq!(left, [".packed.partial", "big"]);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_and_room_is_enough_to_go_on() {
    let (disk, dense, elsewhere) = (root(), stories(), root());
    let whole = elsewhere.path().join("whole");
    stdout(&output(&mut command(&dense, &whole)));
    let to = disk.path().join("packed");
    // 7 of 24 MiB are free: enough for some parts, and not for the whole, which is on the disk twice in the end.
    let script = "head -c 17M /dev/zero > filler; \"$@\" && exit 98; rm filler; \"$@\" --resume > ../resumed || exit 97; \
                  cp -r packed \"$COPY\"";
    let compress = command(&dense, &to);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sh"])
        .arg(compress.get_program())
        .args(compress.get_args());
    for (name, value) in compress.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let copy = elsewhere.path().join("copy");
    shell.env("COPY", &copy);
    if let Some(done) = common::on_small_disk(&shell, disk.path(), "24M") {
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}: {error}", done.status);
        for words in [
            "packed: the disk is full after ",
            " of 8 parts; make room, then go on",
            "--resume",
        ] {
            assert!(error.contains(words), "no {words:?} in: {error}");
        }
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(content(&copy) == content(&whole));
    }
}

/// Prunes half of the weights by Wanda.
fn wanda(model: &Path, to: &Path) -> Command {
    let mut command = sparamx();
    command.args(["compress", text(model), "-o", text(to)]);
    command.args(["--method", "wanda", "--sparsity", "0.5"]);
    command
}

#[test]
fn calibration_text_that_cannot_be_used_is_refused() {
    let (root, dense) = (root(), model::directory());
    let file = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    };
    for (path, words) in [
        (
            file("short.txt", b"ten bytes."),
            vec!["short.txt: 11 tokens", "a window needs 128"],
        ),
        (
            file("binary.txt", &[0xff, 0, 0, 1]),
            vec!["binary.txt: not text"],
        ),
        (
            file("wide.txt", b"\xff\xfet\0e\0"),
            vec!["wide.txt: text in UTF-16", "convert"],
        ),
        (
            file("c4.jsonl.zst", b"\x28\xb5\x2f\xfd rest"),
            vec!["c4.jsonl.zst: packed by zstd", "zstd -d"],
        ),
        (
            file("c4.parquet", b"PAR1 rest"),
            vec!["c4.parquet: a Parquet file", ".jsonl"],
        ),
        (root.path().to_owned(), vec!["a directory"]),
        (file("zeros.txt", &[0; 1000]), vec!["zeros.txt: not text"]),
        (
            file("bad.jsonl", b"{\"text\": \"a\"}\n{\"txt\": \"b\"}\n"),
            vec!["bad.jsonl: line 2", "\"text\""],
        ),
        (
            file("bad.gz", b"not packed"),
            vec!["bad.gz: cannot be unpacked"],
        ),
        (
            root.path().join("absent.txt"),
            vec!["absent.txt", "No such file"],
        ),
    ] {
        let to = root.path().join("out");
        fails(
            &output(wanda(&dense, &to).args(["--calibration", text(&path)])),
            1,
            &words,
        );
        assert!(!to.exists());
    }
    let lines: String = (0..40)
        .map(|i| format!("{{\"id\": {i}, \"text\": \"document number {i}\"}}\n"))
        .collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, lines.as_bytes()).expect("memory");
    let packed = packed.finish().expect("memory");
    let lines = file("good.jsonl.gz", &packed);
    let to = root.path().join("out");
    let options = [
        "--json",
        "--calibration",
        text(&lines),
        "--calibration-windows",
        "99",
    ];
    let done = output(wanda(&dense, &to).args(options));
    json(&done);
    let warning = String::from_utf8_lossy(&done.stderr);
    assert!(warning.contains("good.jsonl.gz has text for"), "{warning}");
}

#[test]
fn documents_are_calibrated_on_whatever_holds_them() {
    let (root, dense) = (root(), model::directory());
    let texts: Vec<String> = (0..60)
        .map(|i| format!("document \"{i}\" of some"))
        .collect();
    let lines = |field: &str| -> String {
        let line = |text: &String| serde_json::json!({ "id": 7, field: text }).to_string() + "\n";
        texts.iter().map(line).collect()
    };
    let packed = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, text.as_bytes()).expect("memory");
        packed.finish().expect("memory")
    };
    let pretty = serde_json::to_string_pretty(&texts).expect("JSON");
    let weights = |name: &str, bytes: &[u8]| {
        let (file, to) = (
            root.path().join(name),
            root.path().join(format!("from-{name}")),
        );
        fs::write(&file, bytes).expect("a file");
        let done = output(wanda(&dense, &to).args(["--calibration", text(&file)]));
        stdout(&done);
        let note = String::from_utf8_lossy(&done.stderr).into_owned();
        (
            fs::read(to.join("model.safetensors")).expect("a file"),
            note,
        )
    };
    let (wanted, note) = weights("a.jsonl", lines("text").as_bytes());
    assert!(
        note.contains("a.jsonl: 60 documents, the field \"text\""),
        "{note}"
    );
    for (name, bytes) in [
        ("a.jsonl.gz", packed(&lines("text"))),
        ("a.json.gz", packed(&lines("text"))),
        ("a.ndjson", lines("content").into_bytes()),
        ("a.json", pretty.clone().into_bytes()),
        ("b.json", format!("\u{feff}{pretty}").into_bytes()),
        // Whatever it is called, what begins as gzip does is unpacked.
        ("c.jsonl", packed(&lines("text"))),
    ] {
        assert!(weights(name, &bytes).0 == wanted, "{name}");
    }
    // As it is, it is another text, and that is said.
    let (other, note) = weights("a.txt", lines("text").as_bytes());
    assert!(
        other != wanted && note.contains("a.txt looks like JSON"),
        "{note}"
    );
    let (other, note) = weights("a.txt.gz", &packed(&texts.join("\n")));
    assert!(other != wanted && !note.contains("JSON"), "{note}");
}

#[cfg(unix)]
#[test]
fn who_comes_second_is_told_who_is_first() {
    let (root, dense) = (root(), stories());
    let to = root.path().join("packed");
    let partial = root.path().join(".packed.partial");
    let mut child = started(&mut command(&dense, &to));
    wait_for_parts(&mut child, &partial, 1);
    let signal = |name: &str| output(Command::new("kill").args([name, &child.id().to_string()]));
    // Whatever the machine does meanwhile, it is at work.
    signal("-STOP");
    let second = [
        output(&mut command(&dense, &to)),
        output(command(&dense, &to).arg("--resume")),
    ];
    signal("-CONT");
    let pid = format!("another process (process {})", child.id());
    for second in &second {
        let line = fails(second, 1, &[".packed.partial", &pid, "wait for it"]);
        assert!(!line.contains("remove"), "{line}");
    }
    stdout(&child.wait_with_output().expect("ends"));
    assert!(to.join("config.json").exists() && !partial.exists());
}

#[test]
fn names_that_no_tensor_has_are_told_with_their_neighbors() {
    let (root, dense) = (root(), model::directory());
    let file = root.path().join("sparsity.json");
    let to = root.path().join("out");
    let refused = |content: &str, status: i32, words: &[&str]| {
        fs::write(&file, content).expect("a file");
        let mut command = sparamx();
        command.args([
            "compress",
            text(&dense),
            "-o",
            text(&to),
            "--sparsity",
            "0.5",
        ]);
        fails(
            &output(command.args(["--sparsity-file", text(&file)])),
            status,
            words,
        );
    };
    refused(
        r#"{"mlp.dwn_proj": 0.4}"#,
        1,
        &["sparsity.json", "'mlp.dwn_proj'", "mlp.down_proj"],
    );
    refused(
        r#"{"layers.9": 0.4}"#,
        1,
        &["sparsity.json", "'layers.9'", "layers.1"],
    );
    refused(
        r#"{"mlp": 1.5}"#,
        1,
        &["sparsity.json", "\"mlp\" is 1.5", "below 1"],
    );
    refused(r#"{"mlp": "2:3"}"#, 1, &["sparsity.json", "2:4"]);
    refused("[0.5]", 1, &["sparsity.json", "not a JSON object"]);
    fs::write(&file, r#"{"mlp": 0.25, "layers.1.mlp.up_proj": "1:4"}"#).expect("a file");
    let mut command = sparamx();
    command.args([
        "compress",
        text(&dense),
        "-o",
        text(&to),
        "--sparsity",
        "0.5",
        "--skip",
        "q_proj,layers.0.self_attn.k*",
    ]);
    stdout(&output(command.args(["--sparsity-file", text(&file)])));
    let listed = json(&run(&["inspect", text(&to), "--json"]));
    let sparsity = |name: &str| {
        let tensors = listed["tensors"].as_array().expect("tensors");
        let tensor = tensors
            .iter()
            .find(|tensor| tensor["name"] == format!("model.layers.{name}.weight"));
        tensor.unwrap_or_else(|| panic!("{name} in {listed}"))["sparsity"]
            .as_f64()
            .expect("a number")
    };
    for (name, wanted) in [
        ("0.mlp.up_proj", 0.25),
        ("1.mlp.up_proj", 0.75),
        ("1.self_attn.k_proj", 0.5),
        ("0.self_attn.k_proj", 0.0),
        ("1.self_attn.q_proj", 0.0),
    ] {
        let found = sparsity(name);
        assert!(
            (found - wanted).abs() < 0.01,
            "{name}: {found}, not {wanted}"
        );
    }
}

#[test]
fn options_that_contradict_each_other_are_wrong_usage() {
    let (root, dense) = (root(), model::directory());
    let to = root.path().join("out");
    for (options, words) in [
        (
            vec!["--method", "wanda", "--scope", "row"],
            vec!["--scope", "magnitude"],
        ),
        (vec!["--rounding", "gptq"], vec!["--rounding", "int8"]),
        (
            vec!["--pattern", "2:4", "--allocate", "owl"],
            vec!["owl", "--pattern"],
        ),
        (
            vec!["--sparsity", "0.5", "--calibration", "x.txt"],
            vec!["--calibration", "changes nothing"],
        ),
        (
            vec!["--method", "wanda", "--calibration-windows", "0"],
            vec!["at least 1"],
        ),
        (
            vec!["--method", "wanda"],
            vec!["nothing to prune", "--sparsity"],
        ),
        (
            vec!["--reconstruct", "on", "--pattern", "4:4"],
            vec!["nothing to prune", "--sparsity"],
        ),
        (
            vec!["--allocate", "owl", "--weights", "int8"],
            vec!["--allocate owl", "--sparsity, which is 0"],
        ),
        (
            vec![
                "--method",
                "wanda",
                "--sparsity",
                "0.5",
                "--calibration-tokens",
                "4096",
            ],
            vec!["--calibration-tokens 4096", "128"],
        ),
    ] {
        let mut command = sparamx();
        command
            .args(["compress", text(&dense), "-o", text(&to)])
            .args(&options);
        fails(&output(&mut command), 2, &words);
    }
    for options in [
        vec!["--pattern", "3"],
        vec!["--pattern", "2:4", "--sparsity", "0.5"],
    ] {
        let mut command = sparamx();
        command
            .args(["compress", text(&dense), "-o", text(&to)])
            .args(&options);
        assert_eq!(output(&mut command).status.code(), Some(2), "{options:?}");
    }
    assert!(names(root.path()).is_empty());
}

#[test]
fn a_packed_model_is_refused_before_anything_else() {
    let root = root();
    let (once, twice) = (root.path().join("once"), root.path().join("twice"));
    stdout(&output(&mut command(&model::directory(), &once)));
    let refused = output(&mut command(&once, &twice));
    fails(&refused, 1, &[text(&once), "packed already", "dense model"]);
    assert!(!twice.exists());
}
