//! What a text is split into.

use ring::rand::{SecureRandom, SystemRandom};

use super::format::ToolFormat;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More of what is said.
    Content(String),
    /// More of what is thought.
    Reasoning(String),
    /// A call begins.
    CallStart {
        /// The name of the tool.
        name: String,
        /// The name of the call.
        id: String,
    },
    /// More of the arguments of the last call, as JSON text.
    CallArguments(String),
}

/// Pieces in their order, those of a kind together.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    short_ids: bool,
}

impl Pieces {
    pub fn new(format: Option<ToolFormat>) -> Self {
        Self {
            pieces: Vec::new(),
            short_ids: format.is_some_and(ToolFormat::has_short_ids),
        }
    }

    pub fn take(&mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    pub fn content(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Content(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Content(text.to_owned())),
        }
    }

    pub fn reasoning(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Reasoning(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Reasoning(text.to_owned())),
        }
    }

    pub fn call(&mut self, name: &str) {
        self.pieces.push(Piece::CallStart {
            name: name.to_owned(),
            id: call_id(self.short_ids),
        });
    }

    pub fn arguments(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::CallArguments(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::CallArguments(text.to_owned())),
        }
    }
}

/// A new name for a call: `call_` and 24 letters and digits, or nine of them.
fn call_id(short: bool) -> String {
    const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut bytes = [0; 24];
    // The system always has some; names that are not unique do no harm across answers.
    let _ = SystemRandom::new().fill(&mut bytes);
    let letters = bytes.map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
    match short {
        true => letters[..9].iter().collect(),
        false => "call_".chars().chain(letters).collect(),
    }
}
