//! `/v1/chat/completions` on the wire.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::common::{Timings, Tool, ToolChoice, Usage, request};

request! {
    /// A conversation to go on with.
    pub struct ChatRequest {
        /// The conversation so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// New tokens at most; comes before `max_tokens`.
        #[schema(minimum = 0)]
        pub max_completion_tokens: Option<i64>,
        /// The log probability of each new token.
        pub logprobs: Option<bool>,
        /// Those of so many of the most probable tokens beside it; needs `logprobs`.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        /// Tools that the model may call.
        pub tools: Option<Vec<Tool>>,
        /// Whether it calls them.
        pub tool_choice: Option<ToolChoice>,
        /// Whether it may call several in one answer; on unless said.
        pub parallel_tool_calls: Option<bool>,
        /// Variables of the chat template.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// How much the model reasons, as a variable of the chat template.
        pub reasoning_effort: Option<String>,
        /// Whether reasoning is part of the answer; on unless said.
        pub include_reasoning: Option<bool>,
        /// The answer goes on with the text of the last message.
        pub continue_final_message: Option<bool>,
        /// The prompt ends with the beginning of an answer; on unless said or the final message is continued.
        pub add_generation_prompt: Option<bool>,
        /// Documents for the chat template.
        #[schema(value_type = Option<Vec<Object>>)]
        pub documents: Option<Vec<Value>>,
        /// More tokens than the context has left are no error. For APIs whose clients have to ask for some number.
        #[serde(skip)]
        #[schema(ignore)]
        pub cut_to_context: bool,
        /// `text` is the only one.
        pub modalities: Option<Vec<String>>,
    }
    refused {
        allowed_token_ids, audio, bad_words, chat_template, echo, function_call, functions, grammar, guided_choice, guided_grammar,
        guided_json, guided_regex, json_schema, logits_processors, prediction, prompt_logprobs, thinking_token_budget,
        truncate_prompt_tokens, use_beam_search, web_search_options,
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said: a text or its parts. May be left out beside tool calls.
    pub content: Option<Content>,
    /// Who says it, among those with one role.
    pub name: Option<String>,
    /// What was thought before it was said.
    pub reasoning: Option<String>,
    /// The same, by another name.
    pub reasoning_content: Option<String>,
    /// Calls of tools, by an assistant.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that a message of a tool answers.
    pub tool_call_id: Option<String>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// As one text.
    Text(String),
    /// In parts.
    Parts(Vec<Part>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = list.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Part {
    /// `text`; images, audio and files are not supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
    /// The text of a part of type `refusal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct ToolCall {
    /// Its name in this conversation.
    #[serde(default)]
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct FunctionCall {
    /// The name of the function.
    pub name: String,
    /// Its arguments, as the text of a JSON object.
    #[serde(default)]
    pub arguments: String,
}

/// The answer to a chat request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Names the answer.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The texts.
    pub choices: Vec<ChatChoice>,
    /// What they took.
    pub usage: Usage,
    /// Changes when the same request may give another text.
    pub system_fingerprint: String,
    /// The times, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// One text of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its place.
    pub index: usize,
    /// The text.
    pub message: AssistantMessage,
    /// The log probabilities, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
    /// The stop string, or the token of `stop_token_ids`, that ended it.
    #[schema(value_type = Option<Value>)]
    pub stop_reason: Option<Value>,
}

/// What the model says.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; none where there are only calls of tools.
    pub content: Option<String>,
    /// The calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// What the model thought first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same, by another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// Log probabilities of new tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<ChatLogprob>,
}

/// The log probability of a token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprob {
    /// The text of the token. U+FFFD stands for a part of a character.
    pub token: String,
    /// Its natural logarithm of probability, before temperature, penalties and masks.
    pub logprob: f64,
    /// The bytes of the token.
    pub bytes: Vec<u8>,
    /// The most probable tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token and its log probability.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// The text of the token.
    pub token: String,
    /// Its log probability.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A part of a streamed answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    /// Names the answer: the same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: &'a str,
    /// Changes when the same request may give another text.
    pub system_fingerprint: &'a str,
    /// What is new; none in the chunk with the usage.
    pub choices: Vec<ChunkChoice>,
    /// The usage, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The times, if asked for, in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// What is new in one text.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Its place.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// The log probabilities of the new tokens, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended, in the last chunk.
    pub finish_reason: Option<&'static str>,
    /// What ended it, in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub stop_reason: Option<Value>,
}

/// What is new in a message.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same, by another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What is new in a call of a tool.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the calls it is.
    pub index: usize,
    /// Its name in this conversation, at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, at first.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The function.
    pub function: FunctionDelta,
}

/// What is new in a call of a function.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The name of the function, at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the text of its arguments.
    pub arguments: String,
}
