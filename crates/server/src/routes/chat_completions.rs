//! POST /v1/chat/completions.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::Stream;

use crate::chat::{ChatEvent, ChatStream, Finish, start_chat};
use crate::error::ApiError;
use crate::extract::{Caller, Json};
use crate::generate::stop_reason;
use crate::sse::{SseEvent, sse};
use crate::state::App;
use crate::wire::openai::ChatRequest;
use crate::wire::openai::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice, Delta,
    FunctionCall, FunctionDelta, ToolCall, ToolCallDelta,
};

/// Goes on with a conversation.
pub async fn post(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    let options = request.stream_options.unwrap_or_default();
    let shape = Shape {
        logprobs: request.logprobs.unwrap_or(false),
        timings: request.timings.unwrap_or(false),
        usage: options.include_usage.unwrap_or(false),
        usage_in_all: options.continuous_usage_stats.unwrap_or(false),
    };
    if request.stream.unwrap_or(false) {
        let chat = start_chat(&app, &caller, request).await?;
        return Ok(sse(Chunks::new(chat, shape)));
    }
    if request.stream_options.is_some() {
        let message = "stream_options is given and stream is not true: it must be";
        return Err(ApiError::invalid("stream_options", message));
    }
    let chat = start_chat(&app, &caller, request).await?;
    Ok(Json(whole(chat, shape).await?).into_response())
}

/// What an answer has beside text.
#[derive(Debug, Clone, Copy)]
struct Shape {
    logprobs: bool,
    timings: bool,
    usage: bool,
    usage_in_all: bool,
}

/// Waits for the whole answer.
async fn whole(mut chat: ChatStream, shape: Shape) -> Result<ChatCompletion, ApiError> {
    let mut choices = Vec::new();
    for index in 0..chat.choices() {
        choices.push(ChatChoice {
            index,
            message: AssistantMessage {
                role: "assistant",
                ..AssistantMessage::default()
            },
            logprobs: shape.logprobs.then(ChatLogprobs::default),
            finish_reason: Finish::Stop.as_str(),
            stop_reason: None,
        });
    }
    while let Some(event) = chat.next().await {
        let Some(index) = event.index() else {
            if let ChatEvent::Failed(error) = event {
                return Err(error);
            }
            continue;
        };
        add(&mut choices[index], event);
    }
    for choice in &mut choices {
        let message = &mut choice.message;
        message.reasoning_content.clone_from(&message.reasoning);
        if choice.message.tool_calls.is_empty() && choice.message.content.is_none() {
            choice.message.content = Some(String::new());
        }
    }
    let head = chat.head();
    Ok(ChatCompletion {
        id: head.id.clone(),
        object: "chat.completion",
        created: head.created,
        model: head.model.clone(),
        choices,
        usage: chat.usage(),
        system_fingerprint: head.fingerprint.clone(),
        timings: shape.timings.then(|| chat.timings()),
    })
}

fn add(choice: &mut ChatChoice, event: ChatEvent) {
    let message = &mut choice.message;
    match event {
        ChatEvent::Content { text, logprobs, .. } => {
            if !text.is_empty() {
                message.content.get_or_insert_default().push_str(&text);
            }
            if let Some(all) = &mut choice.logprobs {
                all.content.extend(logprobs);
            }
        }
        ChatEvent::Reasoning { text, .. } => {
            message.reasoning.get_or_insert_default().push_str(&text);
        }
        ChatEvent::ToolCall { id, name, .. } => message.tool_calls.push(ToolCall {
            id,
            kind: "function".to_owned(),
            function: FunctionCall {
                name,
                arguments: String::new(),
            },
        }),
        ChatEvent::ToolArguments { call, text, .. } => {
            message.tool_calls[call].function.arguments.push_str(&text);
        }
        ChatEvent::Finished {
            reason, stopped_by, ..
        } => {
            choice.finish_reason = reason.as_str();
            choice.stop_reason = stop_reason(stopped_by);
        }
        ChatEvent::Failed(_) => {}
    }
}

