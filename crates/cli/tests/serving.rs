//! `serve` as a process: what it says, what it refuses, and how it ends.
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::{fails, output, sparamx};

/// A guard against a server that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `serve`, which is killed if a test fails.
struct Serving {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What it said up to the line with its address, and the one after that.
    lines: Vec<String>,
    address: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended if the test waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serving {
    /// The model that ships, at a port that is free.
    fn start(options: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = sparamx();
        command.env_remove("SPARAMX_API_KEY");
        prepare(&mut command);
        command.args(["serve", "--port", "0"]).args(options);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stderr = child.stderr.take().expect("piped");
        let mut serving = Self {
            child,
            stderr: BufReader::new(stderr),
            lines: Vec::new(),
            address: String::new(),
        };
        for _ in 0..3 {
            let line = serving.line();
            serving.lines.push(line);
        }
        let rest = serving.lines[1].split("://").nth(1).expect("an address");
        serving.address = rest.split(',').next().unwrap_or_default().to_owned();
        serving
    }

    /// The next line that it says.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    }

    /// Sends a request and reads all that comes.
    fn ask(&self, head: &str, body: &str) -> String {
        let mut stream = self.connect();
        stream
            .write_all(request(head, body).as_bytes())
            .expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(sent.expect("kill").success());
    }

    /// Waits for its end; gives what else it said.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("text");
        (self.child.wait().expect("a status"), rest)
    }
}

fn request(head: &str, body: &str) -> String {
    format!(
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const COMPLETE: &str = "POST /v1/completions";

#[test]
fn three_lines_say_what_is_served_and_a_signal_ends_it() {
    let mut serving = Serving::start(&["--served-model-name", "tiny", "other"], |_| ());
    let lines = &serving.lines;
    assert!(
        lines[0].starts_with("serving tiny, other from "),
        "{lines:?}"
    );
    assert!(lines[0].contains("512 tokens of context"), "{lines:?}");
    assert!(lines[1].starts_with("at http://127.0.0.1:"), "{lines:?}");
    assert!(lines[1].contains("no key needed"), "{lines:?}");
    assert!(lines[2].starts_with("kernel "), "{lines:?}");
    assert!(lines[2].contains("the KV cache holds "), "{lines:?}");
    let models = serving.ask("GET /v1/models", "");
    assert!(
        models.starts_with("HTTP/1.1 200") && models.contains("\"tiny\""),
        "{models}"
    );
    let body =
        r#"{"model": "tiny", "prompt": "a secret prompt", "max_tokens": 3, "temperature": 0}"#;
    let answer = serving.ask(COMPLETE, body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // One line for each request, without what was asked.
    let first = serving.line();
    assert!(first.starts_with("GET /v1/models 200 "), "{first}");
    let second = serving.line();
    assert!(second.starts_with("POST /v1/completions 200 "), "{second}");
    assert!(second.contains("+3 tokens"), "{second}");
    assert!(!second.contains("secret"), "{second}");
    serving.signal("-TERM");
    let (status, rest) = serving.end();
    assert!(status.success(), "{status}: {rest}");
}

#[test]
fn a_text_that_is_written_is_ended_before_the_server_is() {
    let serving = Serving::start(&[], |_| ());
    let body =
        r#"{"prompt": "Once upon a time", "max_tokens": 300, "stream": true, "ignore_eos": true}"#;
    let mut stream = serving.connect();
    stream
        .write_all(request(COMPLETE, body).as_bytes())
        .expect("it is taken");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("a line") > 0);
    }
    serving.signal("-TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let (status, text) = serving.end();
    assert!(status.success(), "{status}: {text}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut serving = Serving::start(&["--max-model-len", "512"], |_| ());
    // A request that does not end by itself.
    let mut stream = serving.connect();
    stream
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n")
        .expect("it is taken");
    std::thread::sleep(Duration::from_millis(300));
    serving.signal("-INT");
    let line = serving.line();
    assert!(line.contains("a second signal ends them"), "{line}");
    serving.signal("-INT");
    let (status, _) = serving.end();
    assert_eq!(status.code(), Some(130));
}

#[test]
fn requests_that_do_not_end_are_cut_off_and_that_is_a_failure() {
    let serving = Serving::start(&["--shutdown-timeout", "0.3"], |_| ());
    let mut stream = serving.connect();
    stream
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n")
        .expect("it is taken");
    std::thread::sleep(Duration::from_millis(300));
    serving.signal("-TERM");
    let (status, rest) = serving.end();
    assert_eq!(status.code(), Some(143), "{rest}");
    assert!(rest.contains("--shutdown-timeout"), "{rest}");
}

#[test]
fn more_connections_than_files_are_a_wait_and_no_end() {
    let mut serving = Serving::start(&[], |command| {
        let program = command.get_program().to_owned();
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
        limited.arg(program);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        *command = limited;
    });
    let open: Vec<TcpStream> = (0..100).map(|_| serving.connect()).collect();
    let line = serving.line();
    assert!(line.starts_with("cannot take connections in: "), "{line}");
    drop(open);
    let answer = serving.ask("GET /health", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn keys_come_from_options_a_file_and_the_environment() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keys");
    std::fs::write(&file, "# mine\nbeta\n").expect("a file");
    let path = file.to_str().expect("text");
    let serving = Serving::start(&["--api-key", "alpha", "--api-key-file", path], |command| {
        command.env("SPARAMX_API_KEY", "gamma");
    });
    assert!(
        serving.lines[1].contains("a key needed"),
        "{:?}",
        serving.lines
    );
    for key in ["alpha", "beta", "gamma"] {
        let head = format!("GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\nX-Rest:");
        assert!(serving.ask(&head, "").starts_with("HTTP/1.1 200"), "{key}");
    }
    assert!(
        serving
            .ask("GET /v1/models", "")
            .starts_with("HTTP/1.1 401")
    );
    serving.signal("-TERM");
    let (status, rest) = serving.end();
    assert!(status.success() && !rest.contains("alpha"), "{rest}");
}

#[test]
fn an_address_that_is_taken_or_open_is_refused_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = sparamx();
    let out = output(command.args(["serve", "--port", &port]));
    fails(&out, 1, &["cannot listen at 127.0.0.1:", "--port"]);
    let mut command = sparamx();
    command.env_remove("SPARAMX_API_KEY");
    let out = output(command.args(["serve", "--host", "0.0.0.0", "--port", "0"]));
    fails(&out, 2, &["--api-key", "--no-auth"]);
    for (options, words) in [
        (["--allowed-origin", "example.com"], "--allowed-origin"),
        (["--allowed-host", "http://example.com"], "--allowed-host"),
        (["--api-key-file", "/nonexistent/keys"], "/nonexistent/keys"),
        (["--ssl-certfile", "a.pem"], "--ssl-keyfile"),
        (["--max-num-seqs", "0"], "at least 1"),
    ] {
        let mut command = sparamx();
        let out = output(command.args(["serve", "--port", "0"]).args(options));
        assert!(!out.status.success());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    }
}
