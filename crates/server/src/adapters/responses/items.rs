//! The items of a conversation as messages of chat.

use crate::error::ApiError;
use crate::wire::openai::chat::{ChatMessage, Content, FunctionCall, Part, ToolCall};
use crate::wire::responses::{InputItem, InputPart};
use crate::wire::text_or::TextOr;

/// The messages of a conversation. Instructions and the system messages that follow them become one, as chat templates take one
/// at the start. Reasoning, text and calls that follow each other become one message of the assistant.
///
/// # Errors
/// 400 that names the item.
pub(super) fn messages(
    instructions: Option<&str>,
    input: &TextOr<InputItem>,
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut conversation = Conversation::default();
    if let Some(text) = instructions.filter(|text| !text.is_empty()) {
        conversation.system(Content::Text(text.to_owned()));
    }
    match input {
        TextOr::Text(text) => conversation.push(message("user", Content::Text(text.clone()))),
        TextOr::List(items) => {
            for (index, item) in items.iter().enumerate() {
                conversation.item(item, &format!("input[{index}]"))?;
            }
        }
    }
    Ok(conversation.messages)
}

fn message(role: &str, content: Content) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: Some(content),
        ..ChatMessage::default()
    }
}

#[derive(Default)]
struct Conversation {
    messages: Vec<ChatMessage>,
}

impl Conversation {
    fn push(&mut self, message: ChatMessage) {
        self.messages.push(message);
    }

    /// A system message: part of the first, as long as there is nothing else.
    fn system(&mut self, content: Content) {
        match self.messages.as_mut_slice() {
            [last] if last.role == "system" => {
                let mut text = last.content.take().map(text).unwrap_or_default();
                text += "\n\n";
                text += &self::text(content);
                last.content = Some(Content::Text(text));
            }
            _ => self.push(message("system", content)),
        }
    }

