//! Log probabilities as the wire has them.

use sparamx_engine::{TokenLogprob, Tokenizer};

use crate::wire::openai::chat::{ChatLogprob, TopLogprob};

/// What stands for a probability of zero: JSON has no infinite numbers.
const LEAST: f64 = -9999.0;

/// Writes tokens for log probabilities.
#[derive(Debug, Clone, Copy)]
pub struct TokenWriter {
    /// As `token_id:N` in place of the text.
    pub as_ids: bool,
}

impl TokenWriter {
    /// The name of a token.
    pub fn name(self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.as_ids {
            format!("token_id:{id}")
        } else {
            tokenizer.token_text(id)
        }
    }

    /// The log probability of a token, in the form of chat.
    pub fn chat(self, tokenizer: &Tokenizer, of: &TokenLogprob) -> ChatLogprob {
        let top = of.top.iter().map(|&(id, logprob)| TopLogprob {
            token: self.name(tokenizer, id),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id),
        });
        ChatLogprob {
            token: self.name(tokenizer, of.id),
            logprob: finite(of.logprob),
            bytes: tokenizer.token_bytes(of.id),
            top_logprobs: top.collect(),
        }
    }
}

/// A log probability that JSON can hold.
pub fn finite(logprob: f64) -> f64 {
    logprob.max(LEAST)
}
