//! Events of a response that is streamed.

use serde::Serialize;
use utoipa::ToSchema;

use crate::wire::openai::chat::ChatLogprob;

use super::answer::{OutputItem, OutputPart, ReasoningPart, ResponseObject};

/// An event. Its type is also the name on the line `event:`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponseEvent {
    /// `response.created` and so on.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Counts the events of a response, from 0.
    pub sequence_number: u64,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What an event says, by its type.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum EventBody {
    /// `response.created`, `.in_progress`, `.completed`, `.incomplete`, `.failed`.
    Response {
        /// As of now.
        response: Box<ResponseObject>,
    },
    /// `response.output_item.added` and `.done`.
    Item {
        /// Place among the items.
        output_index: usize,
        /// As of now.
        item: OutputItem,
    },
    /// `response.content_part.added` and `.done` of a message.
    TextPart {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// As of now.
        part: OutputPart,
    },
    /// `response.content_part.added` and `.done` of reasoning.
    ReasoningPart {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// As of now.
        part: ReasoningPart,
    },
    /// `response.output_text.delta`.
    TextDelta {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// What is new.
        delta: String,
        /// Of the tokens of what is new, if asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// `response.output_text.done`.
    TextDone {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// All of it.
        text: String,
        /// Of all its tokens, if asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// `response.reasoning_text.delta`.
    ReasoningDelta {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// What is new.
        delta: String,
    },
    /// `response.reasoning_text.done`.
    ReasoningDone {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// All of it.
        text: String,
    },
    /// `response.function_call_arguments.delta`.
    ArgumentsDelta {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// What is new.
        delta: String,
    },
    /// `response.function_call_arguments.done`.
    ArgumentsDone {
        /// The item.
        item_id: String,
        /// Place of the item.
        output_index: usize,
        /// The function.
        name: String,
        /// All of it.
        arguments: String,
    },
}