    /// The message of the assistant that is going on, if it can still take what `fits`; or a new one.
    fn assistant(&mut self, fits: impl Fn(&ChatMessage) -> bool) -> &mut ChatMessage {
        let goes_on = self
            .messages
            .last()
            .is_some_and(|last| last.role == "assistant" && fits(last));
        if !goes_on {
            self.push(ChatMessage {
                role: "assistant".to_owned(),
                ..ChatMessage::default()
            });
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    fn item(&mut self, item: &InputItem, path: &str) -> Result<(), ApiError> {
        match item.kind.as_deref().unwrap_or("message") {
            "message" => self.message(item, path),
            "reasoning" => self.reasoning(item, path),
            "function_call" => self.call(item, path),
            "function_call_output" => self.result(item, path),
            "item_reference" => Err(ApiError::unsupported(
                format!("{path}.type"),
                format!("{path}: this server keeps no items: send the item itself"),
            )),
            _ => Err(ApiError::unsupported(
                format!("{path}.type"),
                format!(
                    "{path}.type: items of type 'message', 'function_call', 'function_call_output' and 'reasoning' are supported"
                ),
            )),
        }
    }

    fn message(&mut self, item: &InputItem, path: &str) -> Result<(), ApiError> {
        let role = required(item.role.as_deref(), path, "role")?;
        let content = required(item.content.as_ref(), path, "content")?;
        let content = parts(content, &format!("{path}.content"))?;
        match role {
            "system" | "developer" => self.system(content),
            "user" => self.push(message("user", content)),
            "assistant" => {
                let empty =
                    |last: &ChatMessage| last.content.is_none() && last.tool_calls.is_none();
                self.assistant(empty).content = Some(content);
            }
            _ => {
                return Err(ApiError::invalid(
                    format!("{path}.role"),
                    format!("{path}.role: one of 'user', 'assistant', 'system' and 'developer'"),
                ));
            }
        }
        Ok(())
    }

    fn reasoning(&mut self, item: &InputItem, path: &str) -> Result<(), ApiError> {
        let content = item.content.clone().unwrap_or(TextOr::List(Vec::new()));
        let mut thought = text(parts(&content, &format!("{path}.content"))?);
        if thought.is_empty() {
            let summary = TextOr::List(item.summary.clone().unwrap_or_default());
            thought = text(parts(&summary, &format!("{path}.summary"))?);
        }
        // What is encrypted is of another server.
        if !thought.is_empty() {
            let new = |last: &ChatMessage| {
                last.reasoning.is_none() && last.content.is_none() && last.tool_calls.is_none()
            };
            self.assistant(new).reasoning = Some(thought);
        }
        Ok(())
    }

    fn call(&mut self, item: &InputItem, path: &str) -> Result<(), ApiError> {
        let call = ToolCall {
            id: required(item.call_id.as_ref(), path, "call_id")?.clone(),
            kind: "function".to_owned(),
            function: FunctionCall {
                name: required(item.name.as_ref(), path, "name")?.clone(),
                arguments: required(item.arguments.as_ref(), path, "arguments")?.clone(),
            },
        };
        let message = self.assistant(|_| true);
        message.tool_calls.get_or_insert_default().push(call);
        Ok(())
    }

    fn result(&mut self, item: &InputItem, path: &str) -> Result<(), ApiError> {
        let call = required(item.call_id.as_ref(), path, "call_id")?;
        let output = required(item.output.as_ref(), path, "output")?;
        self.push(ChatMessage {
            tool_call_id: Some(call.clone()),
            ..message("tool", parts(output, &format!("{path}.output"))?)
        });
        Ok(())
    }
}

fn required<T>(value: Option<T>, path: &str, field: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| {
        ApiError::invalid(
            format!("{path}.{field}"),
            format!("{path}.{field}: the item needs this field"),
        )
    })
}

/// The text of a content.
fn text(content: Content) -> String {
    match content {
        Content::Text(text) => text,
        Content::Parts(parts) => {
            let texts: Vec<String> = parts.into_iter().filter_map(|part| part.text).collect();
            texts.join("\n")
        }
    }
}

fn parts(list: &TextOr<InputPart>, path: &str) -> Result<Content, ApiError> {
    let list = match list {
        TextOr::Text(text) => return Ok(Content::Text(text.clone())),
        TextOr::List(list) => list,
    };
    let part = |(index, part): (usize, &InputPart)| {
        let path = format!("{path}[{index}]");
        let text = match part.kind.as_str() {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => &part.text,
            "refusal" => &part.refusal,
            _ => {
                return Err(ApiError::unsupported(
                    format!("{path}.type"),
                    format!("{path}.type: only text is supported, no images, files or audio"),
                ));
            }
        };
        Ok(Part {
            kind: "text".to_owned(),
            text: Some(required(text.clone(), &path, "text")?),
            refusal: None,
        })
    };
    let parts: Result<Vec<Part>, ApiError> = list.iter().enumerate().map(part).collect();
    let mut parts = parts?;
    Ok(match parts.as_mut_slice() {
        [one] => Content::Text(one.text.take().unwrap_or_default()),
        _ => Content::Parts(parts),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(instructions: Option<&str>, input: Value) -> Result<Vec<ChatMessage>, ApiError> {
        messages(instructions, &serde_json::from_value(input).unwrap())
    }

    fn roles(messages: &[ChatMessage]) -> Vec<&str> {
        messages
            .iter()
            .map(|message| message.role.as_str())
            .collect()
    }

    fn said(message: &ChatMessage) -> String {
        text(message.content.clone().unwrap())
    }

    #[test]
    fn instructions_and_what_the_system_says_at_first_are_one_message() {
        let input = json!([
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "B"}]},
            {"role": "system", "content": "C"},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "developer", "content": "D"},
        ]);
        let messages = of(Some("A"), input).unwrap();
        assert_eq!(roles(&messages), ["system", "user", "system"]);
        assert_eq!(said(&messages[0]), "A\n\nB\n\nC");
        assert_eq!(said(&messages[2]), "D");
    }

    #[test]
    fn a_turn_of_the_assistant_is_one_message() {
        let input = json!([
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            {"type": "message", "role": "assistant", "content": "Done"},
            {"type": "message", "role": "assistant", "content": "More"},
        ]);
        let messages = of(None, input).unwrap();
        assert_eq!(
            roles(&messages),
            [
                "user",
                "assistant",
                "tool",
                "tool",
                "assistant",
                "assistant"
            ]
        );
        assert_eq!(messages[1].reasoning.as_deref(), Some("Hm"));
        assert_eq!(said(&messages[1]), "Wait");
        let calls = messages[1].tool_calls.as_ref().unwrap();
        assert_eq!(
            (calls[0].id.as_str(), calls[1].function.name.as_str()),
            ("c1", "g")
        );
        assert_eq!(
            (messages[3].tool_call_id.as_deref(), said(&messages[3])),
            (Some("c2"), "2".to_owned())
        );
    }

    #[test]
    fn reasoning_of_other_servers_is_left_out() {
        let input = json!([
            {"type": "reasoning", "summary": [], "content": null, "encrypted_content": "x"},
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "S"}]},
            {"role": "assistant", "content": "Yes"},
        ]);
        let messages = of(None, input).unwrap();
        assert_eq!(roles(&messages), ["user", "assistant"]);
        assert_eq!(messages[1].reasoning.as_deref(), Some("S"));
    }

    #[test]
    fn what_is_not_text_is_refused_by_its_path() {
        for (item, path) in [
            (
                json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}),
                "input[0].content[0].type",
            ),
            (
                json!({"type": "item_reference", "id": "msg_1"}),
                "input[0].type",
            ),
            (json!({"type": "computer_call"}), "input[0].type"),
            (json!({"role": "critic", "content": "x"}), "input[0].role"),
            (json!({"role": "user"}), "input[0].content"),
            (
                json!({"role": "user", "content": [{"type": "input_text"}]}),
                "input[0].content[0].text",
            ),
            (
                json!({"type": "function_call", "name": "f", "arguments": "{}"}),
                "input[0].call_id",
            ),
            (
                json!({"type": "function_call_output", "call_id": "c"}),
                "input[0].output",
            ),
        ] {
            let error = of(None, json!([item])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(path));
            assert!(error.message.starts_with("input[0]"), "{}", error.message);
        }
    }
}
