//! Blocks of messages as messages of chat.

use serde_json::Value;

use crate::error::ApiError;
use crate::wire::anthropic::{Block, InputMessage};
use crate::wire::openai::chat::{ChatMessage, Content, FunctionCall, Part, ToolCall};
use crate::wire::text_or::TextOr;

/// How a block of the system message begins that some clients add for billing. It changes with each request, and would keep
/// requests from sharing the prefix that follows it.
const BILLING: &str = "x-anthropic-billing-header";

/// The messages of a conversation.
///
/// # Errors
/// 400 that names the block.
pub(super) fn messages(
    system: Option<&TextOr<Block>>,
    list: &[InputMessage],
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::with_capacity(list.len() + 1);
    if let Some(system) = system {
        let parts = texts(system, "system")?;
        let billing = |part: &Part| {
            part.text
                .as_ref()
                .is_some_and(|text| text.starts_with(BILLING))
        };
        push_text(
            &mut messages,
            "system",
            parts.into_iter().filter(|part| !billing(part)).collect(),
        );
    }
    for (index, message) in list.iter().enumerate() {
        let path = format!("messages[{index}]");
        match message.role.as_str() {
            "system" => {
                let parts = texts(&message.content, &format!("{path}.content"))?;
                push_text(&mut messages, "system", parts);
            }
            "user" => user(&mut messages, &message.content, &format!("{path}.content"))?,
            "assistant" => messages.push(assistant(&message.content, &format!("{path}.content"))?),
            _ => {
                return Err(ApiError::invalid(
                    format!("{path}.role"),
                    format!("{path}.role: one of 'user', 'assistant' and 'system'"),
                ));
            }
        }
    }
    Ok(messages)
}

fn push_text(messages: &mut Vec<ChatMessage>, role: &str, parts: Vec<Part>) {
    if !parts.is_empty() {
        messages.push(ChatMessage {
            role: role.to_owned(),
            content: Some(content(parts)),
            ..ChatMessage::default()
        });
    }
}

fn content(mut parts: Vec<Part>) -> Content {
    match parts.as_mut_slice() {
        [one] => Content::Text(one.text.take().unwrap_or_default()),
        _ => Content::Parts(parts),
    }
}

fn part(text: String) -> Part {
    Part {
        kind: "text".to_owned(),
        text: Some(text),
        refusal: None,
    }
}

fn required<T: Clone>(value: &Option<T>, path: &str, field: &str) -> Result<T, ApiError> {
    value.clone().ok_or_else(|| {
        ApiError::invalid(
            format!("{path}.{field}"),
            format!("{path}.{field}: the block needs this field"),
        )
    })
}

fn unsupported(path: &str, supported: &str) -> ApiError {
    ApiError::unsupported(
        format!("{path}.type"),
        format!(
            "{path}.type: blocks of type {supported} are supported here, no images or documents"
        ),
    )
}

/// Content that may only be text.
fn texts(list: &TextOr<Block>, path: &str) -> Result<Vec<Part>, ApiError> {
    let blocks = match list {
        TextOr::Text(text) => return Ok(vec![part(text.clone())]),
        TextOr::List(blocks) => blocks,
    };
    let text = |(index, block): (usize, &Block)| {
        let path = format!("{path}[{index}]");
        match block.kind.as_str() {
            "text" => Ok(part(required(&block.text, &path, "text")?)),
            _ => Err(unsupported(&path, "'text'")),
        }
    };
    blocks.iter().enumerate().map(text).collect()
}

/// What a user says becomes a message, and each result between it one of a tool.
fn user(messages: &mut Vec<ChatMessage>, list: &TextOr<Block>, path: &str) -> Result<(), ApiError> {
    let blocks = match list {
        TextOr::Text(text) => {
            push_text(messages, "user", vec![part(text.clone())]);
            return Ok(());
        }
        TextOr::List(blocks) => blocks,
    };
    let mut said = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match block.kind.as_str() {
            "text" => said.push(part(required(&block.text, &path, "text")?)),
            "tool_result" => {
                push_text(messages, "user", std::mem::take(&mut said));
                messages.push(result(block, &path)?);
            }
            _ => return Err(unsupported(&path, "'text' and 'tool_result'")),
        }
    }
    push_text(messages, "user", said);
    Ok(())
}

fn result(block: &Block, path: &str) -> Result<ChatMessage, ApiError> {
    let parts = match &block.content {
        None => Vec::new(),
        Some(list) => texts(list, &format!("{path}.content"))?,
    };
    let content = match parts.is_empty() {
        true => Content::Text(String::new()),
        false => content(parts),
    };
    Ok(ChatMessage {
        role: "tool".to_owned(),
        tool_call_id: Some(required(&block.tool_use_id, path, "tool_use_id")?),
        content: Some(content),
        ..ChatMessage::default()
    })
}

