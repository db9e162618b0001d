//! POST /v1/responses.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};

use crate::adapters::rename;
use crate::adapters::responses::{FIELDS, ResponseWriter, chat_request, response};
use crate::chat::{ChatEvent, ChatStream, start_chat};
use crate::error::ApiError;
use crate::extract::{Caller, Json};
use crate::ids;
use crate::sse::{SseEvent, sse};
use crate::state::{App, Served, now};
use crate::wire::responses::{ResponseEvent, ResponseObject, ResponsesRequest};

/// Answers a request of the Responses API, at once or by events.
pub async fn post(
    State(app): State<App>,
    caller: Caller,
    Json(mut request): Json<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let served = app.served()?;
    let chat = chat_request(&mut request)?;
    let chat = start_chat(&app, &caller, chat).await;
    let chat = chat.map_err(|error| rename(error, &FIELDS))?;
    let response = response(
        &request,
        ids::unique("resp_"),
        now(),
        &chat.head().model,
        &served.sampling,
    );
    let writer = ResponseWriter::new(response, count_tokens(served));
    if request.stream.unwrap_or(false) {
        return Ok(sse(events(chat, writer)));
    }
    let response = whole(chat, writer).await?;
    Ok(Json(response).into_response())
}

/// Counts the tokens of a text; 0 for one that the tokenizer refuses.
fn count_tokens(served: &Served) -> Box<dyn Fn(&str) -> usize + Send> {
    let tokenizer = Arc::clone(&served.host.loaded().tokenizer);
    Box::new(move |text| tokenizer.encode(text, false).map_or(0, |ids| ids.len()))
}

async fn whole(
    mut chat: ChatStream,
    mut writer: ResponseWriter,
) -> Result<ResponseObject, ApiError> {
    while let Some(event) = chat.next().await {
        if let ChatEvent::Failed(error) = event {
            return Err(error);
        }
        writer.take(event, chat.usage());
    }
    Ok(writer.into_response())
}

fn events(chat: ChatStream, mut writer: ResponseWriter) -> impl Stream<Item = SseEvent> + Send {
    let first = writer.start();
    let rest = stream::unfold((chat, writer), |(mut chat, mut writer)| async move {
        let event = chat.next().await?;
        let events = writer.take(event, chat.usage());
        Some((events, (chat, writer)))
    });
    let batches = stream::iter([first]).chain(rest);
    batches.flat_map(|events| stream::iter(events.into_iter().map(line)))
}