/// The chunks of a streamed answer.
struct Chunks {
    chat: ChatStream,
    shape: Shape,
    /// Texts that have begun.
    begun: Vec<bool>,
    ready: VecDeque<SseEvent>,
    ended: bool,
}

impl Chunks {
    fn new(chat: ChatStream, shape: Shape) -> Self {
        Self {
            begun: vec![false; chat.choices()],
            chat,
            shape,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    fn take(&mut self, event: ChatEvent) {
        if let ChatEvent::Failed(error) = &event {
            self.ready.push_back(SseEvent::data(error.body()));
            return self.end(false);
        }
        let choice = news(event, self.shape.logprobs);
        if !std::mem::replace(&mut self.begun[choice.index], true) {
            let first = ChunkChoice {
                index: choice.index,
                delta: Delta {
                    role: Some("assistant"),
                    content: Some(String::new()),
                    ..Delta::default()
                },
                ..ChunkChoice::default()
            };
            self.push(vec![first], self.shape.usage_in_all);
        }
        self.push(vec![choice], self.shape.usage_in_all);
    }

    /// Ends the stream, with its usage if all went well.
    fn end(&mut self, well: bool) {
        if well && (self.shape.usage || self.shape.timings) {
            self.push(Vec::new(), self.shape.usage);
        }
        self.ready.push_back(SseEvent::done());
        self.ended = true;
    }

    fn push(&mut self, choices: Vec<ChunkChoice>, usage: bool) {
        let head = self.chat.head();
        let timings = choices.is_empty() && self.shape.timings;
        let chunk = ChatChunk {
            id: &head.id,
            object: "chat.completion.chunk",
            created: head.created,
            model: &head.model,
            system_fingerprint: &head.fingerprint,
            choices,
            usage: usage.then(|| self.chat.usage()),
            timings: timings.then(|| self.chat.timings()),
        };
        let event = serde_json::to_string(&chunk).unwrap_or_else(|_| ApiError::fault().body());
        self.ready.push_back(SseEvent::data(event));
    }
}

impl Stream for Chunks {
    type Item = SseEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SseEvent>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match this.chat.poll_next(cx) {
                Poll::Ready(Some(event)) => this.take(event),
                Poll::Ready(None) => this.end(true),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// What an event says of its text.
fn news(event: ChatEvent, with_logprobs: bool) -> ChunkChoice {
    let mut choice = ChunkChoice {
        index: event.index().unwrap_or_default(),
        ..ChunkChoice::default()
    };
    let delta = &mut choice.delta;
    match event {
        ChatEvent::Content { text, logprobs, .. } => {
            delta.content = Some(text);
            choice.logprobs = with_logprobs.then_some(ChatLogprobs { content: logprobs });
        }
        ChatEvent::Reasoning { text, .. } => {
            delta.reasoning = Some(text.clone());
            delta.reasoning_content = Some(text);
        }
        ChatEvent::ToolCall { call, id, name, .. } => delta.tool_calls.push(ToolCallDelta {
            index: call,
            id: Some(id),
            kind: Some("function"),
            function: FunctionDelta {
                name: Some(name),
                arguments: String::new(),
            },
        }),
        ChatEvent::ToolArguments { call, text, .. } => delta.tool_calls.push(ToolCallDelta {
            index: call,
            function: FunctionDelta {
                name: None,
                arguments: text,
            },
            ..ToolCallDelta::default()
        }),
        ChatEvent::Finished {
            reason, stopped_by, ..
        } => {
            choice.finish_reason = Some(reason.as_str());
            choice.stop_reason = stop_reason(stopped_by);
        }
        ChatEvent::Failed(_) => {}
    }
    choice
}

#[cfg(test)]
#[path = "chat_completions_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "chat_tools_tests.rs"]
mod tools_tests;
