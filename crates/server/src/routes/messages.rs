//! POST /v1/messages and /v1/messages/count_tokens.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};

use crate::adapters::messages::{FIELDS, MessageWriter, chat_request, error_body};
use crate::adapters::rename;
use crate::chat::{ChatEvent, ChatStream, prompt_ids, start_chat};
use crate::error::ApiError;
use crate::extract::{Caller, Json};
use crate::ids;
use crate::sse::{SseEvent, sse_with};
use crate::state::App;
use crate::wire::anthropic::{
    AnthropicError, MessageAnswer, MessageEvent, MessagesRequest, TokenCount,
};

/// Sent when nothing happens for a while.
const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// Answers a request of the Messages API, at once or by events.
pub async fn post(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<MessagesRequest>,
) -> Result<Response, ApiError> {
    let served = app.served()?;
    let max_tokens = request
        .max_tokens
        .and_then(|tokens| usize::try_from(tokens).ok());
    let Some(max_tokens) = max_tokens.filter(|tokens| *tokens > 0) else {
        let message = "max_tokens: this field is required, and at least 1";
        return Err(ApiError::invalid("max_tokens", message));
    };
    let streams = request.stream.unwrap_or(false);
    let chat = start_chat(&app, &caller, chat_request(request)?).await;
    let chat = chat.map_err(|error| rename(error, &FIELDS))?;
    let model = served.name().to_owned();
    let writer = MessageWriter::new(ids::unique("msg_"), model, chat.prompt_tokens(), max_tokens);
    if streams {
        return Ok(sse_with(events(chat, writer), PING));
    }
    let answer = whole(chat, writer).await?;
    Ok(Json(answer).into_response())
}

/// The length of the prompt that a request makes.
pub async fn count_tokens(
    State(app): State<App>,
    Json(request): Json<MessagesRequest>,
) -> Result<Json<TokenCount>, ApiError> {
    let input_tokens = prompt_ids(&app, &chat_request(request)?)
        .await
        .map(|ids| ids.len());
    let input_tokens = input_tokens.map_err(|error| rename(error, &FIELDS))?;
    Ok(Json(TokenCount { input_tokens }))
}

