use serde_json::{Map, Value, json};
use sparamx_engine::HostOptions;

use crate::options::{ModelOptions, ServerOptions};
use crate::testing::{Answer, MODEL, TestServer, server, server_with};

const PATH: &str = "/v1/chat/completions";

/// A short greedy request with these fields on top.
fn body(fields: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "temperature": 0,
        "max_completion_tokens": 12,
    });
    let fields: Map<String, Value> = serde_json::from_value(fields).unwrap();
    body.as_object_mut().unwrap().extend(fields);
    body
}

fn ask(server: &TestServer, fields: Value) -> Value {
    let answer = server.post(PATH, &body(fields));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn text(server: &TestServer, fields: Value) -> String {
    content(&ask(server, fields)).to_owned()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn refused(server: &TestServer, fields: Value) -> Value {
    let answer = server.post(PATH, &body(fields.clone()));
    assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
    answer.json()["error"].clone()
}

/// The chunks of a stream, which ends as it should.
fn chunks(answer: &Answer) -> Vec<Value> {
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

fn stream(server: &TestServer, fields: Value) -> Vec<Value> {
    let mut body = body(fields);
    body["stream"] = json!(true);
    let answer = server.post(PATH, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    chunks(&answer)
}

/// The text of a stream.
fn joined(chunks: &[Value], index: usize) -> String {
    let choices = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let ours = choices.filter(|choice| choice["index"] == index);
    ours.filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

#[test]
fn an_answer_has_all_its_fields() {
    let server = server();
    let answer = ask(&server, json!({"model": MODEL}));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(answer["model"], MODEL);
    assert!(
        answer["system_fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("sparamx-")
    );
    assert_eq!(answer.get("timings"), None);
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!content(&answer).is_empty());
    assert_eq!(choice["message"].get("tool_calls"), None);
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        (&choice["logprobs"], &choice["stop_reason"]),
        (&Value::Null, &Value::Null)
    );
    let usage = &answer["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 3);
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"], prompt + 12);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[test]
fn a_stream_is_the_same_text_in_chunks() {
    let server = server();
    let whole = text(&server, json!({}));
    let mut body = body(json!({"stream": true}));
    let answer = server.post(PATH, &body);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let chunks = chunks(&answer);
    assert_eq!(joined(&chunks, 0), whole);
    let first = &chunks[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!(
        (&last["delta"], &last["finish_reason"]),
        (&json!({}), &json!("length"))
    );
    for chunk in &chunks {
        for field in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[field], chunks[0][field]);
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
        assert_eq!(chunk.get("usage"), None);
    }

    body["stream_options"] = json!({"include_usage": true});
    let chunks = self::chunks(&server.post(PATH, &body));
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    assert!(rest.iter().all(|chunk| chunk.get("usage").is_none()));

    body["stream_options"] = json!({"continuous_usage_stats": true});
    let chunks = self::chunks(&server.post(PATH, &body));
    let counts: Vec<u64> = chunks
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert!(
        counts.is_sorted() && counts.last() == Some(&12),
        "{counts:?}"
    );
}

#[test]
fn limits_are_said_by_name() {
    let server = server();
    let many: Map<String, Value> = (0..5000).map(|id| (id.to_string(), json!(1))).collect();
    let cases = [
        (json!({"temperature": -0.1}), "temperature", "0 or more"),
        (json!({"temperature": 1e300}), "temperature", "0 or more"),
        (json!({"top_p": 1.1}), "top_p", "0 to 1"),
        (json!({"min_p": -1}), "min_p", "0 to 1"),
        (json!({"top_k": -2}), "top_k", "-1 or more"),
        (
            json!({"presence_penalty": 2.1}),
            "presence_penalty",
            "-2 to 2",
        ),
        (
            json!({"frequency_penalty": -2.1}),
            "frequency_penalty",
            "-2 to 2",
        ),
        (
            json!({"repetition_penalty": 0}),
            "repetition_penalty",
            "more than 0",
        ),
        (json!({"n": 0}), "n", "1 to 128"),
        (json!({"n": 129}), "n", "1 to 128"),
        (json!({"n": 2, "best_of": 3}), "best_of", "equal"),
        (
            json!({"max_completion_tokens": 0}),
            "max_completion_tokens",
            "1 or more",
        ),
        (
            json!({"max_completion_tokens": null, "max_tokens": -1}),
            "max_tokens",
            "1 or more",
        ),
        (json!({"min_tokens": -1}), "min_tokens", "0 or more"),
        (json!({"min_tokens": 13}), "min_tokens", "12"),
        (json!({"logit_bias": {"4096": 1}}), "logit_bias", "4095"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "4095"),
        (json!({"logit_bias": {"05": 1}}), "logit_bias", "4095"),
        (
            json!({"logit_bias": {"5": 1, "+5": 1}}),
            "logit_bias",
            "4095",
        ),
        (json!({"logit_bias": many}), "logit_bias", "at most 4096"),
        (
            json!({"logit_bias": {"5": 101}}),
            "logit_bias",
            "-100 to 100",
        ),
        (
            json!({"top_logprobs": 3}),
            "top_logprobs",
            "logprobs is not true",
        ),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            "0 to 20",
        ),
        (json!({"stop": ["a", ""]}), "stop", "1 to 4096"),
        (json!({"stop": vec!["a"; 17]}), "stop", "at most 16"),
        (
            json!({"stop": {"a": 1}}),
            "stop",
            "a string or a list of strings",
        ),
        (json!({"stop_token_ids": [4096]}), "stop_token_ids", "4095"),
        (json!({"cache_salt": ""}), "cache_salt", "1 to 256"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            "stream",
        ),
        (json!({"messages": []}), "messages", "at least one"),
        (
            json!({"messages": [{"role": "owner", "content": "a"}]}),
            "messages[0].role",
            "system",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
            "missing",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
            "a string or a list of parts",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
            "missing",
        ),
        (json!({"seed": "x"}), "seed", "i64"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
            "one of them",
        ),
    ];
    for (fields, param, words) in cases {
        let error = refused(&server, fields.clone());
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(
            error["message"].as_str().unwrap().contains(words),
            "{error} has no '{words}'"
        );
    }
    // What is known before the first token is a status in streams too.
    let error = refused(&server, json!({"stream": true, "temperature": -1}));
    assert_eq!(error["param"], "temperature");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let server = server();
    let something = json!({"a": 1});
    for field in [
        "audio",
        "prediction",
        "web_search_options",
        "functions",
        "function_call",
        "use_beam_search",
        "truncate_prompt_tokens",
        "prompt_logprobs",
        "bad_words",
        "allowed_token_ids",
        "logits_processors",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "json_schema",
        "chat_template",
        "echo",
        "thinking_token_budget",
    ] {
        let error = refused(&server, json!({field: something}));
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(field), &json!("unsupported_parameter"))
        );
        // What is not given is not refused.
        ask(&server, json!({field: null, "max_completion_tokens": 1}));
    }
    let image = json!([{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]);
    let error = refused(
        &server,
        json!({"messages": [{"role": "user", "content": image}]}),
    );
    assert_eq!(error["code"], "unsupported_parameter");
    assert_eq!(error["param"], "messages[0].content[0].type");
    assert_eq!(
        refused(&server, json!({"modalities": ["text", "audio"]}))["code"],
        "unsupported_parameter"
    );
}

#[test]
fn what_has_no_effect_is_taken() {
    let server = server();
    let plain = text(&server, json!({}));
    let fields = json!({
        "user": "u", "store": true, "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "verbosity": "low", "priority": 3, "request_id": "r", "unknown": [1], "modalities": ["text"],
        "tools": null, "stop": null, "logit_bias": null, "n": null, "stream": null, "stream_options": null, "seed": null,
        "best_of": 1, "response_format": {"type": "text"},
    });
    assert_eq!(text(&server, fields), plain);
}

#[test]
fn models_are_known_by_their_names() {
    let server = server();
    assert_eq!(ask(&server, json!({"model": "alias"}))["model"], MODEL);
    assert_eq!(ask(&server, json!({"model": null}))["model"], MODEL);
    let answer = server.post(PATH, &body(json!({"model": "gpt-4", "stream": true})));
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["code"], "model_not_found");
}

#[test]
fn messages_are_texts_and_parts() {
    let server = server();
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "Once upon a time"}]}]);
    assert_eq!(
        text(&server, json!({"messages": parts})),
        text(&server, json!({}))
    );
    let talk = json!([
        {"role": "developer", "content": "Once"},
        {"role": "user", "content": "upon", "name": "Ann"},
        {"role": "assistant", "content": null},
        {"role": "user", "content": "a time"},
    ]);
    let joined = json!([{"role": "user", "content": "Once\n\nupon\n\na time"}]);
    assert_eq!(
        text(&server, json!({"messages": talk})),
        text(&server, json!({"messages": joined}))
    );
}

