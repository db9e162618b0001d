//! Events of chat as those of a message, and as the message that they add up to.

use serde_json::Map;
use sparamx_engine::StoppedBy;

use super::error_body;
use crate::chat::{ChatEvent, Finish};
use crate::error::ApiError;
use crate::wire::anthropic::{
    AnswerBlock, BlockDelta, MessageAnswer, MessageDelta, MessageEvent, MessageUsage,
};
use crate::wire::openai::common::Usage;

/// A message as it is written. It is the same whether anybody takes its events.
pub struct MessageWriter {
    answer: MessageAnswer,
    /// Tokens that the client asked for at most.
    max_tokens: usize,
    /// Whether the last block goes on.
    open: bool,
    /// Arguments of the last block, if it is a call.
    arguments: String,
}

impl MessageWriter {
    /// Of a message without content.
    pub fn new(id: String, model: String, prompt_tokens: usize, max_tokens: usize) -> Self {
        Self {
            answer: MessageAnswer {
                id,
                kind: "message",
                role: "assistant",
                model,
                content: Vec::new(),
                stop_reason: None,
                stop_sequence: None,
                usage: MessageUsage {
                    input_tokens: prompt_tokens,
                    ..MessageUsage::default()
                },
            },
            max_tokens,
            open: false,
            arguments: String::new(),
        }
    }

    /// The message as it is now.
    pub fn into_answer(self) -> MessageAnswer {
        self.answer
    }

    /// The first event.
    pub fn start(&self) -> MessageEvent {
        let message = self.answer.clone();
        MessageEvent::MessageStart { message }
    }

    /// What an event of chat means. `usage` is what the chat took so far.
    pub fn take(&mut self, event: ChatEvent, usage: Usage) -> Vec<MessageEvent> {
        let mut events = Vec::new();
        match event {
            ChatEvent::Content { text, .. } => self.text(text, &mut events),
            ChatEvent::Reasoning { text, .. } => self.thought(text, &mut events),
            ChatEvent::ToolCall { id, name, .. } => {
                let input = Map::new();
                self.add(AnswerBlock::ToolUse { id, name, input }, &mut events);
            }
            ChatEvent::ToolArguments { text, .. } => {
                self.arguments += &text;
                let delta = BlockDelta::InputJson { partial_json: text };
                self.delta(delta, &mut events);
            }
            ChatEvent::Finished {
                reason, stopped_by, ..
            } => self.finish(reason, stopped_by, usage, &mut events),
            ChatEvent::Failed(error) => self.fail(&error, &mut events),
        }
        events
    }

    fn index(&self) -> usize {
        self.answer.content.len().saturating_sub(1)
    }

    fn add(&mut self, block: AnswerBlock, events: &mut Vec<MessageEvent>) {
        self.close(events);
        self.answer.content.push(block.clone());
        self.open = true;
        events.push(MessageEvent::ContentBlockStart {
            index: self.index(),
            content_block: block,
        });
    }

    fn delta(&self, delta: BlockDelta, events: &mut Vec<MessageEvent>) {
        let index = self.index();
        events.push(MessageEvent::ContentBlockDelta { index, delta });
    }

    fn text(&mut self, piece: String, events: &mut Vec<MessageEvent>) {
        if piece.is_empty() {
            return;
        }
        if !(self.open && matches!(self.answer.content.last(), Some(AnswerBlock::Text { .. }))) {
            let text = String::new();
            self.add(AnswerBlock::Text { text }, events);
        }
        if let Some(AnswerBlock::Text { text }) = self.answer.content.last_mut() {
            *text += &piece;
        }
        self.delta(BlockDelta::Text { text: piece }, events);
    }

    fn thought(&mut self, piece: String, events: &mut Vec<MessageEvent>) {
        if piece.is_empty() {
            return;
        }
        if !(self.open
            && matches!(
                self.answer.content.last(),
                Some(AnswerBlock::Thinking { .. })
            ))
        {
            let (thinking, signature) = (String::new(), String::new());
            self.add(
                AnswerBlock::Thinking {
                    thinking,
                    signature,
                },
                events,
            );
        }
        if let Some(AnswerBlock::Thinking { thinking, .. }) = self.answer.content.last_mut() {
            *thinking += &piece;
        }
        self.delta(BlockDelta::Thinking { thinking: piece }, events);
    }

    fn close(&mut self, events: &mut Vec<MessageEvent>) {
        if !self.open {
            return;
        }
        self.open = false;
        let arguments = std::mem::take(&mut self.arguments);
        if let Some(AnswerBlock::ToolUse { input, .. }) = self.answer.content.last_mut() {
            // Arguments that were cut are no object.
            *input = serde_json::from_str(&arguments).unwrap_or_default();
        }
        let index = self.index();
        events.push(MessageEvent::ContentBlockStop { index });
    }

    fn finish(
        &mut self,
        reason: Finish,
        stopped_by: Option<StoppedBy>,
        usage: Usage,
        events: &mut Vec<MessageEvent>,
    ) {
        self.close(events);
        self.answer.usage = message_usage(usage);
        let calls = self
            .answer
            .content
            .iter()
            .any(|block| matches!(block, AnswerBlock::ToolUse { .. }));
        let (stop_reason, stop_sequence) = match (reason, stopped_by) {
            (Finish::Length, _) if usage.completion_tokens < self.max_tokens => {
                ("model_context_window_exceeded", None)
            }
            (Finish::Length, _) => ("max_tokens", None),
            _ if calls => ("tool_use", None),
            (_, Some(StoppedBy::Text(text))) => ("stop_sequence", Some(text)),
            _ => ("end_turn", None),
        };
        self.answer.stop_reason = Some(stop_reason);
        self.answer.stop_sequence.clone_from(&stop_sequence);
        let delta = MessageDelta {
            stop_reason: Some(stop_reason),
            stop_sequence,
        };
        let usage = self.answer.usage;
        events.push(MessageEvent::MessageDelta { delta, usage });
        events.push(MessageEvent::MessageStop);
    }

