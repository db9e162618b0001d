//! OpenAI's Responses API: `/v1/responses`.

mod answer;
mod event;
mod request;

pub use answer::{
    IncompleteDetails, InputTokensDetails, ItemStatus, OutputItem, OutputPart, OutputTokensDetails,
    ReasoningPart, ResponseError, ResponseObject, ResponseStatus, ResponseUsage,
};
pub use event::{EventBody, ResponseEvent};
pub use request::{
    InputItem, InputPart, ResponseTool, ResponseToolChoice, ResponsesRequest, TextFormat,
    ToolChoiceObject,
};