#[test]
fn filters_that_leave_one_token_are_greedy() {
    let server = server();
    let greedy = text(&server, json!({}));
    for fields in [
        json!({"top_k": 1}),
        json!({"top_p": 0}),
        json!({"min_p": 1}),
    ] {
        let mut fields = fields;
        fields["temperature"] = json!(1.5);
        assert_eq!(text(&server, fields.clone()), greedy, "{fields}");
    }
    for top_k in [-1, 0] {
        let all = text(
            &server,
            json!({"temperature": 1.5, "seed": 3, "top_k": top_k}),
        );
        assert_eq!(all, text(&server, json!({"temperature": 1.5, "seed": 3})));
    }
}

#[test]
fn seeds_repeat_texts_and_n_counts_them_up() {
    let server = server();
    let with = |seed: i64| text(&server, json!({"temperature": 1, "seed": seed}));
    let (five, six) = (with(5), with(6));
    assert_eq!(five, with(5));
    assert_ne!(five, six);
    let fields = json!({"temperature": 1, "seed": 5, "n": 2});
    let both = ask(&server, fields.clone());
    let choices = both["choices"].as_array().unwrap();
    let texts: Vec<&str> = choices
        .iter()
        .map(|choice| choice["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(texts, [five.as_str(), six.as_str()]);
    assert_eq!(both["usage"]["completion_tokens"], 24);
    let chunks = stream(&server, fields);
    assert_eq!((joined(&chunks, 0), joined(&chunks, 1)), (five, six));
    // Without a seed it is random.
    let random: Vec<String> = (0..3)
        .map(|_| text(&server, json!({"temperature": 2})))
        .collect();
    assert!(random.iter().any(|text| *text != random[0]));
}

#[test]
fn sampling_is_the_model_s_unless_told_otherwise() {
    let server = server();
    let neutral = ModelOptions {
        neutral_sampling: true,
        ..ModelOptions::default()
    };
    let other = server_with(
        ServerOptions {
            model: neutral,
            ..ServerOptions::default()
        },
        HostOptions::default(),
    );
    let with = |server: &TestServer, temperature: Value| {
        text(
            server,
            json!({"temperature": temperature, "seed": 11, "max_completion_tokens": 40}),
        )
    };
    let (model, plain) = (with(&server, json!(0.6)), with(&server, json!(1)));
    assert_ne!(model, plain);
    assert_eq!(with(&server, Value::Null), model);
    assert_eq!(with(&other, Value::Null), plain);
}

#[test]
fn penalties_and_biases_change_the_text() {
    let server = server();
    let long = |fields: Value| {
        let mut fields = fields;
        fields["max_completion_tokens"] = json!(60);
        text(&server, fields)
    };
    let plain = long(json!({}));
    for name in [
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ] {
        assert_ne!(long(json!({name: 2})), plain, "{name}");
    }
    // 'a' is a token of its own in this byte-level vocabulary.
    let forced = text(
        &server,
        json!({"logit_bias": {"68": 100}, "max_completion_tokens": 4}),
    );
    assert_eq!(
        forced
            .chars()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        1,
        "{forced}"
    );
    assert_eq!(forced.len(), 4);
    let first = ask(
        &server,
        json!({"logprobs": true, "max_completion_tokens": 1, "return_tokens_as_token_ids": true}),
    );
    let token = first["choices"][0]["logprobs"]["content"][0]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let id = token.strip_prefix("token_id:").unwrap();
    let banned = ask(
        &server,
        json!({
            "logprobs": true, "max_completion_tokens": 1, "return_tokens_as_token_ids": true, "logit_bias": {id: -100},
        }),
    );
    assert_ne!(
        banned["choices"][0]["logprobs"]["content"][0]["token"],
        token
    );
}

#[test]
fn texts_end_where_they_are_told_to() {
    let server = server();
    let plain = text(&server, json!({}));
    let word = plain.split_whitespace().nth(3).unwrap();
    let before = plain.split(word).next().unwrap();
    for stop in [json!(word), json!(["never comes", word])] {
        let answer = ask(&server, json!({"stop": stop}));
        assert_eq!(content(&answer), before);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], word);
        let chunks = stream(&server, json!({"stop": stop}));
        assert_eq!(joined(&chunks, 0), before);
        assert_eq!(chunks.last().unwrap()["choices"][0]["stop_reason"], word);
    }
    let with = text(
        &server,
        json!({"stop": word, "include_stop_str_in_output": true}),
    );
    assert_eq!(with, format!("{before}{word}"));

    let ids = ask(
        &server,
        json!({"logprobs": true, "return_tokens_as_token_ids": true}),
    );
    let tokens = ids["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let third: u32 = tokens[2]["token"].as_str().unwrap()["token_id:".len()..]
        .parse()
        .unwrap();
    let answer = ask(&server, json!({"stop_token_ids": [third]}));
    assert!(plain.starts_with(content(&answer)) && content(&answer).len() < plain.len());
    assert_eq!(answer["choices"][0]["stop_reason"], third);
    // The token that ended it counts.
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let later = ask(&server, json!({"stop_token_ids": [third], "min_tokens": 5}));
    assert!(later["usage"]["completion_tokens"].as_u64().unwrap() >= 5);
}

#[test]
fn the_end_of_a_text_can_be_ignored_and_shown() {
    let server = server();
    // The model is made to end its text at once.
    let ended = ask(&server, json!({"logit_bias": {"0": 100}}));
    assert_eq!(content(&ended), "");
    assert_eq!(
        (
            &ended["choices"][0]["finish_reason"],
            &ended["usage"]["completion_tokens"]
        ),
        (&json!("stop"), &json!(1))
    );
    assert_eq!(ended["choices"][0]["stop_reason"], Value::Null);
    let ignored = ask(
        &server,
        json!({"logit_bias": {"0": 100}, "ignore_eos": true}),
    );
    assert_eq!(
        (
            &ignored["choices"][0]["finish_reason"],
            &ignored["usage"]["completion_tokens"]
        ),
        (&json!("length"), &json!(12))
    );
    assert_eq!(content(&ignored), "");
    let shown = text(
        &server,
        json!({"logit_bias": {"0": 100}, "ignore_eos": true, "skip_special_tokens": false}),
    );
    assert_eq!(shown, "<|endoftext|>".repeat(12));
    let late = ask(&server, json!({"logit_bias": {"0": 100}, "min_tokens": 4}));
    assert_eq!(late["usage"]["completion_tokens"], 5);
}

#[test]
fn log_probabilities_come_with_each_token() {
    let server = server();
    let plain = ask(&server, json!({"logprobs": true}));
    let list = plain["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(list.len(), 12);
    let tokens: String = list
        .iter()
        .map(|entry| entry["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, content(&plain));
    let bytes = list
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(bytes, content(&plain).as_bytes());
    assert!(list.iter().all(
        |entry| entry["top_logprobs"] == json!([]) && entry["logprob"].as_f64().unwrap() <= 0.0
    ));

    let fields = json!({"logprobs": true, "top_logprobs": 3});
    let top = ask(&server, fields.clone());
    let list = top["choices"][0]["logprobs"]["content"].as_array().unwrap();
    for entry in list {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the most probable one.
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"]),
            (&entry["token"], &entry["logprob"])
        );
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    let chunks = stream(&server, fields);
    let streamed = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    let streamed: Vec<&Value> = streamed.flatten().collect();
    assert_eq!(streamed, list.iter().collect::<Vec<_>>());
}

#[test]
fn held_text_and_its_tokens_come_together() {
    let server = server();
    let plain = text(&server, json!({}));
    let word = plain.split_whitespace().nth(4).unwrap();
    // It begins like the text and never comes: all of it is held back.
    let stop = format!("{}{word}zzz", &plain[..plain.find(word).unwrap()]);
    let chunks = stream(&server, json!({"stop": stop, "logprobs": true}));
    assert_eq!(joined(&chunks, 0), plain);
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let Some(list) = choice["logprobs"]["content"].as_array() else {
            continue;
        };
        let tokens: String = list
            .iter()
            .map(|entry| entry["token"].as_str().unwrap())
            .collect();
        let delta = choice["delta"]["content"].as_str().unwrap();
        assert!(
            delta.starts_with(&tokens) || tokens.starts_with(delta),
            "{tokens:?} with {delta:?}"
        );
    }
}

#[test]
fn the_context_is_a_limit_with_numbers() {
    let server = server();
    let error = refused(
        &server,
        json!({"max_completion_tokens": 600, "stream": true}),
    );
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with(
            "This model's maximum context length is 512 tokens. However, you requested 60"
        ),
        "{message}"
    );
    assert!(message.contains("600 in the completion"), "{message}");
    // As long a prompt as there are tokens, and one that is too long to be tokenized.
    for words in [600, 400_000] {
        let messages = json!([{"role": "user", "content": "one ".repeat(words)}]);
        let error = refused(
            &server,
            json!({"messages": messages, "max_completion_tokens": null}),
        );
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        assert!(error["message"].as_str().unwrap().contains("512"));
    }
    // Without a limit of its own a text may fill the context.
    let full = ask(
        &server,
        json!({"max_completion_tokens": null, "ignore_eos": true}),
    );
    assert_eq!(full["usage"]["total_tokens"], 512);
    assert_eq!(full["choices"][0]["finish_reason"], "length");
    // The newer name comes first.
    let both = ask(
        &server,
        json!({"max_completion_tokens": 2, "max_tokens": 3}),
    );
    assert_eq!(both["usage"]["completion_tokens"], 2);
    let old = ask(
        &server,
        json!({"max_completion_tokens": null, "max_tokens": 3}),
    );
    assert_eq!(old["usage"]["completion_tokens"], 3);
}

#[test]
fn times_come_if_they_are_asked_for() {
    let server = server();
    let check = |timings: &Value| {
        assert_eq!(timings["predicted_n"], 12);
        assert!(timings["prompt_n"].as_u64().unwrap() + timings["cache_n"].as_u64().unwrap() > 3);
        for name in [
            "prompt_ms",
            "predicted_ms",
            "prompt_per_second",
            "predicted_per_second",
        ] {
            assert!(timings[name].as_f64().unwrap() > 0.0, "{name}: {timings}");
        }
        assert!(timings["draft_n"].is_u64() && timings["draft_n_accepted"].is_u64());
    };
    check(&ask(&server, json!({"timings": true}))["timings"]);
    let chunks = stream(&server, json!({"timings": true}));
    check(&chunks.last().unwrap()["timings"]);
}

#[test]
fn prefixes_are_shared_among_equal_salts_only() {
    let server = server();
    let long = json!([{"role": "user", "content": "The cat sat on the mat. ".repeat(20)}]);
    let cached = |salt: Value| {
        let answer = ask(&server, json!({"messages": long, "cache_salt": salt}));
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(cached(json!("a")), 0);
    assert!(cached(json!("a")) > 0);
    assert_eq!(cached(json!("b")), 0);
    assert_eq!(cached(Value::Null), 0);
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"enum": ["Lily", "Tim"]}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let server = server();
    let long = |format: Value| {
        let mut fields = format;
        fields["max_completion_tokens"] = json!(100);
        fields["temperature"] = json!(1);
        fields["seed"] = json!(4);
        fields
    };
    let formats = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "child", "strict": true, "schema": schema()}}}),
        json!({"response_format": {"type": "json_object", "schema": schema()}}),
        json!({"structured_outputs": {"json": schema()}}),
        json!({"structured_outputs": {"json": schema().to_string()}}),
    ];
    for format in formats {
        let answer = ask(&server, long(format.clone()));
        assert_eq!(
            answer["choices"][0]["finish_reason"], "stop",
            "{format}: {answer}"
        );
        let object: Value = serde_json::from_str(content(&answer)).unwrap();
        assert!(
            object["name"] == "Lily" || object["name"] == "Tim",
            "{object}"
        );
        assert!(
            (1..=9).contains(&object["age"].as_i64().unwrap())
                && object.as_object().unwrap().len() == 2
        );
        let chunks = stream(&server, long(format));
        assert_eq!(joined(&chunks, 0), content(&answer));
    }
    let choice = text(
        &server,
        long(json!({"structured_outputs": {"choice": ["a 🦀", "ein Fuß"]}})),
    );
    assert!(choice == "a 🦀" || choice == "ein Fuß", "{choice}");
    let regex = text(
        &server,
        long(json!({"structured_outputs": {"regex": "[a-c]{3}-[0-9]{2}"}})),
    );
    assert!(regex.len() == 6 && regex.as_bytes()[3] == b'-', "{regex}");
    let grammar = text(
        &server,
        long(json!({"structured_outputs": {"grammar": "start: \"yes\" | \"no\""}})),
    );
    assert!(grammar == "yes" || grammar == "no", "{grammar}");
    // Whatever it is, an object begins so.
    let object = json!({"response_format": {"type": "json_object"}, "max_completion_tokens": 3});
    assert!(text(&server, object).starts_with('{'));
    assert!(
        text(
            &server,
            json!({"structured_outputs": {"json_object": true}, "max_completion_tokens": 3})
        )
        .starts_with('{')
    );
}

