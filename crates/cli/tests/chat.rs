//! The chat, on a terminal that `script` makes.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use common::{model, sparamx, text};

/// What a terminal shows while these lines are typed; nothing where there is no `script`.
fn typed(template: Option<&str>, options: &str, lines: &[&str]) -> Option<String> {
    let root = model::made();
    if let Some(template) = template {
        fs::write(root.path().join("chat_template.jinja"), template).expect("a file");
    }
    let sparamx = sparamx();
    let program = sparamx.get_program().to_str().expect("UTF-8");
    let line = format!(
        "{program} run {} --temperature 0 {options}",
        text(root.path())
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    let started = command
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            println!("SKIPPED: no `script` here ({error})");
            return None;
        }
    };
    let mut input = child.stdin.take().expect("a pipe");
    for line in lines {
        writeln!(input, "{line}").expect("written");
    }
    let done = child.wait_with_output().expect("ends");
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{shown}");
    Some(shown)
}

const ROLES: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}";

#[track_caller]
fn assert_shows(shown: &str, words: &[&str]) {
    let mut rest = shown;
    for word in words {
        let at = rest
            .find(word)
            .unwrap_or_else(|| panic!("no {word:?} after the others in:\n{shown}"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn commands_do_what_help_says() {
    let lines = [
        "/help",
        "hey",
        "/regenerate",
        "/system Be brief",
        "/clear",
        "hey",
        "//x",
        "/nope",
        "/set top_k 5",
        "/set mood 3",
        "/exit",
    ];
    let Some(shown) = typed(Some(ROLES), "-n 4 -v", &lines) else {
        return;
    };
    assert_shows(
        &shown,
        &[
            "/regenerate       another answer",
            // `u:hey;`, twice, then with `s:Be brief;` before it.
            "6 prompt tokens",
            "6 prompt tokens",
            "the system prompt is set",
            "forgotten",
            "17 prompt tokens",
            "prompt tokens",
            "no command /nope",
            "top_k 5",
            "no parameter 'mood'",
        ],
    );
}

#[test]
fn the_oldest_turns_go_first() {
    let lines = [
        "one one one one one",
        "two two two two two",
        "three three three",
        "four four four four",
        "/exit",
    ];
    let Some(shown) = typed(Some(ROLES), "-n 20 --system S", &lines) else {
        return;
    };
    assert_shows(
        &shown,
        &["note: the context of 128 tokens is full: oldest turns left out: "],
    );
    assert!(!shown.contains("error"), "{shown}");
    // Figures and kernels are for those who ask.
    assert!(
        !shown.contains("tokens/s") && !shown.contains("linear_"),
        "{shown}"
    );
}

#[test]
fn what_is_too_long_does_not_end_the_chat() {
    let long = "x".repeat(200);
    let Some(shown) = typed(
        None,
        "-n 2 -v",
        &[&long, "/regenerate", "/system x", "hey", "/exit"],
    ) else {
        return;
    };
    assert_shows(
        &shown,
        &[
            "error: the prompt has 200 bytes",
            "there is no answer yet",
            "no chat template",
            "4 prompt tokens",
        ],
    );
}
