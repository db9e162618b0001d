//! Conversations in OpenAI's form, as templates want them.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::ChatTemplate;
use crate::EngineError;

/// Stands at the end of a final message that is to be continued. As in Transformers it ends with a blank, which shows whether the
/// template trims what is said.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// What is said to find out how a template reads contents.
const PROBE: &str = "probe of contents";

/// A conversation and what else a template may use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Messages in OpenAI's form: objects with `role`, `content` (a text, null, or parts of type `text`), `tool_calls` with
    /// `arguments` as JSON text, `tool_call_id`, `name`, `reasoning`.
    pub messages: Vec<Value>,
    /// Tools in OpenAI's form, a list. None and an empty list are the same.
    pub tools: Option<Value>,
    /// Variables for the template, such as `enable_thinking` and `documents`. They go before the template's own.
    pub variables: Map<String, Value>,
    /// Whether the prompt ends where an answer begins.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, which the model goes on with.
    pub continue_final_message: bool,
}

impl ChatTemplate {
    /// The prompt for a conversation.
    ///
    /// As in Transformers and vLLM: arguments of calls are objects for the template, contents of parts are joined with line
    /// breaks, no content is an empty one, and `developer` is `system` where the template does not know it. Templates that
    /// read lists of parts only get those.
    ///
    /// # Errors
    /// As [`Self::render`]; arguments that are no JSON; a final message to be continued that is empty, or that the template does
    /// not show.
    pub fn render_conversation(&self, conversation: &Conversation) -> Result<String, EngineError> {
        let mut messages = conversation.messages.clone();
        let knows_developer = self.mentions("developer");
        for message in &mut messages {
            normalize(message, knows_developer)?;
        }
        if conversation.continue_final_message {
            mark_end(messages.last_mut())?;
        }
        if self.wants_parts() {
            messages.iter_mut().for_each(into_parts);
        }
        let mut variables = conversation.variables.clone();
        let tools = conversation.tools.as_ref();
        if let Some(tools) = tools.filter(|tools| **tools != json!([])) {
            variables.insert("tools".to_owned(), tools.clone());
        }
        let prompt = conversation.add_generation_prompt && !conversation.continue_final_message;
        variables.insert("add_generation_prompt".to_owned(), json!(prompt));
        variables.insert("messages".to_owned(), Value::Array(messages));
        let rendered = self.render_variables(variables)?;
        if conversation.continue_final_message {
            return cut_at_mark(&rendered);
        }
        Ok(rendered)
    }

    /// Whether the template reads contents only as lists of parts.
    fn wants_parts(&self) -> bool {
        let shows = |content: Value| {
            let message = json!([{"role": "user", "content": content}]);
            let variables = [
                ("messages".to_owned(), message),
                ("add_generation_prompt".to_owned(), json!(false)),
            ];
            let rendered = self.render_variables(Map::from_iter(variables));
            rendered.is_ok_and(|text| text.contains(PROBE))
        };
        let parts = || json!([{"type": "text", "text": PROBE}]);
        *self
            .parts
            .get_or_init(|| !shows(json!(PROBE)) && shows(parts()))
    }
}

/// What a template wants, found out at most once.
pub(super) type Found = std::sync::Arc<OnceLock<bool>>;

/// Brings a message into the form that templates are written for.
fn normalize(message: &mut Value, knows_developer: bool) -> Result<(), EngineError> {
    let Some(message) = message.as_object_mut() else {
        return Err(EngineError::parameter("messages", "no object", "objects"));
    };
    if !knows_developer && message.get("role").is_some_and(|role| role == "developer") {
        message.insert("role".to_owned(), json!("system"));
    }
    let content = text_of(message.get("content"));
    message.insert("content".to_owned(), Value::String(content));
    // Templates read the older name.
    if let Some(reasoning) = message.get("reasoning").cloned() {
        message.entry("reasoning_content").or_insert(reasoning);
    }
    match message.get_mut("tool_calls") {
        Some(Value::Array(calls)) if !calls.is_empty() => {
            calls.iter_mut().try_for_each(parse_arguments)
        }
        // Templates ask whether there is the field.
        _ => {
            message.remove("tool_calls");
            Ok(())
        }
    }
}

/// What a content says.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// Arguments of a call as an object.
fn parse_arguments(call: &mut Value) -> Result<(), EngineError> {
    let arguments = &mut call["function"]["arguments"];
    *arguments = match &*arguments {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::Null => json!({}),
        Value::String(text) => serde_json::from_str(text).map_err(|error| {
            EngineError::parameter("messages.tool_calls.function.arguments", error, "JSON")
        })?,
        object => object.clone(),
    };
    Ok(())
}

/// The content as a list of one part.
fn into_parts(message: &mut Value) {
    let parts = match message["content"].as_str() {
        None | Some("") => json!([]),
        Some(text) => json!([{"type": "text", "text": text}]),
    };
    message["content"] = parts;
}

/// Marks the end of the message that is to be continued.
fn mark_end(last: Option<&mut Value>) -> Result<(), EngineError> {
    let last = last.ok_or_else(|| unshown("none"))?;
    match last["content"].as_str() {
        Some(text) if !text.trim().is_empty() => {
            last["content"] = Value::String(format!("{text}{TAG}"));
            Ok(())
        }
        _ => Err(unshown("empty")),
    }
}

