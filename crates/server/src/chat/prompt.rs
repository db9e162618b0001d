//! From messages to the ids that generation starts from.

use serde_json::{Map, Value, json};
use sparamx_engine::{ChatTemplate, Conversation, Tokenizer};

use crate::error::ApiError;
use crate::tools::Reasoning;
use crate::wire::openai::ChatRequest;
use crate::wire::openai::chat::{ChatMessage, Content, Part};

const ROLES: &str = "system, developer, user, assistant and tool";

/// What generation starts from.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Whether what comes after it begins with reasoning.
    pub reasoning: Reasoning,
}

/// A conversation whose messages have been looked at.
#[derive(Debug, Clone)]
pub struct Talk {
    conversation: Conversation,
    /// Whether the tokenizer's own special tokens come around the text; none: as the model needs it.
    add_special: Option<bool>,
}

impl Talk {
    /// The conversation of a request; `variables` are those of the template that the server sets.
    ///
    /// # Errors
    /// 400: a message that is none, or has something other than text.
    pub fn new(request: &ChatRequest, variables: &Map<String, Value>) -> Result<Self, ApiError> {
        let continues = request.continue_final_message.unwrap_or(false);
        if continues && request.add_generation_prompt == Some(true) {
            let message = "continue_final_message and add_generation_prompt are both true: one of them at most may be";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        if request.messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "messages has no message, at least one is needed",
            ));
        }
        let messages = request.messages.iter().enumerate();
        let messages =
            messages.map(|(index, message)| turn(message, &format!("messages[{index}]")));
        Ok(Self {
            conversation: Conversation {
                messages: messages.collect::<Result<_, _>>()?,
                tools: request.tools.as_ref().map(|tools| json!(tools)),
                variables: template_variables(request, variables),
                add_generation_prompt: request.add_generation_prompt.unwrap_or(!continues),
                continue_final_message: continues,
            },
            add_special: request.add_special_tokens,
        })
    }

    /// The prompt for a model with this template, or without one: the contents of all messages are then one text. It may take
    /// a while. `reasons`: the model thinks between tags, whatever its template says.
    ///
    /// # Errors
    /// 400: the template refuses the messages; the text cannot fit in `context` tokens; the tokenizer refuses it.
    pub fn prompt(
        &self,
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
        context: usize,
        reasons: Option<bool>,
    ) -> Result<Prompt, ApiError> {
        let text = match template {
            Some(template) => template.render_conversation(&self.conversation)?,
            None => self.joined(),
        };
        tokenizer.check_room(&text, context)?;
        // A template writes the special tokens itself.
        let ids = match (template, self.add_special) {
            (None, None | Some(true)) => tokenizer.encode_prompt(&text)?,
            (_, add_special) => tokenizer.encode(&text, add_special.unwrap_or(false))?,
        };
        if ids.is_empty() {
            return Err(ApiError::invalid("messages", "the messages have no text"));
        }
        let source = match (reasons, template) {
            // Its own text says nothing of tags that the user knows of.
            (Some(true), _) => Reasoning::MARKS[1],
            (None, Some(template)) if !self.conversation.continue_final_message => {
                template.source()
            }
            _ => "",
        };
        Ok(Prompt {
            ids,
            reasoning: Reasoning::detect(source, &text),
        })
    }

    fn joined(&self) -> String {
        let messages = self.conversation.messages.iter();
        let texts: Vec<&str> = messages
            .filter_map(|message| message["content"].as_str())
            .collect();
        texts.join("\n\n")
    }
}

fn template_variables(request: &ChatRequest, variables: &Map<String, Value>) -> Map<String, Value> {
    let mut all = variables.clone();
    if let Some(documents) = &request.documents {
        all.insert("documents".to_owned(), json!(documents));
    }
    if let Some(effort) = &request.reasoning_effort {
        all.insert("reasoning_effort".to_owned(), json!(effort));
    }
    all.extend(request.chat_template_kwargs.clone().unwrap_or_default());
    all
}

/// A message as templates know it.
fn turn(message: &ChatMessage, path: &str) -> Result<Value, ApiError> {
    let role = match message.role.as_str() {
        role @ ("system" | "developer" | "user" | "assistant" | "tool") => role,
        "" => {
            return Err(ApiError::invalid(
                format!("{path}.role"),
                format!("{path}.role is missing, allowed are {ROLES}"),
            ));
        }
        role => {
            let role = crate::error::cut(role, 40);
            let message = format!("{path}.role is '{role}', allowed are {ROLES}");
            return Err(ApiError::invalid(format!("{path}.role"), message));
        }
    };
    let content = match &message.content {
        Some(content) => Some(text(content, path)?),
        None if role == "assistant" => None,
        None => {
            let message =
                format!("{path}.content is missing: only messages of the assistant go without");
            return Err(ApiError::invalid(format!("{path}.content"), message));
        }
    };
    let mut turn = Map::new();
    turn.insert("role".to_owned(), json!(role));
    turn.insert("content".to_owned(), json!(content));
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            turn.insert(name.to_owned(), value);
        }
    };
    add("name", message.name.as_ref().map(|name| json!(name)));
    add(
        "tool_call_id",
        message.tool_call_id.as_ref().map(|id| json!(id)),
    );
    if let Some(reasoning) = message
        .reasoning
        .as_ref()
        .or(message.reasoning_content.as_ref())
    {
        add("reasoning", Some(json!(reasoning)));
        add("reasoning_content", Some(json!(reasoning)));
    }
    if let Some(calls) = message
        .tool_calls
        .as_ref()
        .filter(|calls| !calls.is_empty())
    {
        add("tool_calls", Some(json!(calls)));
    }
    Ok(Value::Object(turn))
}

/// The text of a content. Its parts are lines.
fn text(content: &Content, path: &str) -> Result<String, ApiError> {
    match content {
        Content::Text(text) => Ok(text.clone()),
        Content::Parts(parts) => {
            let parts = parts.iter().enumerate();
            let texts =
                parts.map(|(index, part)| part_text(part, &format!("{path}.content[{index}]")));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
    }
}

fn part_text<'a>(part: &'a Part, path: &str) -> Result<&'a str, ApiError> {
    let text = match part.kind.as_str() {
        "text" | "input_text" | "output_text" => &part.text,
        "refusal" => &part.refusal,
        kind => {
            let kind = crate::error::cut(kind, 40);
            let message =
                format!("{path}.type is '{kind}', and this server takes parts of type text only");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    };
    text.as_deref()
        .ok_or_else(|| ApiError::invalid(format!("{path}.text"), format!("{path}.text is missing")))
}
