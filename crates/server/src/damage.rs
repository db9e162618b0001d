//! Bodies with random damage: each is read, or refused as one whose sender is told what is wrong with it.

use axum::http::StatusCode;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::extract::parse;
use crate::wire::openai::{ChatRequest, CompletionRequest};

/// Bodies of each kind. `SPARAMX_DAMAGED_BODIES` sets another number: a million take half a minute.
const BODIES: usize = 20_000;
/// Characters of the longest message, and those of the field before it.
const LONGEST: usize = 1400;

/// What readers of numbers, texts and nesting have failed on.
const SPLINTERS: [&[u8]; 14] = [
    b"null",
    b"1e999",
    b"-1e-999",
    b"-0",
    b"99999999999999999999999999",
    b"\"\\ud800\"",
    b"\\u0000",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
    b"\"",
    b"}",
    b",,",
];

/// A generator of Knuth's, so that a failure is the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

/// One to four faults: a bit that is flipped, bytes that are left out, doubled, put in or exchanged, an end that comes early.
fn damaged(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes
                .splice(at..at, body[..body.len().min(end - at)].to_vec())
                .for_each(drop),
            3 => {
                let splinter = SPLINTERS[random.below(SPLINTERS.len())];
                bytes
                    .splice(at..at, splinter.iter().copied())
                    .for_each(drop);
            }
            4 => {
                let other = random.below(bytes.len());
                bytes.swap(at, other);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn check<T: DeserializeOwned>(random: &mut Random, body: &Value) -> Result<T, ApiError> {
    let body = body.to_string();
    let bytes = damaged(random, body.as_bytes());
    let shown = || String::from_utf8_lossy(&bytes).into_owned();
    let read = parse::<T>(&bytes);
    match &read {
        Ok(_) => {
            // Grammar alone: half a surrogate and a number beyond all bounds are JSON, and do no harm in a field that nobody reads.
            let text = std::str::from_utf8(&bytes);
            let json = text.is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
            assert!(json, "this is read, and is no JSON: {}", shown());
        }
        Err(error) => {
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{}", shown());
            assert!(!error.message.is_empty(), "{}", shown());
            let told =
                error.message.chars().count() + error.param.iter().map(String::len).sum::<usize>();
            assert!(told <= LONGEST, "{told} characters: {error:?}");
            let answer: Value = serde_json::from_str(&error.body()).expect("JSON");
            assert_eq!(answer["error"]["type"], "invalid_request_error");
        }
    }
    read
}

/// Reads damaged bodies made of these whole ones, some of which are harmless.
fn all<T: DeserializeOwned>(seed: u64, bodies: &[Value]) {
    for body in bodies {
        let whole = parse::<T>(body.to_string().as_bytes());
        assert!(whole.is_ok(), "{body}: {:?}", whole.err());
    }
    let count = std::env::var("SPARAMX_DAMAGED_BODIES").ok();
    let count = count.map_or(BODIES, |count| count.parse().expect("a number of bodies"));
    let mut random = Random(seed);
    let mut read = 0;
    for index in 0..count {
        read += usize::from(check::<T>(&mut random, &bodies[index % bodies.len()]).is_ok());
    }
    assert!(0 < read && read < count / 2, "{read} of {count} are read");
}

#[test]
fn damaged_chats_are_read_or_refused() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Röm"]}}, "required": ["city"]});
    let tool = json!({"type": "function", "function": {"name": "get_time", "description": "tells", "parameters": schema}});
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{\"city\":\"Paris\"}"}});
    all::<ChatRequest>(
        1,
        &[
            json!({"model": "m", "messages": [{"role": "user", "content": "Grüße, 世界 \u{1f30d} \"\n"}], "max_tokens": 5}),
            json!({
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                    {"role": "user", "content": "What time is it?", "name": "Tom"},
                    {"role": "assistant", "content": null, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
                ],
                "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "get_time"}}, "parallel_tool_calls": false,
                "stream": true, "stream_options": {"include_usage": true},
            }),
            json!({
                "messages": [{"role": "user", "content": "a"}], "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "n": 2,
                "seed": -7, "stop": ["a", "b"], "logit_bias": {"17": -100, "4": 3.5}, "logprobs": true, "top_logprobs": 3,
                "frequency_penalty": -1.5, "presence_penalty": 2, "max_completion_tokens": 9, "stop_token_ids": [1, 2],
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": true}},
                "chat_template_kwargs": {"enable_thinking": false}, "user": "u", "metadata": {"a": "b"},
            }),
        ],
    );
}

#[test]
fn damaged_completions_are_read_or_refused() {
    all::<CompletionRequest>(
        2,
        &[
            json!({"model": "m", "prompt": "Once upon a time", "max_tokens": 5, "stream": true}),
            json!({"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": true}),
            json!({"prompt": ["a", "b"], "n": 2, "best_of": 2, "stop": "x", "logit_bias": {"5": 1}, "ignore_eos": true}),
            json!({"prompt": [1, 2, 3], "structured_outputs": {"regex": "[a-z]+"}, "min_tokens": 2, "include_stop_str_in_output": true}),
        ],
    );
}