#[test]
fn forms_that_cannot_be_kept_are_refused() {
    let server = server();
    let cases = [
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
            "allowed are text",
        ),
        (
            json!({"response_format": {}}),
            "response_format.type",
            "missing",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "missing",
        ),
        (
            json!({"structured_outputs": {}}),
            "structured_outputs",
            "exactly one",
        ),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}),
            "structured_outputs",
            "exactly one",
        ),
        (
            json!({"structured_outputs": {"json": "{"}}),
            "structured_outputs.json",
            "no JSON",
        ),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
            "both",
        ),
    ];
    for (fields, param, words) in cases {
        let error = refused(&server, fields.clone());
        assert_eq!(error["param"], param, "{fields}: {error}");
        assert!(
            error["message"].as_str().unwrap().contains(words),
            "{error} has no '{words}'"
        );
    }
    let unique = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": unique}});
    let error = refused(&server, json!({"response_format": format}));
    assert!(
        error["message"].as_str().unwrap().contains("uniqueItems"),
        "{error}"
    );
    assert_eq!(
        refused(
            &server,
            json!({"response_format": {"type": "structural_tag"}})
        )["code"],
        "unsupported_parameter"
    );
    let structured = json!({"structured_outputs": {"structural_tag": "a"}});
    assert_eq!(
        refused(&server, structured)["code"],
        "unsupported_parameter"
    );
}

