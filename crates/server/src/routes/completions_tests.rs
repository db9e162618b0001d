use serde_json::{Map, Value, json};
use sparamx_engine::{Event, GenerateParams, Host, Request, SamplingParams};

use crate::testing::{MODEL, TestServer, server};

const PATH: &str = "/v1/completions";
const STORY: &str = "Once upon a time there was";

/// A short greedy request with these fields on top.
fn body(fields: Value) -> Value {
    let mut body = json!({"prompt": STORY, "temperature": 0});
    let fields: Map<String, Value> = serde_json::from_value(fields).unwrap();
    body.as_object_mut().unwrap().extend(fields);
    body
}

fn ask(server: &TestServer, fields: Value) -> Value {
    let answer = server.post(PATH, &body(fields));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices
        .iter()
        .map(|choice| choice["text"].as_str().unwrap())
        .collect()
}

fn refused(server: &TestServer, fields: Value) -> Value {
    let answer = server.post(PATH, &body(fields.clone()));
    assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
    answer.json()["error"].clone()
}

fn chunks(server: &TestServer, fields: Value) -> Vec<Value> {
    let mut body = body(fields);
    body["stream"] = json!(true);
    let answer = server.post(PATH, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

fn host(server: &TestServer) -> &Host {
    &server.server.app().model().unwrap().host
}

fn ids(server: &TestServer, text: &str) -> Vec<u32> {
    host(server).loaded().tokenizer.encode_prompt(text).unwrap()
}

#[test]
fn an_answer_has_all_its_fields() {
    let server = server();
    let answer = ask(&server, json!({"model": "alias"}));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("text_completion"), &json!(MODEL))
    );
    assert!(answer["system_fingerprint"].is_string());
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["logprobs"]),
        (&json!("length"), &Value::Null)
    );
    // OpenAI's default.
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let params = GenerateParams {
        max_tokens: 16,
        sampling: SamplingParams::greedy(),
        ..GenerateParams::default()
    };
    let prompt = ids(&server, STORY);
    let alone = host(&server)
        .generate(&prompt, &params, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(texts(&answer), [alone.text]);
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
}

#[test]
fn prompts_are_texts_or_ids_one_or_many() {
    let server = server();
    let other = "The dog";
    let (one, two) = (ids(&server, STORY), ids(&server, other));
    let plain = ask(&server, json!({}));
    let plain = texts(&plain)[0];
    let second = ask(&server, json!({"prompt": other}));
    let second = texts(&second)[0];
    for (prompt, expected) in [
        (json!(one), vec![plain]),
        (json!([STORY, other]), vec![plain, second]),
        (json!([two, one]), vec![second, plain]),
    ] {
        let answer = ask(&server, json!({"prompt": prompt}));
        assert_eq!(texts(&answer), expected, "{prompt}");
        assert_eq!(answer["usage"]["completion_tokens"], 16 * expected.len());
    }
    // Prompt-major.
    let answer = ask(
        &server,
        json!({"prompt": [STORY, other], "n": 2, "best_of": 2}),
    );
    assert_eq!(texts(&answer), [plain, plain, second, second]);
    // Special tokens are part of ids, and come around texts unless told otherwise.
    let bare = host(&server)
        .loaded()
        .tokenizer
        .encode(STORY, false)
        .unwrap();
    let without = ask(&server, json!({"add_special_tokens": false}));
    let same = ask(&server, json!({"prompt": bare}));
    assert_eq!(texts(&without), texts(&same));
    assert_eq!(without["usage"]["prompt_tokens"], bare.len());
    // An empty text starts from the beginning of one.
    assert_eq!(
        ask(&server, json!({"prompt": ""}))["usage"]["prompt_tokens"],
        1
    );
}

