//! What the tests of the command share: running it, and checking how it ends.
#![allow(dead_code)] // Every test binary uses its own part.

pub mod model;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command, free of what the environment of the test could change about it.
pub fn sparamx() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparamx"));
    for name in [
        "SPARAMX_ISA",
        "SPARAMX_KERNEL",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HUGGINGFACE_HUB_CACHE",
        "HUGGING_FACE_HUB_TOKEN",
        "TRANSFORMERS_OFFLINE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "XDG_CACHE_HOME",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    // No test may reach the real hub.
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.env("HF_HOME", "/nonexistent/hf-home");
    command.stdin(Stdio::null());
    command
}

/// Runs the command with these arguments.
pub fn run(args: &[&str]) -> Output {
    output(sparamx().args(args))
}

/// Runs a prepared command to its end.
pub fn output(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

/// Standard output of a success; fails with the error message otherwise.
#[track_caller]
pub fn stdout(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8 on standard output")
}

/// The one JSON object that a success printed.
#[track_caller]
pub fn json(output: &Output) -> serde_json::Value {
    let text = stdout(output);
    let value: serde_json::Value = serde_json::from_str(&text).expect("one JSON value");
    assert!(value.is_object(), "{text}");
    value
}

/// Checks a failure: the exit status, nothing on standard output, and one line on standard error that has all of these
/// words. Gives the line back.
#[track_caller]
pub fn fails(output: &Output, status: i32, words: &[&str]) -> String {
    let error = String::from_utf8(output.stderr.clone()).expect("UTF-8 on standard error");
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert!(
        output.stdout.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(
        error.starts_with("error: ") && error.ends_with('\n'),
        "{error:?}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
    error
}

/// Runs a prepared command with a file system of its own at `disk`, and lists what it leaves there on standard output.
/// Nothing where the system does not let an ordinary user mount one.
#[cfg(target_os = "linux")]
pub fn on_small_disk(command: &Command, disk: &Path, size: &str) -> Option<Output> {
    let script = "mount -t tmpfs -o size=\"$1\" tmpfs \"$2\" || exit 99; \
                  cd \"$2\" && shift 2 && \"$@\"; status=$?; ls -A; exit $status";
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        size,
        text(disk),
    ]);
    unshare.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => unshare.env(name, value),
            None => unshare.env_remove(name),
        };
    }
    match unshare.output() {
        Ok(done) if done.status.code() != Some(99) && !done.stderr.starts_with(b"unshare") => {
            Some(done)
        }
        other => {
            println!("SKIPPED: no mount name space for an ordinary user here ({other:?})");
            None
        }
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