fn line(event: ResponseEvent) -> SseEvent {
    SseEvent {
        event: Some(event.kind),
        data: serde_json::to_string(&event).unwrap_or_else(|_| ApiError::fault().body()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{MODEL, TestServer, server};

    fn body(more: Value) -> Value {
        let mut body = json!({"model": MODEL, "input": "Once upon a time", "temperature": 0, "max_output_tokens": 20});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    }

    fn events(server: &TestServer, body: &Value) -> Vec<Value> {
        let answer = server.post("/v1/responses", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let events: Vec<Value> = answer
            .events()
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let text = answer.text();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("event: "))
            .collect();
        let types: Vec<&str> = events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect();
        assert_eq!(names, types);
        events
    }

    /// Without what differs between two responses to one request.
    fn lasting(response: &Value) -> Value {
        let mut response = response.clone();
        for field in ["id", "created_at", "completed_at"] {
            response[field].take();
        }
        for item in response["output"].as_array_mut().unwrap() {
            item["id"].take();
        }
        response["usage"]["input_tokens_details"].take();
        response
    }

    #[test]
    fn a_text_is_gone_on_with() {
        let server = server();
        let answer = server.post(
            "/v1/responses",
            &body(json!({"metadata": {"a": "b"}, "store": true})),
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        let response = answer.json();
        assert!(response["id"].as_str().unwrap().starts_with("resp_"));
        assert_eq!(
            (&response["object"], &response["model"]),
            (&json!("response"), &json!(MODEL))
        );
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["metadata"], json!({"a": "b"}));
        assert_eq!(
            (&response["store"], &response["temperature"]),
            (&json!(false), &json!(0.0))
        );
        let text = response["output"][0]["content"][0]["text"]
            .as_str()
            .unwrap();
        assert!(text.contains("there was"), "{text}");
        assert_eq!(response["usage"]["output_tokens"], 20);
        let chat = json!({"messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 0, "max_tokens": 20});
        let chat = server.post("/v1/chat/completions", &chat).json();
        assert_eq!(chat["choices"][0]["message"]["content"], text);
        assert_eq!(
            chat["usage"]["prompt_tokens"],
            response["usage"]["input_tokens"]
        );
    }

    #[test]
    fn a_stream_ends_with_what_the_answer_would_be() {
        let server = server();
        for more in [
            json!({}),
            json!({"max_output_tokens": 400}),
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
            json!({"instructions": "Be kind.", "max_output_tokens": 1}),
        ] {
            let whole = server.post("/v1/responses", &body(more.clone())).json();
            let mut streaming = body(more);
            streaming["stream"] = json!(true);
            let events = events(&server, &streaming);
            let last = events.last().unwrap();
            assert_eq!(
                last["type"],
                format!("response.{}", whole["status"].as_str().unwrap())
            );
            assert_eq!(lasting(&last["response"]), lasting(&whole));
            let deltas = events
                .iter()
                .filter(|event| event["type"] == "response.output_text.delta");
            let text: String = deltas
                .map(|event| event["delta"].as_str().unwrap())
                .collect();
            assert_eq!(text, whole["output"][0]["content"][0]["text"]);
            for (number, event) in events.iter().enumerate() {
                assert_eq!(event["sequence_number"], number);
            }
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_tokens() {
        let server = server();
        let asked = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 5});
        let response = server.post("/v1/responses", &body(asked)).json();
        let part = &response["output"][0]["content"][0];
        let logprobs = part["logprobs"].as_array().unwrap();
        assert_eq!(logprobs.len(), 5);
        let tokens: String = logprobs
            .iter()
            .map(|entry| entry["token"].as_str().unwrap())
            .collect();
        assert_eq!(tokens, part["text"].as_str().unwrap());
        assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(
            logprobs[0]["top_logprobs"][0]["logprob"],
            logprobs[0]["logprob"]
        );
    }

    #[test]
    fn a_schema_is_kept() {
        let server = server();
        let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
        let asked = json!({"max_output_tokens": 100, "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}});
        let response = server.post("/v1/responses", &body(asked)).json();
        assert_eq!(response["status"], "completed", "{response}");
        let text = response["output"][0]["content"][0]["text"]
            .as_str()
            .unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(value["a"] == "x" || value["a"] == "y", "{text}");
        assert_eq!(response["text"]["format"]["name"], "n");
    }

    #[test]
    fn what_is_wrong_is_a_status_also_for_a_stream() {
        let server = server();
        for (more, param, code) in [
            (
                json!({"previous_response_id": "resp_1"}),
                json!("previous_response_id"),
                json!("unsupported_parameter"),
            ),
            (
                json!({"max_output_tokens": 0}),
                json!("max_output_tokens"),
                Value::Null,
            ),
            (
                json!({"max_output_tokens": 5000}),
                Value::Null,
                json!("context_length_exceeded"),
            ),
            (
                json!({"temperature": -1}),
                json!("temperature"),
                Value::Null,
            ),
            (json!({"input": []}), json!("input"), Value::Null),
            (json!({"input": 7}), json!("input"), Value::Null),
            (
                json!({"text": {"format": {"type": "xml"}}}),
                json!("text.format.type"),
                Value::Null,
            ),
        ] {
            for stream in [false, true] {
                let mut body = body(more.clone());
                body["stream"] = json!(stream);
                let answer = server.post("/v1/responses", &body);
                assert_eq!(answer.status, 400, "{more}");
                let error = answer.json();
                assert_eq!(error["error"]["param"], param, "{error}");
                assert_eq!(error["error"]["code"], code, "{error}");
            }
        }
        let answer = server.post("/v1/responses", &body(json!({"model": "other"})));
        assert_eq!(answer.status, 404);
    }

    fn tool() -> Value {
        json!({"type": "function", "name": "get_time", "description": "Says the time.", "strict": true, "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": false,
        }})
    }

    #[test]
    fn a_forced_call_is_an_item_and_its_result_goes_on() {
        let server = server();
        for choice in [
            json!("required"),
            json!({"type": "function", "name": "get_time"}),
        ] {
            let mut asked = body(json!({
                "tools": [tool(), {"type": "web_search"}], "tool_choice": choice, "parallel_tool_calls": false,
                "max_output_tokens": 100,
            }));
            let whole = server.post("/v1/responses", &asked).json();
            assert_eq!(whole["status"], "completed", "{whole}");
            assert_eq!(
                (
                    whole["tools"].as_array().unwrap().len(),
                    &whole["tool_choice"]
                ),
                (1, &choice)
            );
            let output = whole["output"].as_array().unwrap();
            assert_eq!(output.len(), 1, "{whole}");
            let call = &output[0];
            assert_eq!(
                (&call["type"], &call["name"]),
                (&json!("function_call"), &json!("get_time"))
            );
            let arguments: Value =
                serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
            assert!(
                arguments["city"] == "Paris" || arguments["city"] == "Rome",
                "{arguments}"
            );

            asked["stream"] = json!(true);
            let events = events(&server, &asked);
            let pieces = events
                .iter()
                .filter(|event| event["type"] == "response.function_call_arguments.delta");
            let pieces: String = pieces
                .map(|event| event["delta"].as_str().unwrap())
                .collect();
            assert_eq!(pieces, call["arguments"].as_str().unwrap());
            let mut last = lasting(&events.last().unwrap()["response"]);
            let mut once = lasting(&whole);
            last["output"][0]["call_id"].take();
            once["output"][0]["call_id"].take();
            assert_eq!(last, once);

            let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "noon"});
            let input = json!([{"role": "user", "content": "Once upon a time"}, call, result]);
            let answer = server.post(
                "/v1/responses",
                &body(json!({"input": input, "tools": [tool()], "tool_choice": "none"})),
            );
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["output"][0]["type"], "message");
        }
    }

    #[test]
    fn a_function_that_is_not_there_cannot_be_chosen() {
        let server = server();
        let choice = json!({"type": "function", "name": "get_date"});
        let answer = server.post(
            "/v1/responses",
            &body(json!({"tools": [tool()], "tool_choice": choice})),
        );
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(
            answer.json()["error"]["param"]
                .as_str()
                .unwrap()
                .starts_with("tool_choice")
        );
    }
}
