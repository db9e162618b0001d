//! Connections: taking them in, what they keep to, and ending them.

mod accept;
mod body;

pub use accept::{Listener, serve};
pub use body::BodyFault;
