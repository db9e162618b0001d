//! Tools, reasoning and templates in chats.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sparamx_engine::{ChatTemplate, EngineError, Host, HostOptions, Loaded};

use crate::error::ApiError;
use crate::options::{ModelOptions, ServerOptions};
use crate::state::Served;
use crate::testing::{MODEL, TestServer, loaded, loading, runtime, server_with};
use crate::tools::ToolFormat;

const PATH: &str = "/v1/chat/completions";

fn tools() -> Value {
    json!([{
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says how the weather is.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Berlin", "Rome"]},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7},
                },
                "required": ["city", "days"],
                "additionalProperties": false,
            },
        },
    }])
}

fn with_parser(name: Option<&str>) -> TestServer {
    let model = ModelOptions {
        tool_parser: name.map(|name| ToolFormat::parse_name(name).unwrap()),
        ..ModelOptions::default()
    };
    server_with(
        ServerOptions {
            model,
            ..ServerOptions::default()
        },
        HostOptions::default(),
    )
}

/// A server for a model with a chat template.
fn with_template(source: &str, options: ServerOptions) -> TestServer {
    let server = loading(options);
    let template =
        ChatTemplate::new(Path::new("template"), source, [("bos_token", "<s>")]).unwrap();
    let loaded = Loaded {
        runtime: runtime(),
        template: Some(template),
        ..loaded()
    };
    let host = Host::start(
        loaded,
        HostOptions {
            pin: false,
            ..HostOptions::default()
        },
    )
    .unwrap();
    let options = server.server.app().options().clone();
    let served = Served::new(
        Arc::new(host),
        vec![MODEL.to_owned()],
        "stories".to_owned(),
        &options,
    );
    server.server.ready(served);
    server
}

fn body(fields: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "How is the weather?"}],
        "temperature": 1, "seed": 2, "max_completion_tokens": 150,
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

fn stream(server: &TestServer, fields: Value) -> Vec<Value> {
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

fn refused(server: &TestServer, fields: Value) -> Value {
    let answer = server.post(PATH, &body(fields.clone()));
    assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
    answer.json()["error"].clone()
}

/// The arguments of a call of the tool, which keep its schema.
fn arguments(call: &Value) -> Value {
    assert_eq!(
        (&call["type"], &call["function"]["name"]),
        (&json!("function"), &json!("get_weather"))
    );
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(
        arguments["city"] == "Berlin" || arguments["city"] == "Rome",
        "{arguments}"
    );
    assert!(
        (1..=7).contains(&arguments["days"].as_i64().unwrap()),
        "{arguments}"
    );
    assert_eq!(arguments.as_object().unwrap().len(), 2);
    arguments
}

#[test]
fn forced_calls_keep_their_schema_in_every_format() {
    for parser in [
        None,
        Some("hermes"),
        Some("llama3_json"),
        Some("mistral"),
        Some("qwen3_coder"),
        Some("pythonic"),
    ] {
        let server = with_parser(parser);
        for (choice, reason) in [
            (json!("required"), "tool_calls"),
            (
                json!({"type": "function", "function": {"name": "get_weather"}}),
                "stop",
            ),
        ] {
            let fields =
                json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false});
            let answer = ask(&server, fields.clone());
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], reason, "{parser:?}: {answer}");
            assert_eq!(choice["message"]["content"], Value::Null, "{parser:?}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1);
            let expected = arguments(&calls[0]);
            let id = calls[0]["id"].as_str().unwrap();
            match parser {
                Some("mistral") => assert_eq!(id.len(), 9),
                _ => assert!(id.starts_with("call_") && id.len() == 29, "{id}"),
            }

            let chunks = stream(&server, fields);
            let (calls, reasons) = assembled(&chunks, 0);
            assert_eq!(reasons, [reason]);
            assert_eq!(calls.len(), 1);
            assert_eq!(arguments(&calls[0]), expected, "{parser:?}");
        }
    }
}

