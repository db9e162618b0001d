//! Events of chat as those of a response, and as the response that they add up to.

use crate::chat::{ChatEvent, Finish};
use crate::error::ApiError;
use crate::ids;
use crate::state::now;
use crate::wire::openai::chat::ChatLogprob;
use crate::wire::openai::common::Usage;
use crate::wire::responses::{
    EventBody, IncompleteDetails, InputTokensDetails, ItemStatus, OutputItem, OutputPart,
    OutputTokensDetails, ReasoningPart, ResponseError, ResponseEvent, ResponseObject,
    ResponseStatus, ResponseUsage,
};

/// A response as it is written. It is the same whether anybody takes its events.
pub struct ResponseWriter {
    response: ResponseObject,
    /// Events so far.
    events: u64,
    /// Whether the last item goes on.
    open: bool,
    /// Tokens of a text.
    count: CountTokens,
}

/// Counts the tokens of a text.
pub type CountTokens = Box<dyn Fn(&str) -> usize + Send>;

/// Where an item is: what most events begin with.
struct Place {
    item_id: String,
    output_index: usize,
}

impl ResponseWriter {
    /// Of a response without output. `count` is for the reasoning.
    pub fn new(response: ResponseObject, count: CountTokens) -> Self {
        Self {
            response,
            events: 0,
            open: false,
            count,
        }
    }

    /// The response as it is now.
    pub fn into_response(self) -> ResponseObject {
        self.response
    }

    /// The first events.
    pub fn start(&mut self) -> Vec<ResponseEvent> {
        let mut events = Vec::new();
        self.announce("response.created", &mut events);
        self.announce("response.in_progress", &mut events);
        events
    }

    /// What an event of chat means. `usage` is what the chat took so far.
    pub fn take(&mut self, event: ChatEvent, usage: Usage) -> Vec<ResponseEvent> {
        let mut events = Vec::new();
        match event {
            ChatEvent::Content { text, logprobs, .. } => self.text(text, logprobs, &mut events),
            ChatEvent::Reasoning { text, .. } => self.thought(text, &mut events),
            ChatEvent::ToolCall { id, name, .. } => self.call(id, name, &mut events),
            ChatEvent::ToolArguments { text, .. } => self.arguments(text, &mut events),
            ChatEvent::Finished { reason, .. } => {
                self.response.usage = Some(response_usage(usage, self.reasoning_tokens()));
                self.finish(reason, &mut events);
            }
            ChatEvent::Failed(error) => self.fail(&error, &mut events),
        }
        events
    }

    fn event(&mut self, kind: &'static str, body: EventBody, events: &mut Vec<ResponseEvent>) {
        events.push(ResponseEvent {
            kind,
            sequence_number: self.events,
            body,
        });
        self.events += 1;
    }

    /// An event with the response as it is.
    fn announce(&mut self, kind: &'static str, events: &mut Vec<ResponseEvent>) {
        let response = Box::new(self.response.clone());
        self.event(kind, EventBody::Response { response }, events);
    }

    fn add(&mut self, item: OutputItem, events: &mut Vec<ResponseEvent>) {
        self.close(ItemStatus::Completed, events);
        let output_index = self.response.output.len();
        self.response.output.push(item.clone());
        self.open = true;
        self.event(
            "response.output_item.added",
            EventBody::Item { output_index, item },
            events,
        );
    }

    /// The item that goes on, and its place.
    fn last(&mut self) -> Option<(&mut OutputItem, Place)> {
        if !self.open {
            return None;
        }
        let output_index = self.response.output.len() - 1;
        let item = &mut self.response.output[output_index];
        let item_id = item_id(item).to_owned();
        Some((
            item,
            Place {
                item_id,
                output_index,
            },
        ))
    }

    fn text(&mut self, delta: String, logprobs: Vec<ChatLogprob>, events: &mut Vec<ResponseEvent>) {
        let goes_on = matches!(self.last(), Some((OutputItem::Message { .. }, _)));
        // Log probabilities without text are those of reasoning and of calls, whose items have none.
        if delta.is_empty() && (logprobs.is_empty() || !goes_on) {
            return;
        }
        if !goes_on {
            self.open_message(events);
        }
        if let Some((OutputItem::Message { content, .. }, place)) = self.last()
            && let Some(part) = content.first_mut()
        {
            part.text += &delta;
            part.logprobs.extend_from_slice(&logprobs);
            let body = EventBody::TextDelta {
                item_id: place.item_id,
                output_index: place.output_index,
                content_index: 0,
                delta,
                logprobs,
            };
            self.event("response.output_text.delta", body, events);
        }
    }