#[test]
fn wrong_prompts_are_said() {
    let server = server();
    let cases = [
        (json!({"prompt": null}), "prompt", "missing"),
        (json!({"prompt": []}), "prompt", "at least one"),
        (json!({"prompt": [[]]}), "prompt[0]", "at least one"),
        (json!({"prompt": [1, 4096]}), "prompt", "0 to 4095"),
        (json!({"prompt": [1, "a"]}), "prompt", "not several"),
        (json!({"prompt": [1, -1]}), "prompt[1]", "expected"),
        (json!({"prompt": 5}), "prompt", "a list of texts"),
        (json!({"prompt": vec!["a"; 600], "n": 2}), "prompt", "1024"),
        (json!({"logprobs": 21}), "logprobs", "0 to 20"),
        (json!({"logprobs": true}), "logprobs", "i64"),
        (json!({"max_tokens": 0}), "max_tokens", "1 or more"),
        (json!({"n": 2, "best_of": 1}), "best_of", "equal"),
        (json!({"min_tokens": 17}), "min_tokens", "16"),
    ];
    for (fields, param, words) in cases {
        let error = refused(&server, fields.clone());
        assert_eq!(error["param"], param, "{error}");
        assert!(
            error["message"].as_str().unwrap().contains(words),
            "{error} has no '{words}'"
        );
    }
    for field in [
        "suffix",
        "prompt_embeds",
        "use_beam_search",
        "truncate_prompt_tokens",
        "guided_json",
        "prompt_logprobs",
    ] {
        assert_eq!(
            refused(&server, json!({field: "x"}))["code"],
            "unsupported_parameter",
            "{field}"
        );
    }
    for prompt in [
        json!("one ".repeat(600)),
        json!("one ".repeat(400_000)),
        json!(vec![5; 600]),
    ] {
        let error = refused(&server, json!({"prompt": prompt}));
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
    }
    let error = refused(&server, json!({"max_tokens": 510}));
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("510 in the completion"),
        "{error}"
    );
    // The default fits itself into what is left.
    let short = ask(&server, json!({"prompt": vec![5; 505], "ignore_eos": true}));
    assert_eq!(short["usage"]["completion_tokens"], 7);
}

#[test]
fn streams_are_the_same_text_in_chunks() {
    let server = server();
    for fields in [
        json!({}),
        json!({"prompt": [STORY, "The dog"], "n": 2}),
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 2}),
    ] {
        let whole = ask(&server, fields.clone());
        let mut with = fields.clone();
        with["stream_options"] = json!({"include_usage": true});
        let chunks = chunks(&server, with);
        let (usage, parts) = chunks.split_last().unwrap();
        for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage["usage"][field], whole["usage"][field], "{field}");
        }
        for (index, text) in texts(&whole).iter().enumerate() {
            let ours = parts
                .iter()
                .map(|chunk| &chunk["choices"][0])
                .filter(|choice| choice["index"] == index);
            let joined: String = ours
                .clone()
                .map(|choice| choice["text"].as_str().unwrap())
                .collect();
            assert_eq!(joined, *text, "{fields}");
            assert_eq!(ours.clone().next_back().unwrap()["finish_reason"], "length");
            let tokens: Vec<&Value> = ours
                .filter_map(|choice| choice["logprobs"]["token_logprobs"].as_array())
                .flatten()
                .collect();
            let all = whole["choices"][index]["logprobs"]["token_logprobs"].as_array();
            assert_eq!(tokens, all.into_iter().flatten().collect::<Vec<_>>());
        }
    }
}

/// What `parse_logprobs` of lm-eval makes of a choice: the sum over the continuation, and whether it is the greedy one.
fn parse_logprobs(choice: &Value, context: usize) -> (f64, bool) {
    let tokens = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    let top = choice["logprobs"]["top_logprobs"].as_array().unwrap();
    let end = tokens.len() - 1;
    let sum = tokens[context..end]
        .iter()
        .map(|value| value.as_f64().unwrap())
        .sum();
    let greedy = (context..end).all(|at| {
        let best = top[at]
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_f64().unwrap());
        tokens[at].as_f64().unwrap() == best.fold(f64::NEG_INFINITY, f64::max)
    });
    (sum, greedy)
}

#[test]
fn likelihoods_are_those_of_the_engine() {
    let server = server();
    let prompts: Vec<Vec<u32>> = [STORY, "The dog was very happy", "x", "Lily zebra quantum"]
        .map(|text| ids(&server, text))
        .into();
    // As lm-eval sends it.
    let answer = ask(
        &server,
        json!({
            "prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": true,
        }),
    );
    for (index, prompt) in prompts.iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        let logprobs = &choice["logprobs"];
        for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                logprobs[field].as_array().unwrap().len(),
                prompt.len() + 1,
                "{field}"
            );
        }
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&Value::Null, &Value::Null)
        );
        let (sum, greedy) = parse_logprobs(choice, 1);
        let (expected, best) = engine_likelihood(host(&server), prompt);
        // The reader of the answer may round the last digit of each.
        assert!((sum - expected).abs() < 1e-12, "{sum}, {expected}");
        assert_eq!(greedy, best);
    }
    // The greedy text after a prompt is greedy, another is not.
    let next = ask(&server, json!({"max_tokens": 4}));
    let text = format!("{STORY}{}", texts(&next)[0]);
    let context = ids(&server, STORY).len();
    let scored = |text: &str| {
        let answer = ask(
            &server,
            json!({"prompt": ids(&server, text), "max_tokens": 1, "logprobs": 1, "echo": true}),
        );
        parse_logprobs(&answer["choices"][0], context).1
    };
    assert!(scored(&text));
    assert!(!scored(&format!("{STORY} zebra quantum")));
}

