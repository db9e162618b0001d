//! Requests side by side, and clients that go away.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sparamx_engine::{EngineOptions, GenerateParams, Host, HostOptions};

use super::Job;
use crate::extract::Caller;
use crate::options::ServerOptions;
use crate::testing::{TestServer, read_answer, server, server_with};

const CHAT: &str = "/v1/chat/completions";
/// A guard against tests that hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn host(server: &TestServer) -> &Host {
    &server.server.app().model().unwrap().host
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a request without waiting for its answer.
fn send(server: &TestServer, path: &str, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

/// A chat that takes long: many texts as long as the context.
fn long(stream: bool) -> Value {
    json!({
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "ignore_eos": true, "n": 24, "stream": stream, "temperature": 1,
    })
}

fn nothing_left(server: &TestServer) {
    wait("the engine is idle", || {
        let stats = host(server).stats();
        stats.running == 0
            && stats.waiting == 0
            && host(server).requests() == 0
            && stats.pool.in_use_bytes == 0
    });
}

#[test]
fn a_client_that_goes_ends_its_request_while_it_is_decoded() {
    for stream in [false, true] {
        let server = server();
        let client = send(&server, CHAT, &long(stream));
        wait("it decodes", || host(&server).stats().tokens > 100);
        drop(client);
        nothing_left(&server);
        let stats = host(&server).stats();
        assert_eq!(
            (stats.finished.cancelled, stats.finished.length),
            (24, 0),
            "stream: {stream}"
        );
        wait("the metrics say so", || {
            let metrics = server.get("/metrics").text();
            let aborted = metrics.lines().find(|line| {
                line.starts_with("vllm:request_success_total") && line.contains("abort")
            });
            aborted.is_some_and(|line| line.ends_with(" 24"))
        });
    }
}

#[test]
fn a_client_that_goes_ends_its_request_in_the_prompt() {
    for stream in [false, true] {
        let engine = EngineOptions {
            step_tokens: 1,
            ..EngineOptions::default()
        };
        let server = server_with(
            ServerOptions::default(),
            HostOptions {
                engine,
                ..HostOptions::default()
            },
        );
        let mut body = long(stream);
        body["messages"][0]["content"] = json!("one two three ".repeat(150));
        body["n"] = json!(1);
        let client = send(&server, CHAT, &body);
        wait("the prompt is on its way", || {
            host(&server).stats().prefill_tokens > 3
        });
        drop(client);
        nothing_left(&server);
        let stats = host(&server).stats();
        assert_eq!(
            (stats.finished.cancelled, stats.tokens),
            (1, 0),
            "stream: {stream}"
        );
    }
}

#[test]
fn a_client_that_goes_ends_its_request_in_the_queue() {
    for stream in [false, true] {
        let engine = EngineOptions {
            max_running: 1,
            ..EngineOptions::default()
        };
        let server = server_with(
            ServerOptions::default(),
            HostOptions {
                engine,
                ..HostOptions::default()
            },
        );
        let first = send(&server, CHAT, &long(true));
        wait("the first runs", || host(&server).stats().running == 1);
        let before = host(&server).requests();
        let second = send(
            &server,
            CHAT,
            &json!({"messages": [{"role": "user", "content": "a"}], "stream": stream}),
        );
        wait("the second waits", || {
            host(&server).requests() > before || host(&server).stats().finished.length > 0
        });
        drop(second);
        wait("the second is gone", || {
            host(&server).stats().finished.cancelled >= 1
        });
        // The first, which has texts left, goes on.
        assert!(host(&server).requests() > 0);
        drop(first);
        nothing_left(&server);
        assert_eq!(host(&server).stats().finished.stop, 0);
    }
}

#[test]
fn greedy_texts_are_the_same_alone_together_and_in_any_order() {
    let server = server();
    let prompts: Vec<String> = (0..40)
        .map(|i| {
            format!(
                "{} {} and",
                ["Lily", "The dog", "One day", "A big"][i % 4],
                i
            )
        })
        .collect();
    let ask = |index: usize| {
        let stream = index.is_multiple_of(2);
        let body = json!({
            "messages": [{"role": "user", "content": prompts[index]}], "temperature": 0,
            "max_tokens": 10 + 3 * index, "stream": stream,
        });
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200);
        if !stream {
            return answer.json()["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned();
        }
        let events = answer.events();
        let chunks = events[..events.len() - 1]
            .iter()
            .map(|event| serde_json::from_str::<Value>(event).unwrap());
        let pieces = chunks.filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        });
        pieces.collect::<String>()
    };
    let alone: Vec<String> = (0..40).map(ask).collect();
    assert!(alone.iter().all(|text| !text.is_empty()));
    let orders: [Vec<usize>; 3] = [
        (0..40).collect(),
        (0..40).rev().collect(),
        (0..40).map(|i| i * 27 % 40).collect(),
    ];
    for order in orders {
        let together = Mutex::new(vec![String::new(); 40]);
        thread::scope(|scope| {
            for &index in &order {
                let (ask, together) = (&ask, &together);
                scope.spawn(move || {
                    let text = ask(index);
                    together.lock().unwrap()[index] = text;
                });
            }
        });
        assert_eq!(together.into_inner().unwrap(), alone, "{order:?}");
    }
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let server = server();
    let mut body = long(true);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    // It reads nothing: what is made for it fills the socket's buffers and waits.
    let mut slow = send(&server, CHAT, &body);
    wait("the slow one runs", || host(&server).stats().tokens > 0);
    let quick = server.post(
        CHAT,
        &json!({"messages": [{"role": "user", "content": "Once"}], "max_tokens": 5}),
    );
    assert_eq!(quick.status, 200);
    // The engine gets to the end of all its texts though nobody reads them.
    nothing_left(&server);
    let stats = host(&server).stats();
    assert_eq!(stats.finished.cancelled, 0);
    let answer = read_answer(&mut slow);
    let events = answer.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(
        events
            .iter()
            .filter(|event| event.contains(r#""finish_reason":"length""#))
            .count(),
        24
    );
}

#[test]
fn more_than_fit_are_refused_and_say_when_to_come_back() {
    let server = server_with(
        ServerOptions::default(),
        HostOptions {
            max_requests: 8,
            ..HostOptions::default()
        },
    );
    // Alone they are too many: to come back would not help.
    let answer = server.post(CHAT, &long(false));
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "n");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("24 texts") && message.contains("at most 8"),
        "{message}"
    );
    nothing_left(&server);
    let mut eight = long(true);
    eight["n"] = json!(8);
    let client = send(&server, CHAT, &eight);
    wait("they are taken", || host(&server).requests() == 8);
    let answer = server.post(CHAT, &eight);
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    drop(client);
    nothing_left(&server);
    let fits = server.post(
        CHAT,
        &json!({"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2, "n": 8}),
    );
    assert_eq!(fits.status, 200);
}

#[test]
fn a_request_that_began_before_the_end_is_generated() {
    let server = server();
    let app = server.server.app();
    app.drain();
    let job = Job {
        prompt: vec![1],
        params: GenerateParams::default(),
        logprobs: None,
        prompt_logprobs: None,
        n: 1,
        grammar: None,
        cache_salt: None,
    };
    let running = app.start(&Caller::default(), vec![job]);
    assert!(running.is_ok(), "{:?}", running.err());
}

#[test]
fn log_probabilities_have_a_bound_over_all_texts() {
    let server = server();
    let body = |prompts: usize, n: usize, more: Value| {
        let mut body =
            json!({"prompt": vec![[5; 10]; prompts], "n": n, "logprobs": 20, "max_tokens": 500});
        let more: Map<String, Value> = serde_json::from_value(more).unwrap();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    for over in [
        body(8, 128, json!({})),
        body(400, 1, json!({})),
        json!({"prompt": vec![vec![5; 500]; 512], "logprobs": 20, "max_tokens": 0, "echo": true}),
    ] {
        let answer = server.post("/v1/completions", &over);
        assert_eq!(answer.status, 400, "{}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["param"], "logprobs");
        for field in ["n, max_tokens", "echo", "4194304"] {
            assert!(
                error["message"].as_str().unwrap().contains(field),
                "{error}"
            );
        }
    }
    let fits = server.post("/v1/completions", &body(8, 2, json!({"max_tokens": 2})));
    assert_eq!(fits.status, 200, "{}", fits.text());
    nothing_left(&server);
}

#[test]
fn connections_serve_one_request_after_the_other() {
    let server = server();
    let body =
        json!({"messages": [{"role": "user", "content": "Once"}], "max_tokens": 3, "stream": true})
            .to_string();
    let mut stream = server.connect();
    for _ in 0..3 {
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            server.address,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let answer = read_answer(&mut stream);
        assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