    fn open_message(&mut self, events: &mut Vec<ResponseEvent>) {
        let item = OutputItem::Message {
            id: ids::unique("msg_"),
            status: ItemStatus::InProgress,
            role: "assistant",
            content: Vec::new(),
        };
        self.add(item, events);
        let part = OutputPart::default();
        if let Some((OutputItem::Message { content, .. }, place)) = self.last() {
            content.push(part.clone());
            let body = EventBody::TextPart {
                item_id: place.item_id,
                output_index: place.output_index,
                content_index: 0,
                part,
            };
            self.event("response.content_part.added", body, events);
        }
    }

    fn thought(&mut self, delta: String, events: &mut Vec<ResponseEvent>) {
        if delta.is_empty() {
            return;
        }
        if !matches!(self.last(), Some((OutputItem::Reasoning { .. }, _))) {
            self.open_reasoning(events);
        }
        if let Some((OutputItem::Reasoning { content, .. }, place)) = self.last()
            && let Some(part) = content.first_mut()
        {
            part.text += &delta;
            let body = EventBody::ReasoningDelta {
                item_id: place.item_id,
                output_index: place.output_index,
                content_index: 0,
                delta,
            };
            self.event("response.reasoning_text.delta", body, events);
        }
    }

    fn open_reasoning(&mut self, events: &mut Vec<ResponseEvent>) {
        let item = OutputItem::Reasoning {
            id: ids::unique("rs_"),
            status: ItemStatus::InProgress,
            summary: Vec::new(),
            content: Vec::new(),
            encrypted_content: None,
        };
        self.add(item, events);
        let part = ReasoningPart {
            text: String::new(),
        };
        if let Some((OutputItem::Reasoning { content, .. }, place)) = self.last() {
            content.push(part.clone());
            let body = EventBody::ReasoningPart {
                item_id: place.item_id,
                output_index: place.output_index,
                content_index: 0,
                part,
            };
            self.event("response.content_part.added", body, events);
        }
    }

    fn call(&mut self, call_id: String, name: String, events: &mut Vec<ResponseEvent>) {
        let item = OutputItem::FunctionCall {
            id: ids::unique("fc_"),
            status: ItemStatus::InProgress,
            call_id,
            name,
            arguments: String::new(),
        };
        self.add(item, events);
    }

    fn arguments(&mut self, delta: String, events: &mut Vec<ResponseEvent>) {
        if let Some((OutputItem::FunctionCall { arguments, .. }, place)) = self.last() {
            *arguments += &delta;
            let body = EventBody::ArgumentsDelta {
                item_id: place.item_id,
                output_index: place.output_index,
                delta,
            };
            self.event("response.function_call_arguments.delta", body, events);
        }
    }

    /// Ends the item that goes on.
    fn close(&mut self, status: ItemStatus, events: &mut Vec<ResponseEvent>) {
        let Some((item, place)) = self.last() else {
            return;
        };
        set_status(item, status);
        let item = item.clone();
        for (kind, body) in endings(&item, &place) {
            self.event(kind, body, events);
        }
        let output_index = place.output_index;
        self.event(
            "response.output_item.done",
            EventBody::Item { output_index, item },
            events,
        );
        self.open = false;
    }

    fn reasoning_tokens(&self) -> usize {
        let items = self.response.output.iter();
        let parts = items.filter_map(|item| match item {
            OutputItem::Reasoning { content, .. } => Some(content),
            OutputItem::Message { .. } | OutputItem::FunctionCall { .. } => None,
        });
        parts.flatten().map(|part| (self.count)(&part.text)).sum()
    }

    fn finish(&mut self, reason: Finish, events: &mut Vec<ResponseEvent>) {
        match reason {
            Finish::Stop | Finish::ToolCalls => {
                if self.response.output.is_empty() {
                    self.open_message(events);
                }
                self.close(ItemStatus::Completed, events);
                self.response.status = ResponseStatus::Completed;
                self.response.completed_at = Some(now());
                self.announce("response.completed", events);
            }
            Finish::Length => {
                self.close(ItemStatus::Incomplete, events);
                self.response.status = ResponseStatus::Incomplete;
                let reason = "max_output_tokens";
                self.response.incomplete_details = Some(IncompleteDetails { reason });
                self.announce("response.incomplete", events);
            }
        }
    }

    fn fail(&mut self, error: &ApiError, events: &mut Vec<ResponseEvent>) {
        self.close(ItemStatus::Incomplete, events);
        self.response.status = ResponseStatus::Failed;
        self.response.error = Some(ResponseError {
            code: error.code.unwrap_or("server_error").to_owned(),
            message: error.message.clone(),
        });
        self.announce("response.failed", events);
    }
}