    fn fail(&mut self, error: &ApiError, events: &mut Vec<MessageEvent>) {
        let error = error_body(error);
        events.push(MessageEvent::Error { error });
    }
}

fn message_usage(usage: Usage) -> MessageUsage {
    let cached = usage.prompt_tokens_details.cached_tokens;
    MessageUsage {
        input_tokens: usage.prompt_tokens.saturating_sub(cached),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: cached,
        output_tokens: usage.completion_tokens,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn content(text: &str) -> ChatEvent {
        ChatEvent::Content {
            index: 0,
            text: text.to_owned(),
            logprobs: Vec::new(),
        }
    }

    fn finished(reason: Finish, stopped_by: Option<StoppedBy>) -> ChatEvent {
        ChatEvent::Finished {
            index: 0,
            reason,
            stopped_by,
        }
    }

    /// The events and the answer that they add up to.
    fn write(events: Vec<ChatEvent>) -> (Vec<Value>, Value) {
        let mut writer = MessageWriter::new("msg_1".to_owned(), "m".to_owned(), 10, 6);
        let mut written = vec![writer.start()];
        for event in events {
            written.extend(writer.take(event, Usage::new(10, 6, 4)));
        }
        let value = |event: &MessageEvent| {
            let value = serde_json::to_value(event).unwrap();
            assert_eq!(value["type"], event.name());
            value
        };
        let written = written.iter().map(value).collect();
        (written, serde_json::to_value(writer.into_answer()).unwrap())
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn a_text_is_one_block() {
        let (events, answer) = write(vec![
            content("Hel"),
            content("lo"),
            finished(Finish::Stop, Some(StoppedBy::Eos(2))),
        ]);
        assert_eq!(
            kinds(&events),
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
        assert_eq!(events[0]["message"]["content"], json!([]));
        assert_eq!(events[0]["message"]["stop_reason"], Value::Null);
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 10);
        assert_eq!(
            events[1]["content_block"],
            json!({"type": "text", "text": ""})
        );
        assert_eq!(
            events[2]["delta"],
            json!({"type": "text_delta", "text": "Hel"})
        );
        assert_eq!(
            events[5]["delta"],
            json!({"stop_reason": "end_turn", "stop_sequence": null})
        );
        assert_eq!(events[5]["usage"], answer["usage"]);
        assert_eq!(
            answer["content"],
            json!([{"type": "text", "text": "Hello"}])
        );
        let usage = json!({"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 6});
        assert_eq!(answer["usage"], usage);
    }

    #[test]
    fn thinking_text_and_calls_are_blocks_one_after_the_other() {
        let call = |call: usize| ChatEvent::ToolCall {
            index: 0,
            call,
            id: format!("call_{call}"),
            name: "f".to_owned(),
        };
        let arguments = |call: usize, text: &str| {
            let (index, text) = (0, text.to_owned());
            ChatEvent::ToolArguments { index, call, text }
        };
        let (index, text) = (0, "Hm".to_owned());
        let (events, answer) = write(vec![
            ChatEvent::Reasoning { index, text },
            content("Look"),
            call(0),
            arguments(0, "{\"a\""),
            arguments(0, ":1}"),
            call(1),
            arguments(1, "{\"b"),
            finished(Finish::ToolCalls, None),
        ]);
        assert_eq!(
            answer["content"],
            json!([
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "Look"},
                {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {}},
            ])
        );
        assert_eq!(answer["stop_reason"], "tool_use");
        let starts: Vec<&Value> = events
            .iter()
            .filter(|event| event["type"] == "content_block_start")
            .collect();
        assert_eq!(starts.len(), 4);
        assert_eq!(
            (&starts[2]["index"], &starts[2]["content_block"]["input"]),
            (&json!(2), &json!({}))
        );
        let pieces = events
            .iter()
            .filter(|event| event["index"] == 2 && event["type"] == "content_block_delta");
        let pieces: Vec<&str> = pieces
            .map(|event| event["delta"]["partial_json"].as_str().unwrap())
            .collect();
        assert_eq!(pieces.concat(), "{\"a\":1}");
    }

    #[test]
    fn each_end_has_its_reason() {
        let stop = |stopped_by| write(vec![content("a"), finished(Finish::Stop, stopped_by)]).1;
        assert_eq!(stop(Some(StoppedBy::Eos(2)))["stop_reason"], "end_turn");
        let text = stop(Some(StoppedBy::Text("END".to_owned())));
        assert_eq!(
            (&text["stop_reason"], &text["stop_sequence"]),
            (&json!("stop_sequence"), &json!("END"))
        );
        let (_, cut) = write(vec![content("a"), finished(Finish::Length, None)]);
        assert_eq!(cut["stop_reason"], "max_tokens");
        let mut writer = MessageWriter::new("msg_1".to_owned(), "m".to_owned(), 10, 7);
        writer.take(finished(Finish::Length, None), Usage::new(10, 6, 4));
        assert_eq!(
            writer.into_answer().stop_reason,
            Some("model_context_window_exceeded")
        );
    }

    #[test]
    fn a_failure_is_the_last_event() {
        let (events, _) = write(vec![content("a"), ChatEvent::Failed(ApiError::fault())]);
        assert_eq!(events.last().unwrap()["error"]["type"], "api_error");
        let (events, _) = write(vec![ChatEvent::Failed(ApiError::unavailable("later"))]);
        assert_eq!(events.last().unwrap()["error"]["type"], "overloaded_error");
    }
}