/// The sum of the log probabilities of a prompt's tokens but the first, and whether each is the most probable one.
fn engine_likelihood(host: &Host, prompt: &[u32]) -> (f64, bool) {
    let request = Request {
        prompt: prompt.to_vec(),
        params: GenerateParams {
            max_tokens: 0,
            ..GenerateParams::default()
        },
        prompt_logprobs: Some(1),
        ..Request::default()
    };
    let (mut sum, mut greedy) = (0.0, true);
    for event in host.submit(request).unwrap() {
        if let Event::Prompt { logprobs, .. } = event {
            for logprob in logprobs {
                // As JSON writes it and Python reads it.
                let read: f64 = logprob.logprob.to_string().parse().unwrap();
                sum += read;
                greedy &= logprob.logprob == logprob.top[0].1;
            }
        }
    }
    (sum, greedy)
}

#[test]
fn the_new_token_counts_even_if_it_ends_the_text() {
    let server = server();
    let prompt = ids(&server, STORY);
    let answer = ask(
        &server,
        json!({
            "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": true, "logit_bias": {"0": 100},
        }),
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(
        logprobs["token_logprobs"].as_array().unwrap().len(),
        prompt.len() + 1
    );
    assert_eq!(logprobs["tokens"][prompt.len()], "<|endoftext|>");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[test]
fn echoes_are_exact() {
    let server = server();
    let plain = ask(&server, json!({}));
    let echoed = ask(&server, json!({"echo": true, "logprobs": 2}));
    let text = texts(&echoed)[0];
    assert_eq!(text, format!("{STORY}{}", texts(&plain)[0]));
    let logprobs = &echoed["choices"][0]["logprobs"];
    let tokens: Vec<&str> = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    // The first one is no part of the text.
    assert_eq!(tokens[1..].concat(), text);
    let offsets = logprobs["text_offset"]
        .as_array()
        .unwrap()
        .iter()
        .map(|offset| offset.as_u64().unwrap() as usize);
    for (offset, token) in offsets.zip(&tokens).skip(1) {
        let rest: String = text.chars().skip(offset).collect();
        assert!(rest.starts_with(token), "{token} at {offset}");
    }
    for (top, value) in logprobs["top_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .zip(logprobs["token_logprobs"].as_array().unwrap())
        .skip(1)
    {
        let top = top.as_object().unwrap();
        assert!(
            (2..=3).contains(&top.len()) && top.values().any(|entry| entry == value),
            "{top:?} {value}"
        );
    }
    // The prompt alone.
    for logprobs in [json!(1), Value::Null] {
        let alone = ask(
            &server,
            json!({"echo": true, "max_tokens": 0, "logprobs": logprobs}),
        );
        assert_eq!(texts(&alone), [STORY]);
        assert_eq!(alone["usage"]["completion_tokens"], 0);
        let tokens = alone["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .map(Vec::len);
        assert_eq!(tokens, logprobs.as_u64().map(|_| ids(&server, STORY).len()));
    }
    // Ids are echoed as their text.
    let of_ids = ask(
        &server,
        json!({"echo": true, "prompt": ids(&server, STORY)}),
    );
    assert_eq!(texts(&of_ids)[0], text);
    let named = ask(
        &server,
        json!({"echo": true, "logprobs": 1, "return_tokens_as_token_ids": true, "max_tokens": 1}),
    );
    let logprobs = &named["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"][0], "token_id:1");
    assert!(
        logprobs["top_logprobs"][1]
            .as_object()
            .unwrap()
            .keys()
            .all(|key| key.starts_with("token_id:"))
    );
}

#[test]
fn characters_of_several_tokens_are_whole_and_have_one_offset() {
    let server = server();
    let text = "a🦀é.";
    let echoed = ask(
        &server,
        json!({"prompt": text, "echo": true, "logprobs": 0, "max_tokens": 0}),
    );
    assert_eq!(texts(&echoed), [text]);
    let logprobs = &echoed["choices"][0]["logprobs"];
    // The model has a token for each byte of these, and four of them are one character.
    let offsets: Vec<u64> = logprobs["text_offset"]
        .as_array()
        .unwrap()
        .iter()
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [0, 0, 1, 1, 1, 1, 2, 2, 3]);
    assert_eq!(logprobs["tokens"][2], "\u{FFFD}");
    // Tokens with the same text share a name: the more probable one stays.
    let top = ask(
        &server,
        json!({"prompt": text, "echo": true, "logprobs": 20, "max_tokens": 0}),
    );
    let top = top["choices"][0]["logprobs"]["top_logprobs"][3]
        .as_object()
        .unwrap()
        .clone();
    assert!(top.len() <= 21 && top.contains_key("\u{FFFD}"));
}