fn item_id(item: &OutputItem) -> &str {
    match item {
        OutputItem::Message { id, .. }
        | OutputItem::FunctionCall { id, .. }
        | OutputItem::Reasoning { id, .. } => id,
    }
}

fn set_status(item: &mut OutputItem, new: ItemStatus) {
    match item {
        OutputItem::Message { status, .. }
        | OutputItem::FunctionCall { status, .. }
        | OutputItem::Reasoning { status, .. } => *status = new,
    }
}

/// The events that end what an item holds.
fn endings(item: &OutputItem, place: &Place) -> Vec<(&'static str, EventBody)> {
    let (item_id, output_index) = (|| place.item_id.clone(), place.output_index);
    match item {
        OutputItem::Message { content, .. } => {
            let ends = |(content_index, part): (usize, &OutputPart)| {
                let done = EventBody::TextDone {
                    item_id: item_id(),
                    output_index,
                    content_index,
                    text: part.text.clone(),
                    logprobs: part.logprobs.clone(),
                };
                let part = EventBody::TextPart {
                    item_id: item_id(),
                    output_index,
                    content_index,
                    part: part.clone(),
                };
                [
                    ("response.output_text.done", done),
                    ("response.content_part.done", part),
                ]
            };
            content.iter().enumerate().flat_map(ends).collect()
        }
        OutputItem::Reasoning { content, .. } => {
            let ends = |(content_index, part): (usize, &ReasoningPart)| {
                let done = EventBody::ReasoningDone {
                    item_id: item_id(),
                    output_index,
                    content_index,
                    text: part.text.clone(),
                };
                let part = EventBody::ReasoningPart {
                    item_id: item_id(),
                    output_index,
                    content_index,
                    part: part.clone(),
                };
                [
                    ("response.reasoning_text.done", done),
                    ("response.content_part.done", part),
                ]
            };
            content.iter().enumerate().flat_map(ends).collect()
        }
        OutputItem::FunctionCall {
            name, arguments, ..
        } => {
            let done = EventBody::ArgumentsDone {
                item_id: item_id(),
                output_index,
                name: name.clone(),
                arguments: arguments.clone(),
            };
            vec![("response.function_call_arguments.done", done)]
        }
    }
}

