//! Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`.

mod answer;
mod error;
mod event;
mod request;

pub use answer::{AnswerBlock, MessageAnswer, MessageUsage, TokenCount};
pub use error::{AnthropicError, AnthropicErrorBody};
pub use event::{BlockDelta, MessageDelta, MessageEvent};
pub use request::{
    Block, InputMessage, MessageTool, MessageToolChoice, MessagesRequest, OutputConfig, Thinking,
};