/// The calls that the deltas of a text make, as clients put them together by `index`, and its finish reasons.
fn assembled(chunks: &[Value], index: usize) -> (Vec<Value>, Vec<String>) {
    let (mut calls, mut reasons) = (Vec::<Value>::new(), Vec::new());
    for choice in chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
    {
        if choice["index"] != index {
            continue;
        }
        reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
        for delta in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let at = delta["index"].as_u64().expect("an index in every delta") as usize;
            if let Some(id) = delta["id"].as_str() {
                assert_eq!(at, calls.len());
                assert_eq!(
                    (&delta["type"], &delta["function"]["arguments"]),
                    (&json!("function"), &json!(""))
                );
                assert!(!id.is_empty() && delta["function"]["name"].is_string());
                calls.push(delta.clone());
            } else {
                assert_eq!(
                    (delta.get("type"), delta["function"].get("name")),
                    (None, None)
                );
                let more = delta["function"]["arguments"].as_str().unwrap();
                let all = calls[at]["function"]["arguments"]
                    .as_str()
                    .unwrap()
                    .to_owned()
                    + more;
                calls[at]["function"]["arguments"] = json!(all);
            }
        }
    }
    (calls, reasons)
}

#[test]
fn calls_come_with_streams_log_probabilities_and_n_at_the_same_time() {
    let server = with_parser(Some("hermes"));
    let fields = json!({
        "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "n": 2, "logprobs": true, "top_logprobs": 2,
        "stream_options": {"include_usage": true},
    });
    let chunks = stream(&server, fields);
    let mut tokens = 0;
    for index in 0..2 {
        let (calls, reasons) = assembled(&chunks, index);
        assert_eq!((calls.len(), reasons), (1, vec!["tool_calls".to_owned()]));
        arguments(&calls[0]);
        let ours = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index);
        tokens += ours
            .filter_map(|choice| choice["logprobs"]["content"].as_array())
            .flatten()
            .count();
    }
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], tokens);
}

#[test]
fn free_answers_are_content() {
    let server = with_parser(Some("hermes"));
    let plain = ask(&server, json!({"max_completion_tokens": 20}));
    for choice in ["auto", "none"] {
        let answer = ask(
            &server,
            json!({"tools": tools(), "tool_choice": choice, "max_completion_tokens": 20}),
        );
        assert_eq!(
            answer["choices"][0]["message"]["content"], plain["choices"][0]["message"]["content"],
            "{choice}"
        );
        assert_eq!(answer["choices"][0]["message"].get("tool_calls"), None);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    // A call that the model makes by itself is found, here with text before it.
    let call = r#"Well.<tool_call>{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>"#;
    let fields = json!({"tools": tools(), "structured_outputs": {"choice": [call]}});
    let answer = ask(&server, fields.clone());
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Well.", "{answer}");
    assert_eq!(
        arguments(&message["tool_calls"][0]),
        json!({"city": "Rome", "days": 2})
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let (calls, _) = assembled(&stream(&server, fields), 0);
    assert_eq!(arguments(&calls[0]), json!({"city": "Rome", "days": 2}));
    // Without tools it is text.
    let answer = ask(&server, json!({"structured_outputs": {"choice": [call]}}));
    assert_eq!(answer["choices"][0]["message"]["content"], call);
}

#[test]
fn wrong_tools_are_said() {
    let server = with_parser(None);
    let function = |name: &str| json!({"type": "function", "function": {"name": name}});
    let cases = [
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": tools(), "tool_choice": "sometimes"}),
            "tool_choice",
        ),
        (
            json!({"tools": tools(), "tool_choice": function("other")}),
            "tool_choice",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "custom"}}),
            "tool_choice",
        ),
        (json!({"tools": tools(), "tool_choice": 1}), "tool_choice"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (json!({"tools": [function("")]}), "tools[0].function.name"),
        (
            json!({"tools": [function("a"), function("a")]}),
            "tools[1].function.name",
        ),
        (
            json!({"tools": tools(), "tool_choice": "required", "response_format": {"type": "json_object"}}),
            "tool_choice",
        ),
    ];
    for (fields, param) in cases {
        assert_eq!(refused(&server, fields.clone())["param"], param, "{fields}");
    }
}

