//! `/v1/completions` on the wire.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;

use super::common::{Timings, Usage, request};

request! {
    /// Texts to go on with.
    pub struct CompletionRequest {
        /// A text, a list of texts, token ids, or a list of token ids.
        pub prompt: Option<Prompt>,
        /// The prompt is part of the answer.
        pub echo: Option<bool>,
        /// The log probability of each new token, and of so many of the most probable ones; with `echo` of the prompt's too.
        #[schema(minimum = 0, maximum = 20)]
        pub logprobs: Option<i64>,
    }
    refused {
        allowed_token_ids, bad_words, grammar, guided_choice, guided_grammar, guided_json, guided_regex, json_schema,
        logits_processors, prompt_embeds, prompt_logprobs, suffix, truncate_prompt_tokens, use_beam_search,
    }
}

/// What to go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Token ids of several texts.
    ManyIds(Vec<Vec<u32>>),
}

/// An element of a list of prompts.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                match u32::try_from(id) {
                    Ok(id) => Ok(Element::Id(id)),
                    Err(_) => Err(E::custom(format_args!("{id} is no token id"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a text, a list of texts, a list of token ids, or a list of lists of token ids",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Prompt, E> {
                Ok(Prompt::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                let Some(first) = list.next_element()? else {
                    return Ok(Prompt::Ids(Vec::new()));
                };
                let mut prompt = match first {
                    Element::Text(text) => Prompt::Texts(vec![text]),
                    Element::Id(id) => Prompt::Ids(vec![id]),
                    Element::Ids(ids) => Prompt::ManyIds(vec![ids]),
                };
                while let Some(next) = list.next_element()? {
                    match (&mut prompt, next) {
                        (Prompt::Texts(texts), Element::Text(text)) => texts.push(text),
                        (Prompt::Ids(ids), Element::Id(id)) => ids.push(id),
                        (Prompt::ManyIds(lists), Element::Ids(ids)) => lists.push(ids),
                        _ => {
                            return Err(A::Error::custom(
                                "a list has texts, token ids or lists of token ids, and not several of these",
                            ));
                        }
                    }
                }
                Ok(prompt)
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

/// The answer to a completion request; as a chunk of a stream it has what is new.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Completion<'a> {
    /// Names the answer: the same in all chunks.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: &'a str,
    /// Changes when the same request may give another text.
    pub system_fingerprint: &'a str,
    /// The texts: those of the first prompt, then those of the second, and so on.
    pub choices: Vec<CompletionChoice>,
    /// What they took. In a stream only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The times, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// One text.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Its place.
    pub index: usize,
    /// The text.
    pub text: String,
    /// The log probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; none in a chunk that is not the last.
    pub finish_reason: Option<&'static str>,
    /// The stop string, or the token of `stop_token_ids`, that ended it.
    #[schema(value_type = Option<Value>)]
    pub stop_reason: Option<Value>,
}

/// Log probabilities of the tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Where each token begins, in characters of the text of the choice.
    pub text_offset: Vec<usize>,
    /// The log probability of each token; none for the first of a prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The most probable tokens in each place with their log probabilities, and the token itself.
    #[schema(value_type = Vec<Option<Object>>)]
    pub top_logprobs: Vec<Option<TopTokens>>,
}

/// Tokens by their text with their log probabilities. They are written as those of `token_logprobs` are, so that equal ones read
/// as equal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopTokens(Vec<(String, f64)>);

impl TopTokens {
    /// Adds a token. Of two with the same text the more probable one stays.
    pub fn add(&mut self, text: String, logprob: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == text) {
            Some((_, value)) => *value = value.max(logprob),
            None => self.0.push((text, logprob)),
        }
    }
}

impl Serialize for TopTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}
