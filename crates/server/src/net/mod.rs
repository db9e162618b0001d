//! Connections: taking them in, what they keep to, and ending them.

mod accept;
mod body;
mod connection;
mod listen;
mod refuse;
mod socket;
mod stage;
mod tls;
mod watched;

pub use accept::serve;
pub use body::BodyFault;
pub use listen::Listener;
pub use tls::acceptor;

#[cfg(test)]
mod tests;
