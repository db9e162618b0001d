//! Signals end every command with the status that a shell gives for them, and leave nothing behind.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use common::{fails, model, sparamx, text};
use sparamx_testkit::names;

/// Signals, the names that `kill` has for them, and the exit statuses.
const SIGNALS: [(i32, &str, i32); 3] = [(2, "-INT", 130), (15, "-TERM", 143), (1, "-HUP", 129)];

fn root() -> TempDir {
    TempDir::new().expect("a directory")
}

fn started(command: &mut Command) -> Child {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().expect("starts")
}

/// Sends a signal as soon as the process listens for it, and waits for the end.
fn ended_by(mut child: Child, (number, name, _): (i32, &str, i32)) -> Output {
    let path = format!("/proc/{}/status", child.id());
    let listens = || {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
    };
    while !listens() && child.try_wait().expect("a status").is_none() {
        std::thread::yield_now();
    }
    send(&child, name);
    child.wait_with_output().expect("ends")
}

fn send(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args([name, &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// Waits until there is something in a folder beside what it had, or the process has ended.
fn wait_for_entry(child: &mut Child, folder: &Path, entries: usize) {
    let count = || fs::read_dir(folder).map_or(0, Iterator::count);
    while count() <= entries && child.try_wait().expect("a status").is_none() {
        std::thread::yield_now();
    }
}

/// A model in the repository.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models")
        .join(name)
}

/// More text, and more questions, than anybody waits for.
fn files(root: &Path) -> (PathBuf, PathBuf) {
    let (story, questions) = (root.join("story.txt"), root.join("piqa.jsonl"));
    fs::write(
        &story,
        "Once upon a time there was a big red ball. ".repeat(60_000),
    )
    .expect("a file");
    let question =
        r#"{"goal": "Sew.", "sol1": "With a needle.", "sol2": "With a hat.", "label": 0}"#;
    fs::write(&questions, format!("{question}\n").repeat(100_000)).expect("a file");
    (story, questions)
}

#[test]
fn what_leaves_nothing_ends_at_once() {
    let root = root();
    let dense = shipped("stories-5m");
    let (story, questions) = files(root.path());
    let commands: [&[&str]; 4] = [
        &["perplexity", text(&dense), text(&story)],
        &["eval", text(&dense), text(&questions)],
        &[
            "bench",
            "--shape",
            "tinyllama-1.1b",
            "--layers",
            "1",
            "-r",
            "1000",
        ],
        &[
            "kv-report",
            text(&dense),
            "--text",
            text(&story),
            "-o",
            "kv",
        ],
    ];
    for args in commands {
        for signal in SIGNALS {
            let mut command = sparamx();
            let child = started(command.current_dir(root.path()).args(args).arg("-q"));
            fails(&ended_by(child, signal), signal.2, &["interrupted"]);
        }
    }
}

#[test]
fn a_download_ends_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    for signal in SIGNALS {
        let home = root();
        let mut command = sparamx();
        command
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_HOME", home.path());
        let child = started(command.args(["inspect", "some/model"]));
        // It asks, and nobody answers.
        let silent = listener.accept().expect("a connection");
        fails(&ended_by(child, signal), signal.2, &["interrupted"]);
        drop(silent);
    }
}

#[test]
fn a_text_ends_with_its_line() {
    for signal in SIGNALS {
        for json in [false, true] {
            let mut command = sparamx();
            // Slow enough to be there when the signal comes.
            command.env("SPARAMX_ISA", "portable");
            command.args(["run", text(&shipped("stories-5m-50")), "Once upon a time"]);
            command.args(["-n", "450", "-t", "1", "--no-speculation"]);
            if json {
                command.arg("--json");
            }
            let mut child = started(&mut command);
            let mut first = [0];
            if !json {
                let stdout = child.stdout.as_mut().expect("a pipe");
                stdout.read_exact(&mut first).expect("text");
            }
            let done = ended_by(child, signal);
            assert_eq!(done.status.code(), Some(signal.2), "{done:?}");
            let error = String::from_utf8_lossy(&done.stderr);
            assert!(error.ends_with("error: interrupted\n"), "{error}");
            if !json {
                assert!(done.stdout.ends_with(b"\n"), "{done:?}");
            }
        }
    }
}

#[test]
fn a_report_removes_what_it_compressed() {
    let root = root();
    let (story, _) = files(root.path());
    let out = root.path().join("out");
    for signal in SIGNALS {
        let mut command = sparamx();
        command.args([
            "-q",
            "report",
            text(&shipped("stories-5m")),
            "--text",
            text(&story),
        ]);
        command.args([
            "--methods",
            "magnitude",
            "--weights",
            "bf16",
            "-o",
            text(&out),
        ]);
        let mut child = started(&mut command);
        // A model that is being compressed, or has been.
        wait_for_entry(&mut child, &out, 0);
        fails(&ended_by(child, signal), signal.2, &["interrupted"]);
        assert!(names(&out).is_empty(), "{:?}", names(&out));
    }
}

#[test]
fn an_export_leaves_nothing() {
    for signal in SIGNALS {
        let root = root();
        let to = root.path().join("dense");
        let mut command = sparamx();
        command.args([
            "export",
            text(&shipped("stories-5m-50")),
            "--format",
            "dense",
            "-o",
        ]);
        let mut child = started(command.arg(&to));
        wait_for_entry(&mut child, root.path(), 0);
        let done = ended_by(child, signal);
        match done.status.success() {
            true => assert_eq!(names(root.path()), ["dense"]),
            false => {
                fails(&done, signal.2, &["interrupted"]);
                assert!(names(root.path()).is_empty());
            }
        }
    }
}

#[test]
fn nohup_is_heeded() {
    let root = root();
    let (story, _) = files(root.path());
    let command = sparamx();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    shell
        .arg(command.get_program())
        .args(["perplexity", text(&model::directory()), text(&story)]);
    let mut child = started(&mut shell);
    // The other signals are listened for when this one would be.
    while !fs::read_to_string(format!("/proc/{}/comm", child.id()))
        .is_ok_and(|name| name.trim() == "sparamx")
    {
        std::thread::yield_now();
    }
    send(&child, "-HUP");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().expect("a status").is_none());
    fails(&ended_by(child, SIGNALS[1]), 143, &["interrupted"]);
}
