//! What a client of the Responses API sends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::wire::text_or::TextOr;

/// A request to `/v1/responses`. Fields that are not listed are ignored.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// Name of the model; the one that is served if left out.
    pub model: Option<String>,
    /// What the user says, or the conversation so far.
    pub input: TextOr<InputItem>,
    /// A system message before all others.
    pub instructions: Option<String>,
    /// Tokens to generate at most; the rest of the context if left out.
    pub max_output_tokens: Option<i64>,
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// Share of the probability that is sampled from.
    pub top_p: Option<f64>,
    /// Alternatives for each token, 0 to 20. Needs `include: ["message.output_text.logprobs"]`.
    pub top_logprobs: Option<i64>,
    /// `message.output_text.logprobs` adds log probabilities. Other entries add nothing here.
    pub include: Option<Vec<String>>,
    /// Functions that the model may call. Tools of other types are left out.
    pub tools: Option<Vec<ResponseTool>>,
    /// Whether the model has to call one.
    pub tool_choice: Option<ResponseToolChoice>,
    /// Whether one answer may hold several calls; true if left out.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the text.
    pub text: Option<TextConfig>,
    /// How much the model is to think before it answers.
    pub reasoning: Option<Reasoning>,
    /// Whether to answer by events.
    pub stream: Option<bool>,
    /// Returned as it came.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Returned as it came.
    pub user: Option<String>,
    /// Must be false: there is no state.
    pub background: Option<bool>,
    /// Must be left out: there is no state.
    pub previous_response_id: Option<String>,
    /// Must be left out: there is no state.
    #[schema(value_type = Option<Object>)]
    pub conversation: Option<Value>,
    /// Must be left out: there is no state.
    #[schema(value_type = Option<Object>)]
    pub prompt: Option<Value>,
    /// Must be `disabled`: a text that does not fit is refused.
    pub truncation: Option<String>,
    /// Must be empty: nothing is dropped from a conversation.
    #[schema(value_type = Option<Vec<Object>>)]
    pub context_management: Option<Vec<Value>>,

    /// Extension: as in chat completions.
    pub top_k: Option<i64>,
    /// Extension: as in chat completions.
    pub min_p: Option<f64>,
    /// Extension: as in chat completions.
    pub seed: Option<i64>,
    /// Extension: as in chat completions.
    pub presence_penalty: Option<f64>,
    /// Extension: as in chat completions.
    pub frequency_penalty: Option<f64>,
    /// Extension: as in chat completions.
    pub repetition_penalty: Option<f64>,
    /// Extension: strings that end the text, 16 at most.
    pub stop: Option<Vec<String>>,
    /// Extension: as in chat completions.
    pub ignore_eos: Option<bool>,
    /// Extension: as in chat completions.
    pub cache_salt: Option<String>,
    /// Extension: as in chat completions.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// One item of the conversation: a message (also without a type), a call, its result, or reasoning.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct InputItem {
    /// `message` if left out; `function_call`, `function_call_output` or `reasoning`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of a message: `user`, `assistant`, `system` or `developer`.
    pub role: Option<String>,
    /// Of a message: its text, or parts of type `input_text`, `output_text` or `refusal`. Of reasoning: parts of type
    /// `reasoning_text`.
    pub content: Option<TextOr<InputPart>>,
    /// Of a call and its result: what connects them.
    pub call_id: Option<String>,
    /// Of a call: the function.
    pub name: Option<String>,
    /// Of a call: a JSON object as text.
    pub arguments: Option<String>,
    /// Of a result: a text, or parts of type `input_text`.
    pub output: Option<TextOr<InputPart>>,
    /// Of reasoning: used where it has no content.
    pub summary: Option<Vec<InputPart>>,
}

/// A part of a message, of a result or of reasoning.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct InputPart {
    /// `input_text`, `output_text`, `text`, `refusal`, `reasoning_text` or `summary_text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
    /// The text of a refusal.
    pub refusal: Option<String>,
}

/// A tool that the client offers.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct ResponseTool {
    /// `function`. Tools of other types are left out.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the function.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Whether arguments have to follow the schema.
    pub strict: Option<bool>,
}

/// Whether the model has to call a function.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ResponseToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// A function, or a subset of the tools.
    Object(ToolChoiceObject),
}

/// A function to call, or the tools that may be called.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct ToolChoiceObject {
    /// `function` or `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of `function`: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of `allowed_tools`: `auto` or `required`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Of `allowed_tools`: the functions, by type and name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
}

impl<'de> Deserialize<'de> for ResponseToolChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{Error, MapAccess, Visitor, value::MapAccessDeserializer};

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = ResponseToolChoice;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an object")
            }

            fn visit_str<E: Error>(self, mode: &str) -> Result<Self::Value, E> {
                Ok(ResponseToolChoice::Mode(mode.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                ToolChoiceObject::deserialize(MapAccessDeserializer::new(map))
                    .map(ResponseToolChoice::Object)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The form of the text.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct TextConfig {
    /// Plain text if left out.
    pub format: Option<TextFormat>,
    /// Ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
}

/// Plain text, any JSON object, or JSON by a schema.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of `json_schema`: what the schema is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of `json_schema`: what it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Of `json_schema`: the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Of `json_schema`: schemas are always followed exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// How much the model is to think.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Reasoning {
    /// As `reasoning_effort` of chat completions.
    pub effort: Option<String>,
    /// Ignored: reasoning is given out whole.
    pub summary: Option<String>,
}