#[test]
fn strict_is_refused_where_free_calls_cannot_be_held_to_it() {
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    for parser in [
        None,
        Some("llama3_json"),
        Some("pythonic"),
        Some("hermes"),
        Some("mistral"),
        Some("qwen3_coder"),
    ] {
        let server = with_parser(parser);
        let fields = json!({"tools": strict, "max_completion_tokens": 5});
        if matches!(parser, None | Some("llama3_json" | "pythonic")) {
            let error = refused(&server, fields);
            assert_eq!(error["param"], "tools[0].function.strict", "{parser:?}");
            assert_eq!(error["code"], "unsupported_parameter");
        } else {
            ask(&server, fields);
        }
        let others = [
            json!({"tools": strict, "tool_choice": "none"}),
            json!({"tools": strict, "structured_outputs": {"choice": ["a"]}}),
            json!({"tools": strict, "tool_choice": "required", "parallel_tool_calls": false}),
            json!({"tools": tools()}),
        ];
        for fields in others {
            ask(&server, fields);
        }
    }
}

#[test]
fn a_schema_that_cannot_be_kept_is_loose_unless_its_tool_is_strict() {
    let server = with_parser(Some("hermes"));
    let tools = |free: bool, strict: bool| {
        let mut all = tools();
        all[0]["function"]["strict"] = json!(strict);
        let list = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
        let parameters = json!({"type": "object", "properties": {"list": list}});
        let other = json!({"name": "sort", "parameters": parameters, "strict": !free});
        let all_tools = all.as_array_mut().unwrap();
        all_tools.push(json!({"type": "function", "function": other}));
        all
    };
    for choice in ["required", "auto"] {
        let fields = |tools: Value| json!({"tools": tools, "tool_choice": choice, "max_completion_tokens": 5});
        for strict in [true, false] {
            ask(&server, fields(tools(true, strict)));
            let error = refused(&server, fields(tools(false, strict)));
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("uniqueItems"), "{message}");
        }
    }
}

#[test]
fn schemas_of_tools_have_a_size() {
    let tool = |count: usize, strict: bool| {
        let defs: Map<String, Value> = (0..count / 2)
            .map(|n| (format!("d{n}"), json!({"type": "integer"})))
            .collect();
        let properties: Map<String, Value> = (0..count)
            .map(|n| (format!("p{n}"), json!({"$ref": "#/$defs/d0"})))
            .collect();
        json!([{"type": "function", "function": {"name": "f", "strict": strict, "parameters": {
            "type": "object", "properties": properties, "$defs": defs}}}])
    };
    let forced = |tools: Value| json!({"tools": tools, "tool_choice": "required"});
    for (parser, count, words) in [
        ("hermes", 2000, "65536"),
        ("qwen3_coder", 2000, "65536"),
        ("qwen3_coder", 400, "1048576"),
        ("pythonic", 400, "1048576"),
    ] {
        let server = with_parser(Some(parser));
        let error = refused(&server, forced(tool(count, true)));
        assert_eq!(error["param"], "tools", "{parser} {count}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{parser} {count}: {message}");
    }
    // Where nobody says that it must be kept, such a schema is left alone.
    let server = with_parser(Some("hermes"));
    let answer = ask(&server, forced(tool(2000, false)));
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"],
        "f"
    );
}

#[test]
fn reasoning_is_split_off() {
    let model = ModelOptions {
        reasoning_parser: Some("qwen3".to_owned()),
        ..ModelOptions::default()
    };
    let server = server_with(
        ServerOptions {
            model,
            ..ServerOptions::default()
        },
        HostOptions::default(),
    );
    assert!(server.server.app().model().unwrap().meta.reasoning);
    let fields = json!({"structured_outputs": {"regex": "<think>so it is</think>It is so\\."}, "logprobs": true});
    let answer = ask(&server, fields.clone());
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "It is so.");
    assert_eq!(
        (&message["reasoning"], &message["reasoning_content"]),
        (&json!("so it is"), &json!("so it is"))
    );
    let chunks = stream(&server, fields.clone());
    let joined = |name: &str| -> String {
        chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"][name].as_str())
            .collect()
    };
    assert_eq!(joined("content"), "It is so.");
    assert_eq!(
        (joined("reasoning"), joined("reasoning_content")),
        ("so it is".to_owned(), "so it is".to_owned())
    );
    let mut hidden = fields;
    hidden["include_reasoning"] = json!(false);
    let answer = ask(&server, hidden);
    assert_eq!(answer["choices"][0]["message"]["content"], "It is so.");
    assert_eq!(answer["choices"][0]["message"].get("reasoning"), None);
}

