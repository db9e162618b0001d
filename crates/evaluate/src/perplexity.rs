//! How well a model predicts a text.

use std::ops::AddAssign;

use serde::Serialize;
use sparamx_engine::{EngineError, KvOptions, Loaded};

use crate::EvaluateError;
use crate::scorer::Scorer;

/// What [`perplexity()`] measures on a text. Texts are taken together by adding these up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prediction {
    /// Sum of the negative log likelihoods of the scored tokens, in nats.
    pub nll: f64,
    /// Number of scored tokens.
    pub tokens: usize,
    /// Number of tokens, scored or not, that stand for text: special tokens are not among them.
    pub text_tokens: usize,
    /// Bytes of the text.
    pub bytes: usize,
}

impl Prediction {
    /// The figures to report. Of nothing, they are NaN.
    pub fn perplexity(&self) -> Perplexity {
        let mean = self.nll / self.tokens as f64;
        let tokens_per_byte = self.text_tokens as f64 / self.bytes as f64;
        Perplexity {
            perplexity: mean.exp(),
            tokens: self.tokens,
            bits_per_byte: mean / std::f64::consts::LN_2 * tokens_per_byte,
        }
    }
}

impl AddAssign for Prediction {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
        self.text_tokens += other.text_tokens;
        self.bytes += other.bytes;
    }
}

/// A [`Prediction`] in the usual units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// The exponential of the mean negative log likelihood of a scored token: as if the model chose among so many tokens,
    /// all alike. Only comparable for one tokenizer.
    pub perplexity: f64,
    /// Number of scored tokens.
    pub tokens: usize,
    /// The mean negative log likelihood in bits, times the tokens per byte of the text (special tokens not counted):
    /// comparable between tokenizers. As in Gao et al., "The Pile" (2020), section 3.1.
    pub bits_per_byte: f64,
}

/// How a text is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    /// Tokens in a window.
    pub ctx: usize,
    /// Tokens at the start of each window that are not scored; the first one never is, having nothing before it.
    pub unscored: usize,
    /// How keys and values are kept.
    pub kv: KvOptions,
}

impl Scoring {
    /// All tokens of windows of `ctx` but the first, with dense keys and values.
    pub fn windows_of(ctx: usize) -> Self {
        Self {
            ctx,
            unscored: 0,
            kv: KvOptions::default(),
        }
    }
}

/// Measures a text: its ids with special tokens, in windows of `ctx` tokens that do not overlap, each from an empty cache.
/// The last window is what is left over.
///
/// `progress` gets the number of tokens scored so far and in all.
///
/// # Errors
/// A `ctx` that is less than 2 or more than the model was made for, or not more than `unscored`; a text of so few tokens that
/// none is scored; options of the cache outside their range; too little memory for it; what tokenizer and model report; a
/// logit that is NaN.
pub fn perplexity(
    loaded: &Loaded,
    text: &str,
    scoring: &Scoring,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Prediction, EvaluateError> {
    let tokenizer = &loaded.tokenizer;
    let (ctx, longest) = (scoring.ctx, loaded.model.config().context_length());
    let first = scoring.unscored.max(1);
    if first >= ctx && ctx >= 2 {
        let allowed = format!("less than the {ctx} of a window");
        return Err(parameter("unscored", first, allowed));
    }
    if !(2..=longest).contains(&ctx) {
        let allowed = format!("2 to {longest}, what the model was made for");
        return Err(parameter("ctx", ctx, allowed));
    }
    let ids = tokenizer.encode(text, true)?;
    let windows = || ids.chunks(ctx).filter(|window| window.len() > first);
    let tokens: usize = windows().map(|window| window.len() - first).sum();
    if tokens == 0 {
        return Err(EvaluateError::TextTooShort {
            tokens: ids.len(),
            needed: first + 1,
        });
    }
    let mut scorer = Scorer::new(loaded, &scoring.kv)?;
    let (mut nll, mut scored) = (0.0, 0);
    for window in windows() {
        scorer.rewind(0);
        scorer.skip(&window[..first - 1])?;
        // Nothing comes after the last token, so that it need not go through the model.
        let (inputs, targets) = (&window[first - 1..window.len() - 1], &window[first..]);
        nll += scorer.score(inputs, targets, &mut |done| progress(scored + done, tokens))?;
        scored += targets.len();
    }
    Ok(Prediction {
        nll,
        tokens,
        text_tokens: ids.iter().filter(|&&id| tokenizer.is_text(id)).count(),
        bytes: text.len(),
    })
}

fn parameter(name: &'static str, value: usize, allowed: String) -> EvaluateError {
    EvaluateError::Engine(EngineError::Parameter {
        name,
        value: value.to_string(),
        allowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_together_weigh_by_their_tokens_and_bytes() {
        let mut all = Prediction {
            nll: 3.0 * 2f64.ln(),
            tokens: 3,
            text_tokens: 3,
            bytes: 6,
        };
        all += Prediction {
            nll: 1.0 * 8f64.ln(),
            tokens: 1,
            text_tokens: 2,
            bytes: 4,
        };
        // 6 bits over 4 tokens, and 5 tokens of text in 10 bytes.
        let figures = all.perplexity();
        assert!((figures.perplexity - 1.5f64.exp2()).abs() < 1e-12);
        assert!((figures.bits_per_byte - 0.75).abs() < 1e-12);
        assert_eq!(figures.tokens, 4);
    }
}
