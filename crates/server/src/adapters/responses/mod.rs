//! `/v1/responses` over chat.

mod items;
mod object;
mod request;
mod writer;

pub use object::response;
pub use request::{FIELDS, chat_request};
pub use writer::ResponseWriter;