#[test]
fn an_expression_is_the_content_though_the_prompt_opens_reasoning() {
    let source = "{{ bos_token }}{{ messages[0].content }}<think>\n{# until </think> #}";
    let server = with_template(source, ServerOptions::default());
    assert!(server.server.app().model().unwrap().meta.reasoning);
    for form in [
        json!({"regex": "It is so\\."}),
        json!({"grammar": "start: \"It is so.\""}),
    ] {
        let fields = json!({"structured_outputs": form});
        let message = &ask(&server, fields.clone())["choices"][0]["message"];
        assert_eq!(message["content"], "It is so.", "{fields}");
        assert_eq!(message.get("reasoning"), None, "{fields}");
        let content: String = stream(&server, fields)
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(content, "It is so.");
    }
}

/// A template that shows all it gets.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
    {% endfor %}{% if tools %}{{ tools | length }} tools\n{% endif %}{% if mood is defined %}{{ mood }}\n{% endif %}\
    {% if reasoning_effort is defined %}{{ reasoning_effort }}\n{% endif %}{% if add_generation_prompt %}assistant:{% endif %}";

#[test]
fn templates_get_what_the_request_says() {
    let options = ServerOptions {
        model: ModelOptions {
            template_variables: json!({"mood": "grim"}).as_object().unwrap().clone(),
            ..ModelOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = with_template(TEMPLATE, options);
    let same = |fields: Value, prompt: &str| {
        let mut fields = fields;
        fields["temperature"] = json!(0);
        fields["max_completion_tokens"] = json!(8);
        let chat = ask(&server, fields);
        let raw = json!({"prompt": prompt, "add_special_tokens": false, "temperature": 0, "max_tokens": 8});
        let raw = server.post("/v1/completions", &raw).json();
        assert_eq!(
            chat["usage"]["prompt_tokens"], raw["usage"]["prompt_tokens"],
            "{prompt}"
        );
        assert_eq!(
            chat["choices"][0]["message"]["content"], raw["choices"][0]["text"],
            "{prompt}"
        );
    };
    let one = json!([{"role": "user", "content": "Hi"}]);
    same(json!({"messages": one}), "<s>user: Hi\ngrim\nassistant:");
    same(
        json!({"messages": one, "add_generation_prompt": false}),
        "<s>user: Hi\ngrim\n",
    );
    same(
        json!({"messages": one, "chat_template_kwargs": {"mood": "gay"}}),
        "<s>user: Hi\ngay\nassistant:",
    );
    same(
        json!({"messages": one, "reasoning_effort": "low"}),
        "<s>user: Hi\ngrim\nlow\nassistant:",
    );
    same(
        json!({"messages": one, "tools": tools(), "tool_choice": "none"}),
        "<s>user: Hi\n1 tools\ngrim\nassistant:",
    );
    let two =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, I"}]);
    same(
        json!({"messages": two, "continue_final_message": true}),
        "<s>user: Hi\nassistant: Well, I",
    );
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}]);
    same(
        json!({"messages": parts}),
        "<s>user: Hi\nyou\ngrim\nassistant:",
    );
}

#[test]
fn overload_is_told_as_such_and_counted() {
    let server = server_with(ServerOptions::default(), HostOptions::default());
    let served = server.server.app().model().unwrap();
    let error = "the chat template takes more than 2 seconds".to_owned();
    let error = served.counted(EngineError::Overload { error }.into());
    assert_eq!((error.status.as_u16(), error.retry_after), (503, Some(1)));
    assert!(error.message.contains("2 seconds"), "{error:?}");
    served.counted(ApiError::malformed("not an overload"));
    let metrics = server.get("/metrics").text();
    let line = metrics.lines().find(|line| line.contains("\"overload\""));
    assert!(line.unwrap().ends_with(" 1"), "{line:?}");
}

#[test]
fn a_template_that_refuses_is_a_fault_of_the_messages() {
    let source = "{{ raise_exception('roles must alternate') }}";
    let server = with_template(source, ServerOptions::default());
    let error = refused(&server, json!({}));
    assert_eq!(error["param"], "messages");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("roles must alternate"),
        "{error}"
    );
}