/// What the SDK shows of a request that failed.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Answers below `/v1/messages` are in Anthropic's form also where something else than a route of it says what is wrong.
pub async fn in_form(request: Request, next: Next) -> Response {
    let rest = request.uri().path().strip_prefix("/v1/messages");
    if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return next.run(request).await;
    }
    let caller = request.extensions().get::<Caller>();
    let request_id = caller.map(|caller| caller.request_id.clone());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>() {
        let error = AnthropicError {
            error: error_body(error),
            request_id: request_id.clone(),
        };
        *response.body_mut() = Body::from(serde_json::to_string(&error).unwrap_or_default());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if let Some(Ok(id)) = request_id.as_deref().map(HeaderValue::from_str) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn whole(mut chat: ChatStream, mut writer: MessageWriter) -> Result<MessageAnswer, ApiError> {
    while let Some(event) = chat.next().await {
        if let ChatEvent::Failed(error) = event {
            return Err(error);
        }
        writer.take(event, chat.usage());
    }
    Ok(writer.into_answer())
}

fn events(chat: ChatStream, writer: MessageWriter) -> impl Stream<Item = SseEvent> + Send {
    let first = vec![writer.start()];
    let rest = stream::unfold((chat, writer), |(mut chat, mut writer)| async move {
        let event = chat.next().await?;
        let events = writer.take(event, chat.usage());
        Some((events, (chat, writer)))
    });
    let batches = stream::iter([first]).chain(rest);
    batches.flat_map(|events| stream::iter(events.into_iter().map(line)))
}

fn line(event: MessageEvent) -> SseEvent {
    SseEvent {
        event: Some(event.name()),
        data: serde_json::to_string(&event).unwrap_or_else(|_| ApiError::fault().body()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::options::ServerOptions;
    use crate::testing::{MODEL, TestServer, loading, server, server_with};

    fn body(more: Value) -> Value {
        let messages = json!([{"role": "user", "content": "Once upon a time"}]);
        let mut body =
            json!({"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 20});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    }

    fn events(server: &TestServer, body: &Value) -> Vec<Value> {
        let answer = server.post("/v1/messages", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let text = answer.text();
        let names = text.lines().filter_map(|line| line.strip_prefix("event: "));
        let events: Vec<Value> = answer
            .events()
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        assert!(names.eq(events.iter().map(|event| event["type"].as_str().unwrap())));
        events
    }

    #[test]
    fn a_message_is_answered() {
        let server = server();
        let answer = server.post("/v1/messages", &body(json!({})));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("request-id").is_some());
        let message = answer.json();
        assert!(message["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!(
            (&message["type"], &message["role"], &message["model"]),
            (&json!("message"), &json!("assistant"), &json!(MODEL))
        );
        assert_eq!(message["stop_reason"], "max_tokens");
        let text = message["content"][0]["text"].as_str().unwrap();
        assert!(text.contains("there was"), "{text}");
        assert_eq!(message["usage"]["output_tokens"], 20);
        let count = server
            .post("/v1/messages/count_tokens", &body(json!({})))
            .json();
        let usage = &message["usage"];
        let prompt = usage["input_tokens"].as_u64().unwrap()
            + usage["cache_read_input_tokens"].as_u64().unwrap();
        assert_eq!(count, json!({"input_tokens": prompt}));
    }

    #[test]
    fn a_conversation_that_is_too_long_is_counted() {
        let server = server();
        let text = "one two three ".repeat(1000);
        let long = body(json!({"messages": [{"role": "user", "content": text}]}));
        assert_eq!(server.post("/v1/messages", &long).status, 400);
        let answer = server.post("/v1/messages/count_tokens", &long);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["input_tokens"].as_u64().unwrap() > 1000);
    }

    #[test]
    fn a_stream_adds_up_to_the_message() {
        let server = server();
        for more in [
            json!({}),
            json!({"stop_sequences": ["girl"]}),
            json!({"max_tokens": 400}),
        ] {
            let whole = server.post("/v1/messages", &body(more.clone())).json();
            let mut streaming = body(more);
            streaming["stream"] = json!(true);
            let events = events(&server, &streaming);
            assert_eq!(events[0]["type"], "message_start");
            assert_eq!(events.last().unwrap()["type"], "message_stop");
            let end = &events[events.len() - 2];
            assert_eq!(end["delta"]["stop_reason"], whole["stop_reason"]);
            assert_eq!(end["delta"]["stop_sequence"], whole["stop_sequence"]);
            assert_eq!(
                end["usage"]["output_tokens"],
                whole["usage"]["output_tokens"]
            );
            let deltas = events
                .iter()
                .filter(|event| event["type"] == "content_block_delta");
            let text: String = deltas
                .map(|event| event["delta"]["text"].as_str().unwrap())
                .collect();
            assert_eq!(text, whole["content"][0]["text"]);
        }
    }

    #[test]
    fn each_end_has_its_reason() {
        let server = server();
        let stopped = server
            .post("/v1/messages", &body(json!({"stop_sequences": ["there"]})))
            .json();
        assert_eq!(
            (&stopped["stop_reason"], &stopped["stop_sequence"]),
            (&json!("stop_sequence"), &json!("there"))
        );
        // Clients ask for more than there is.
        let long = server
            .post("/v1/messages", &body(json!({"max_tokens": 32000})))
            .json();
        let reason = long["stop_reason"].as_str().unwrap();
        assert!(
            ["end_turn", "model_context_window_exceeded"].contains(&reason),
            "{reason}"
        );
    }

    #[test]
    fn errors_are_in_their_form() {
        let server = server();
        for (more, status, kind) in [
            (json!({"max_tokens": null}), 400, "invalid_request_error"),
            (json!({"max_tokens": 0}), 400, "invalid_request_error"),
            (json!({"messages": []}), 400, "invalid_request_error"),
            (json!({"messages": 1}), 400, "invalid_request_error"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                400,
                "invalid_request_error",
            ),
            (json!({"model": "another"}), 404, "not_found_error"),
        ] {
            for stream in [false, true] {
                let mut body = body(more.clone());
                body["stream"] = json!(stream);
                let answer = server.post("/v1/messages", &body);
                assert_eq!(answer.status, status, "{more}: {}", answer.text());
                assert_form(&answer.json(), kind);
            }
        }
        assert_form(&server.get("/v1/messages").json(), "invalid_request_error");
        assert_form(
            &server.get("/v1/messages/batches").json(),
            "not_found_error",
        );
        let other = server.get("/v1/messagesx").json();
        assert_eq!(other["error"]["code"], Value::Null);
        assert!(other.get("type").is_none());
    }

    fn assert_form(error: &Value, kind: &str) {
        assert_eq!(error["type"], "error", "{error}");
        assert_eq!(error["error"]["type"], kind, "{error}");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }

    #[test]
    fn errors_before_the_route_are_in_their_form() {
        let keyed = ServerOptions {
            keys: vec!["secret".to_owned()],
            ..ServerOptions::default()
        };
        let server = server_with(keyed, Default::default());
        let answer = server.post("/v1/messages", &body(json!({})));
        assert_eq!(answer.status, 401);
        assert_form(&answer.json(), "authentication_error");
        let length = answer.header("content-length").unwrap();
        assert_eq!(length.parse(), Ok(answer.body.len()));
        let headers = [
            ("Content-Type", "application/json"),
            ("x-api-key", "secret"),
        ];
        let answer = server.request(
            "POST",
            "/v1/messages",
            &headers,
            body(json!({})).to_string().as_bytes(),
        );
        assert_eq!(answer.status, 200);

        let server = loading(ServerOptions::default());
        let answer = server.post("/v1/messages", &body(json!({})));
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (503, Some("1"))
        );
        assert_form(&answer.json(), "overloaded_error");
    }

    #[test]
    fn a_forced_call_is_a_block_and_its_result_goes_on() {
        let server = server();
        let tool = json!({"name": "get_time", "description": "Says the time.", "input_schema": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": false,
        }});
        for choice in [
            json!({"type": "any", "disable_parallel_tool_use": true}),
            json!({"type": "tool", "name": "get_time"}),
        ] {
            let mut asked =
                body(json!({"tools": [tool], "tool_choice": choice, "max_tokens": 100}));
            let whole = server.post("/v1/messages", &asked).json();
            assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
            let call = &whole["content"][0];
            assert_eq!(
                (&call["type"], &call["name"]),
                (&json!("tool_use"), &json!("get_time"))
            );
            assert!(
                call["input"]["city"] == "Paris" || call["input"]["city"] == "Rome",
                "{call}"
            );

            asked["stream"] = json!(true);
            let events = events(&server, &asked);
            let deltas = events.iter().filter(|event| {
                event["delta"]["type"] == "input_json_delta" && event["index"] == 0
            });
            let pieces: String = deltas
                .map(|event| event["delta"]["partial_json"].as_str().unwrap())
                .collect();
            assert_eq!(
                serde_json::from_str::<Value>(&pieces).unwrap(),
                call["input"]
            );
            assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");

            let result =
                json!({"type": "tool_result", "tool_use_id": call["id"], "content": "noon"});
            let messages = json!([
                {"role": "user", "content": "Once upon a time"},
                {"role": "assistant", "content": whole["content"]},
                {"role": "user", "content": [result, {"type": "text", "text": "And then?"}]},
            ]);
            let answer = server.post(
                "/v1/messages",
                &body(json!({"messages": messages, "tools": [tool]})),
            );
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }

    #[test]
    fn a_schema_is_kept() {
        let server = server();
        let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
        let asked = json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}, "max_tokens": 100});
        let message = server.post("/v1/messages", &body(asked)).json();
        assert_eq!(message["stop_reason"], "end_turn", "{message}");
        let value: Value =
            serde_json::from_str(message["content"][0]["text"].as_str().unwrap()).unwrap();
        assert!(value["a"] == "x" || value["a"] == "y", "{value}");
    }
}