fn response_usage(usage: Usage, reasoning_tokens: usize) -> ResponseUsage {
    ResponseUsage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: InputTokensDetails {
            cached_tokens: usage.prompt_tokens_details.cached_tokens,
            cache_write_tokens: 0,
        },
        output_tokens: usage.completion_tokens,
        output_tokens_details: OutputTokensDetails {
            reasoning_tokens: reasoning_tokens.min(usage.completion_tokens),
        },
        total_tokens: usage.total_tokens,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::adapters::responses::response;
    use crate::wire::responses::ResponsesRequest;

    fn writer() -> ResponseWriter {
        let request: ResponsesRequest = serde_json::from_value(json!({"input": "Hi"})).unwrap();
        let response = response(&request, "resp_1".to_owned(), 5, "m", &Default::default());
        ResponseWriter::new(response, Box::new(|text| text.split_whitespace().count()))
    }

    fn content(text: &str) -> ChatEvent {
        ChatEvent::Content {
            index: 0,
            text: text.to_owned(),
            logprobs: Vec::new(),
        }
    }

    fn thought(text: &str) -> ChatEvent {
        let (index, text) = (0, text.to_owned());
        ChatEvent::Reasoning { index, text }
    }

    fn call(call: usize, name: &str) -> ChatEvent {
        ChatEvent::ToolCall {
            index: 0,
            call,
            id: format!("call_{call}"),
            name: name.to_owned(),
        }
    }

    fn arguments(call: usize, text: &str) -> ChatEvent {
        let (index, text) = (0, text.to_owned());
        ChatEvent::ToolArguments { index, call, text }
    }

    fn finished(reason: Finish) -> ChatEvent {
        ChatEvent::Finished {
            index: 0,
            reason,
            stopped_by: None,
        }
    }

    /// The events and the response that they end with.
    fn write(events: Vec<ChatEvent>) -> (Vec<Value>, Value) {
        let mut writer = writer();
        let mut written = writer.start();
        for event in events {
            written.extend(writer.take(event, Usage::new(10, 6, 4)));
        }
        let written: Vec<Value> = written
            .iter()
            .map(|event| serde_json::to_value(event).unwrap())
            .collect();
        for (index, event) in written.iter().enumerate() {
            assert_eq!(event["sequence_number"], index);
        }
        let response = serde_json::to_value(writer.into_response()).unwrap();
        assert_eq!(written.last().unwrap()["response"], response);
        (written, response)
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        let kinds = events.iter().map(|event| event["type"].as_str().unwrap());
        kinds
            .map(|kind| kind.strip_prefix("response.").unwrap())
            .collect()
    }

    #[test]
    fn a_text_has_its_events_in_order() {
        let (events, response) = write(vec![
            content("Hel"),
            content(""),
            content("lo"),
            finished(Finish::Stop),
        ]);
        assert_eq!(
            kinds(&events),
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "completed"
            ]
        );
        assert_eq!(events[0]["response"]["status"], "in_progress");
        assert_eq!(events[2]["item"]["content"], json!([]));
        assert_eq!(events[6]["text"], "Hello");
        assert_eq!(events[8]["item"], response["output"][0]);
        assert_eq!(response["status"], "completed");
        assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
        assert_eq!(response["output"][0]["status"], "completed");
        assert_eq!(
            response["usage"]["input_tokens_details"]["cached_tokens"],
            4
        );
        assert_eq!(response["usage"]["total_tokens"], 16);
    }

    #[test]
    fn reasoning_text_and_calls_are_items_one_after_the_other() {
        let (events, response) = write(vec![
            thought("so be "),
            thought("it"),
            content("Look"),
            call(0, "f"),
            arguments(0, "{\"a\""),
            arguments(0, ":1}"),
            call(1, "g"),
            arguments(1, "{}"),
            finished(Finish::ToolCalls),
        ]);
        let items = response["output"].as_array().unwrap();
        let types: Vec<&str> = items
            .iter()
            .map(|item| item["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            types,
            ["reasoning", "message", "function_call", "function_call"]
        );
        assert_eq!(
            items[0]["content"][0],
            json!({"type": "reasoning_text", "text": "so be it"})
        );
        assert_eq!(items[2]["arguments"], "{\"a\":1}");
        assert_eq!(items[3]["call_id"], "call_1");
        assert_eq!(
            response["usage"]["output_tokens_details"]["reasoning_tokens"],
            3
        );
        assert_eq!(response["status"], "completed");
        let done: Vec<&Value> = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.done")
            .collect();
        for (index, event) in done.iter().enumerate() {
            assert_eq!(event["output_index"], index);
            assert_eq!(event["item"], items[index]);
        }
        assert_eq!(done.len(), 4);
    }

    #[test]
    fn a_text_that_was_cut_is_incomplete() {
        let (events, response) = write(vec![content("Hel"), finished(Finish::Length)]);
        assert_eq!(events.last().unwrap()["type"], "response.incomplete");
        assert_eq!(response["status"], "incomplete");
        assert_eq!(
            response["incomplete_details"]["reason"],
            "max_output_tokens"
        );
        assert_eq!(response["output"][0]["status"], "incomplete");
    }

    #[test]
    fn a_failure_is_an_event_of_the_response() {
        let (events, response) = write(vec![content("Hel"), ChatEvent::Failed(ApiError::fault())]);
        assert_eq!(events.last().unwrap()["type"], "response.failed");
        assert_eq!(response["error"]["code"], "server_error");
        let (_, response) = write(vec![ChatEvent::Failed(ApiError::unavailable("later"))]);
        assert_eq!(response["status"], "failed");
    }

    #[test]
    fn no_text_is_an_empty_message() {
        let (events, response) = write(vec![finished(Finish::Stop)]);
        assert_eq!(events.len(), 8);
        assert_eq!(response["output"][0]["content"][0]["text"], "");
    }

    #[test]
    fn log_probabilities_go_with_their_text() {
        let logprob = |token: &str| ChatLogprob {
            token: token.to_owned(),
            logprob: -0.5,
            bytes: token.as_bytes().to_vec(),
            top_logprobs: Vec::new(),
        };
        let of = |text: &str, tokens: &[&str]| ChatEvent::Content {
            index: 0,
            text: text.to_owned(),
            logprobs: tokens.iter().map(|token| logprob(token)).collect(),
        };
        let (events, response) = write(vec![
            of("ab", &["a", "b"]),
            of("c", &["c"]),
            call(0, "f"),
            of("", &["f"]),
            finished(Finish::Stop),
        ]);
        assert_eq!(response["output"].as_array().unwrap().len(), 2);
        assert_eq!(events[4]["logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(events[6]["logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(
            response["output"][0]["content"][0]["logprobs"][2]["token"],
            "c"
        );
    }
}