#[test]
fn characters_are_whole_in_every_chunk() {
    let server = server();
    let word = "Füße 🦀🦀 ≥ é";
    let fields = json!({"structured_outputs": {"choice": [word]}, "max_completion_tokens": 60, "logprobs": true, "n": 2});
    let chunks = stream(&server, fields);
    for index in 0..2 {
        assert_eq!(joined(&chunks, index), word);
    }
    let pieces = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert!(pieces.clone().all(|piece| !piece.contains('\u{FFFD}')));
    // Bytes of the tokens are those of the text they came with.
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let Some(list) = choice["logprobs"]["content"].as_array() else {
            continue;
        };
        let bytes = list
            .iter()
            .filter(|entry| entry["token"] != "<|endoftext|>");
        let bytes: Vec<u8> = bytes
            .flat_map(|entry| entry["bytes"].as_array().unwrap())
            .map(|byte| byte.as_u64().unwrap() as u8)
            .collect();
        assert_eq!(
            bytes,
            choice["delta"]["content"].as_str().unwrap().as_bytes()
        );
    }
    // A text that ends within a character says so at its end.
    let cut = text(
        &server,
        json!({"structured_outputs": {"choice": ["🦀"]}, "max_completion_tokens": 2}),
    );
    assert!(
        cut.chars().all(|char| char == '\u{FFFD}') && !cut.is_empty(),
        "{cut}"
    );
}