/// The prompt up to the mark, which goes with the blanks that the template would not show.
fn cut_at_mark(rendered: &str) -> Result<String, EngineError> {
    let at = rendered
        .rfind(TAG.trim_end())
        .ok_or_else(|| unshown("not shown by the chat template"))?;
    let text = &rendered[..at];
    let kept = if rendered[at..].starts_with(TAG) {
        text
    } else {
        text.trim_end()
    };
    Ok(kept.to_owned())
}

fn unshown(what: &str) -> EngineError {
    let allowed = "a last message with a text that the chat template shows";
    EngineError::parameter("continue_final_message", what, allowed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(Path::new("t.jinja"), source, [("bos_token", "<s>")]).unwrap()
    }

    fn conversation(messages: Value) -> Conversation {
        Conversation {
            messages: messages.as_array().unwrap().clone(),
            ..Conversation::default()
        }
    }

    #[track_caller]
    fn assert_renders(source: &str, messages: Value, want: &str) {
        let rendered = template(source).render_conversation(&conversation(messages));
        assert_eq!(rendered.unwrap(), want, "{source}");
    }

    #[test]
    fn contents_are_texts() {
        let source = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
        let messages = json!([
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "tool", "tool_call_id": "1"},
        ]);
        assert_renders(
            source,
            messages.clone(),
            "[system:a][user:b\nc][assistant:][tool:]",
        );
        let knows = format!("{source}{{# developer #}}");
        assert_renders(
            &knows,
            messages,
            "[developer:a][user:b\nc][assistant:][tool:]",
        );
    }

    #[test]
    fn templates_of_parts_get_parts() {
        let source = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}<{{ part.text }}>\
                      {% endif %}{% endfor %}{% endfor %}";
        assert_renders(source, json!([{"role": "user", "content": "a"}]), "<a>");
        assert_renders(
            source,
            json!([{"role": "user", "content": [{"type": "text", "text": "b"}]}]),
            "<b>",
        );
        assert_renders(source, json!([{"role": "assistant", "content": null}]), "");
        let mut continued = conversation(json!([{"role": "assistant", "content": "so "}]));
        continued.continue_final_message = true;
        let rendered = template(source).render_conversation(&continued);
        assert_eq!(rendered.unwrap(), "<so ");
    }

    #[test]
    fn arguments_are_objects_for_the_template() {
        let source = "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments.a }}\
                      {{ c.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}";
        let call = |arguments: Value| json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
        assert_renders(
            source,
            call(json!(r#"{"b":"é", "a": 1}"#)),
            r#"1{"b": "é", "a": 1}"#,
        );
        assert_renders(source, call(json!({"a": 2})), r#"2{"a": 2}"#);
        assert_renders(source, call(json!("")), "{}");
        let cut = template(source).render_conversation(&conversation(call(json!(r#"{"a": "#))));
        let error = cut.unwrap_err().to_string();
        assert!(
            error.starts_with("messages.tool_calls.function.arguments is"),
            "{error}"
        );
    }

    #[test]
    fn variables_tools_and_the_end_of_the_prompt_reach_the_template() {
        let source = "{{ bos_token }}{{ enable_thinking }}{{ documents }}{{ tools is none }}{{ tools }}\
                      {{ messages[0].reasoning_content }}{{ messages | length }}{% if add_generation_prompt %}go{% endif %}";
        let mut conversation = conversation(json!([{"role": "assistant", "reasoning": "hm"}]));
        let variables = json!({"enable_thinking": false, "documents": [1], "messages": [], "add_generation_prompt": 7});
        conversation.variables = variables.as_object().unwrap().clone();
        conversation.tools = Some(json!([]));
        let rendered = template(source).render_conversation(&conversation).unwrap();
        assert_eq!(rendered, "<s>False[1]TrueNonehm1");
        conversation.tools = Some(json!([{"type": "function"}]));
        conversation.add_generation_prompt = true;
        let rendered = template(source).render_conversation(&conversation).unwrap();
        assert_eq!(rendered, "<s>False[1]False[{'type': 'function'}]hm1go");
    }

    #[test]
    fn the_cut_is_after_what_is_shown_of_the_final_message() {
        let preserving = "{% for m in messages %}<{{ m.content }}>\n{% endfor %}";
        let trimming = "{% for m in messages %}<{{ m.content | trim }}>\n{% endfor %}";
        let dropping = "{% for m in messages %}{% if m.role == 'user' %}<{{ m.content }}>{% endif %}{% endfor %}";
        let rendered = |source: &str, last: &str| {
            let mut continued = conversation(json!([
                {"role": "user", "content": "so "}, {"role": "assistant", "content": last}
            ]));
            continued.continue_final_message = true;
            continued.add_generation_prompt = true;
            template(source).render_conversation(&continued)
        };
        assert_eq!(rendered(preserving, "so ").unwrap(), "<so >\n<so ");
        assert_eq!(rendered(trimming, " so ").unwrap(), "<so>\n<so");
        for (source, last) in [(dropping, "so"), (preserving, ""), (preserving, " ")] {
            let error = rendered(source, last).unwrap_err().to_string();
            assert!(error.starts_with("continue_final_message is"), "{error}");
        }
        let none = Conversation {
            continue_final_message: true,
            ..Conversation::default()
        };
        assert!(template(preserving).render_conversation(&none).is_err());
    }
}
