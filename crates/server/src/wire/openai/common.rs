//! What chat completions and completions have in common on the wire.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A field that clients know and this server does not have. Whoever uses it gets an error, as its effect would be missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// Whether it has a value other than `null`, `false` or an empty list or object, which all mean that it is not used.
    pub used: bool,
}

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let used = match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(object) => !object.is_empty(),
            _ => true,
        };
        Ok(Self { used })
    }
}

/// One string, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Strings {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Strings {
    /// All of them.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(string) => std::slice::from_ref(string),
            Self::Many(list) => list,
        }
    }
}

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings::One(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Strings, E> {
                Ok(Strings::One(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Strings, A::Error> {
                let mut strings = Vec::new();
                while let Some(string) = list.next_element()? {
                    strings.push(string);
                }
                Ok(Strings::Many(strings))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

/// What a stream has beside text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// One more chunk before the end, with the usage.
    pub include_usage: Option<bool>,
    /// The usage so far in every chunk.
    pub continuous_usage_stats: Option<bool>,
}

/// The form that the answer must have.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema, for `json_schema`.
    #[serde(default)]
    pub json_schema: Option<NamedSchema>,
    /// The schema itself, as llama-server takes it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

/// A JSON schema with a name.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct NamedSchema {
    /// Its name, which has no effect.
    #[serde(default)]
    pub name: Option<String>,
    /// What it is for, which has no effect.
    #[serde(default)]
    pub description: Option<String>,
    /// The schema. Without one any JSON object will do.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Has no effect: every schema is kept to the letter.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// vLLM's way to constrain an answer: one of these.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct StructuredOutputs {
    /// A JSON schema, as an object or as its text.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// A regular expression for the whole answer.
    pub regex: Option<String>,
    /// The answer is one of these texts.
    pub choice: Option<Vec<String>>,
    /// A grammar in Lark's form.
    pub grammar: Option<String>,
    /// Any JSON object.
    pub json_object: Option<bool>,
    /// Not supported.
    #[serde(default)]
    #[schema(ignore)]
    pub structural_tag: Refused,
    /// Not supported.
    #[serde(default)]
    #[schema(ignore)]
    pub whitespace_pattern: Refused,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDefinition>,
}

fn function() -> String {
    "function".to_owned()
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct FunctionDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema of its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Whether calls that are not forced keep the schema, too. Without it they are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether the model calls tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This one.
    Named(NamedTool),
}

/// Names a tool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    #[serde(default)]
    pub function: Option<NamedFunction>,
}

/// Names a function.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct NamedFunction {
    /// Its name.
    pub name: String,
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = ToolChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#""none", "auto", "required" or {"type": "function", "function": {"name": …}}"#)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ToolChoice, E> {
                Ok(ToolChoice::Mode(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                NamedTool::deserialize(MapAccessDeserializer::new(map)).map(ToolChoice::Named)
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// New tokens, those included that end a text.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the tokens of the prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those whose keys and values were there from other requests.
    pub cached_tokens: usize,
}

impl Usage {
    /// Of these tokens.
    pub fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Times of a request, as llama-server has them. Only where `timings` is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub struct Timings {
    /// Tokens of the prompt from the cache.
    pub cache_n: usize,
    /// Tokens of the prompt that were computed.
    pub prompt_n: usize,
    /// Milliseconds that took, until the first token.
    pub prompt_ms: f64,
    /// Tokens a second.
    pub prompt_per_second: f64,
    /// New tokens.
    pub predicted_n: usize,
    /// Milliseconds for those after the first.
    pub predicted_ms: f64,
    /// Tokens a second.
    pub predicted_per_second: f64,
    /// Draft tokens that went through the model.
    pub draft_n: usize,
    /// Draft tokens that were the ones chosen.
    pub draft_n_accepted: usize,
}

/// Values added to logits, by token id.
pub type LogitBias = BTreeMap<String, f64>;

/// What a request says of sampling and of the end of the text; see the fields of the request.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Sampling<'a> {
    pub min_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<&'a LogitBias>,
    pub seed: Option<i64>,
    pub stop: &'a [String],
    pub stop_token_ids: &'a [u32],
    pub include_stop: bool,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub cache_salt: Option<&'a str>,
}

/// Declares a request. The fields that all requests have are written once, here: serde's `flatten`, which could do the same,
/// reads a body twice and loses the path of a wrong field.
macro_rules! request {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$own_meta:meta])* pub $own:ident: $own_type:ty,)*
        }
        refused { $($refused:ident,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($(#[$own_meta])* pub $own: $own_type,)*
            /// The model, by a name that the server has for it. May be left out.
            pub model: Option<String>,
            /// New tokens at most.
            #[schema(minimum = 0)]
            pub max_tokens: Option<i64>,
            /// No text ends before it has so many new tokens.
            #[schema(minimum = 0)]
            pub min_tokens: Option<i64>,
            /// Divides the logits; 0 always takes the most probable token.
            #[schema(minimum = 0)]
            pub temperature: Option<f64>,
            /// Takes the most probable tokens until their probabilities sum to this.
            #[schema(minimum = 0, maximum = 1)]
            pub top_p: Option<f64>,
            /// Takes this many of the most probable tokens; 0 and -1 take all.
            #[schema(minimum = -1)]
            pub top_k: Option<i64>,
            /// Takes tokens with at least this share of the highest probability.
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f64>,
            /// Lowers the logits of all tokens that the text has.
            #[schema(minimum = -2, maximum = 2)]
            pub presence_penalty: Option<f64>,
            /// Lowers the logits of tokens by how often the text has them.
            #[schema(minimum = -2, maximum = 2)]
            pub frequency_penalty: Option<f64>,
            /// Divides the logits of tokens of prompt and text; 1 is off.
            #[schema(exclusive_minimum = 0)]
            pub repetition_penalty: Option<f64>,
            /// Added to logits, by token id; -100 to 100.
            #[schema(value_type = Option<std::collections::BTreeMap<String, f64>>)]
            pub logit_bias: Option<$crate::wire::openai::common::LogitBias>,
            /// Same seed, same request: same text. Without one it is random.
            pub seed: Option<i64>,
            /// Strings that end the text, 16 at most.
            pub stop: Option<$crate::wire::openai::common::Strings>,
            /// Token ids that end the text.
            pub stop_token_ids: Option<Vec<u32>>,
            /// The stop string is part of the text.
            pub include_stop_str_in_output: Option<bool>,
            /// The token that ends a text does not end it.
            pub ignore_eos: Option<bool>,
            /// Special tokens are no part of the text; on unless said.
            pub skip_special_tokens: Option<bool>,
            /// Texts for each prompt.
            #[schema(minimum = 1, maximum = 128)]
            pub n: Option<i64>,
            /// Equal to `n`, if given.
            #[schema(minimum = 1, maximum = 128)]
            pub best_of: Option<i64>,
            /// The form that the answer must have.
            pub response_format: Option<$crate::wire::openai::common::ResponseFormat>,
            /// The same, as vLLM has it.
            pub structured_outputs: Option<$crate::wire::openai::common::StructuredOutputs>,
            /// The answer comes in chunks as it is made.
            pub stream: Option<bool>,
            /// What a stream has beside text.
            pub stream_options: Option<$crate::wire::openai::common::StreamOptions>,
            /// Only requests with the same one share a prefix of the cache.
            #[schema(max_length = 256)]
            pub cache_salt: Option<String>,
            /// Adds the times of the request to the answer.
            pub timings: Option<bool>,
            /// Tokens in log probabilities are `token_id:N` in place of their text.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Adds the special tokens that the tokenizer puts around a text.
            pub add_special_tokens: Option<bool>,
            $(
                /// Not supported.
                #[serde(default)]
                #[schema(ignore)]
                pub $refused: $crate::wire::openai::common::Refused,
            )*
        }

        impl $name {
            /// The first field in use that is not supported.
            pub fn refused(&self) -> Option<&'static str> {
                [
                    $((stringify!($refused), self.$refused),)*
                ]
                .into_iter()
                .find_map(|(name, field)| field.used.then_some(name))
            }

            /// What it says of sampling and of the end of the text.
            pub fn sampling(&self) -> $crate::wire::openai::common::Sampling<'_> {
                $crate::wire::openai::common::Sampling {
                    min_tokens: self.min_tokens,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    seed: self.seed,
                    stop: self.stop.as_ref().map_or(&[], |stop| stop.as_slice()),
                    stop_token_ids: self.stop_token_ids.as_deref().unwrap_or_default(),
                    include_stop: self.include_stop_str_in_output.unwrap_or(false),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                    n: self.n,
                    best_of: self.best_of,
                    cache_salt: self.cache_salt.as_deref(),
                }
            }
        }
    };
}
pub(crate) use request;