fn assistant(list: &TextOr<Block>, path: &str) -> Result<ChatMessage, ApiError> {
    let mut message = ChatMessage {
        role: "assistant".to_owned(),
        ..ChatMessage::default()
    };
    let blocks = match list {
        TextOr::Text(text) => {
            message.content = Some(Content::Text(text.clone()));
            return Ok(message);
        }
        TextOr::List(blocks) => blocks,
    };
    let mut said = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match block.kind.as_str() {
            "text" => said.push(part(required(&block.text, &path, "text")?)),
            "thinking" => {
                let thought = message.reasoning.get_or_insert_default();
                *thought += &required(&block.thinking, &path, "thinking")?;
            }
            // What only Anthropic's servers can read.
            "redacted_thinking" => {}
            "tool_use" => message
                .tool_calls
                .get_or_insert_default()
                .push(call(block, &path)?),
            _ => return Err(unsupported(&path, "'text', 'thinking' and 'tool_use'")),
        }
    }
    if !said.is_empty() || message.tool_calls.is_none() {
        message.content = Some(content(said));
    }
    Ok(message)
}

fn call(block: &Block, path: &str) -> Result<ToolCall, ApiError> {
    let input = required(&block.input, path, "input")?;
    if !matches!(input, Value::Object(_)) {
        return Err(ApiError::invalid(
            format!("{path}.input"),
            format!("{path}.input: an object"),
        ));
    }
    Ok(ToolCall {
        id: required(&block.id, path, "id")?,
        kind: "function".to_owned(),
        function: FunctionCall {
            name: required(&block.name, path, "name")?,
            arguments: input.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(system: Value, list: Value) -> Result<Vec<ChatMessage>, ApiError> {
        let system: Option<TextOr<Block>> = serde_json::from_value(system).unwrap();
        let list: Vec<InputMessage> = serde_json::from_value(list).unwrap();
        messages(system.as_ref(), &list)
    }

    fn text(message: &ChatMessage) -> Option<&str> {
        match &message.content {
            Some(Content::Text(text)) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn the_system_message_comes_first_and_without_the_line_for_billing() {
        let system = json!([
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=12345;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ]);
        let messages = of(system, json!([{"role": "user", "content": "Hi"}])).unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!(
            (messages[0].role.as_str(), text(&messages[0])),
            ("system", Some("Be brief."))
        );
        assert_eq!(
            (messages[1].role.as_str(), text(&messages[1])),
            ("user", Some("Hi"))
        );
        assert_eq!(of(json!("Be brief."), json!([])).unwrap().len(), 1);
        assert!(of(json!(null), json!([])).unwrap().is_empty());
    }

    #[test]
    fn a_turn_of_the_assistant_keeps_thinking_text_and_calls() {
        let list = json!([{"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm", "signature": ""},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Look"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        ]}]);
        let messages = of(json!(null), list).unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].reasoning.as_deref(), Some("Hm"));
        assert_eq!(text(&messages[0]), Some("Look"));
        let calls = messages[0].tool_calls.as_ref().unwrap();
        assert_eq!(
            (calls[0].id.as_str(), calls[0].function.arguments.as_str()),
            ("c1", "{\"a\":1}")
        );
    }

    #[test]
    fn results_are_messages_of_tools() {
        let list = json!([{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]},
            {"type": "tool_result", "tool_use_id": "c2", "content": "2", "is_error": true},
            {"type": "tool_result", "tool_use_id": "c3"},
            {"type": "text", "text": "Go on"},
        ]}]);
        let messages = of(json!(null), list).unwrap();
        let seen: Vec<_> = messages
            .iter()
            .map(|message| (message.role.as_str(), text(message).unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                ("tool", "1"),
                ("tool", "2"),
                ("tool", ""),
                ("user", "Go on")
            ]
        );
        assert_eq!(messages[1].tool_call_id.as_deref(), Some("c2"));
    }

    #[test]
    fn what_is_not_text_is_refused_by_its_path() {
        let in_user = |block: Value| json!([{"role": "user", "content": [block]}]);
        for (list, path) in [
            (
                in_user(json!({"type": "image", "source": {}})),
                "messages[0].content[0].type",
            ),
            (
                in_user(json!({"type": "text"})),
                "messages[0].content[0].text",
            ),
            (
                in_user(json!({"type": "tool_result"})),
                "messages[0].content[0].tool_use_id",
            ),
            (
                in_user(
                    json!({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]}),
                ),
                "messages[0].content[0].content[0].type",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": []}]}]),
                "messages[0].content[0].input",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                "messages[0].role",
            ),
        ] {
            let error = of(json!(null), list).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(path));
            assert!(
                error.message.starts_with("messages[0]"),
                "{}",
                error.message
            );
        }
    }
}
