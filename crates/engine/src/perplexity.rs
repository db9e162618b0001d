//! How well a model predicts a text.

use serde::Serialize;
use sparamx_kernels::Runtime;
use sparamx_model::{Input, Model, Want, Workspace};

use crate::sampler::check_logits;
use crate::{EngineError, PagedCache, Tokenizer};

/// Tokens that go through the model at a time.
const CHUNK_TOKENS: usize = 512;
/// Logits that are computed at a time, at most: 64 MiB of them. The vocabulary decides how many tokens that is.
const CHUNK_LOGITS: usize = 1 << 24;

/// What [`perplexity`] measures.
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

/// Measures a text: its ids with special tokens, in windows of `ctx` tokens that do not overlap, each from an empty cache.
/// The first token of a window is not scored, having nothing before it. The last window is what is left over.
///
/// `progress` is told the tokens scored so far and the number of tokens in all.
///
/// # Errors
/// A `ctx` that is less than 2 or more than the model was made for; a text of less than 2 tokens; too little memory for
/// the cache; what tokenizer and model report; a logit that is NaN.
pub fn perplexity(
    rt: &Runtime,
    model: &Model,
    tokenizer: &Tokenizer,
    text: &str,
    ctx: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity, EngineError> {
    let longest = model.config().context_length();
    if !(2..=longest).contains(&ctx) {
        let allowed = format!("2 to {longest}, what the model was made for");
        return Err(EngineError::parameter("ctx", ctx, allowed));
    }
    let ids = tokenizer.encode(text, true)?;
    let windows = || ids.chunks(ctx).filter(|window| window.len() >= 2);
    let total: usize = windows().map(|window| window.len() - 1).sum();
    if total == 0 {
        return Err(EngineError::TextTooShort { tokens: ids.len() });
    }
    let mut scorer = Scorer {
        rt,
        model,
        cache: PagedCache::new(model.config(), ctx)?,
        workspace: Workspace::new(),
        nll: 0.0,
        scored: 0,
    };
    for window in windows() {
        scorer.window(window, &mut |scored| progress(scored, total))?;
    }
    let mean = scorer.nll / total as f64;
    let text_ids = ids.iter().filter(|&&id| tokenizer.is_text(id)).count();
    Ok(Perplexity {
        perplexity: mean.exp(),
        tokens: total,
        bits_per_byte: mean / std::f64::consts::LN_2 * text_ids as f64 / text.len().max(1) as f64,
    })
}

struct Scorer<'a> {
    rt: &'a Runtime,
    model: &'a Model,
    cache: PagedCache,
    workspace: Workspace,
    /// Sum of the negative log likelihoods, in nats.
    nll: f64,
    scored: usize,
}

impl Scorer<'_> {
    /// Scores all tokens of a window but the first.
    fn window(&mut self, ids: &[u32], progress: &mut dyn FnMut(usize)) -> Result<(), EngineError> {
        let vocab_size = self.model.config().vocab_size;
        let chunk = (CHUNK_LOGITS / vocab_size).clamp(1, CHUNK_TOKENS);
        self.cache.truncate(0);
        self.cache.reserve(ids.len() - 1)?;
        // Nothing comes after the last token, so that it need not go through the model.
        let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
        for (tokens, targets) in inputs.chunks(chunk).zip(targets.chunks(chunk)) {
            let input = Input {
                tokens,
                cache: &mut self.cache,
                logits: Want::All,
            };
            let logits = self
                .model
                .forward(self.rt, &mut [input], &mut self.workspace)?;
            for (row, &target) in logits.chunks_exact(vocab_size).zip(targets) {
                self.nll += negative_log_likelihood(row, target)?;
            }
            self.scored += targets.len();
            progress(self.scored);
        }
        Ok(())
    }
}

/// `ln(sum(exp(row))) - row[target]`, added up in f64.
///
/// # Errors
/// [`EngineError::Logit`] for NaN and plus infinity; [`EngineError::NoToken`] for a row of nothing but minus infinity.
fn negative_log_likelihood(row: &[f32], target: u32) -> Result<f64, EngineError> {
    check_logits(row)?;
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(EngineError::NoToken);
    }
    let sum: f64 = row
        .iter()
        .map(|&x| (f64::from(x) - f64::from(max)).exp())
        .sum();
    Ok(sum.ln() + (f64::from(max) - f64::from(row[target as usize])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_are_exact_for_large_and_small_logits() {
        let nll = |row: &[f32], target| negative_log_likelihood(row, target).unwrap();
        assert_eq!(nll(&[5.0; 8], 3), 8f64.ln());
        assert_eq!(nll(&[1e30, 0.0], 0), 0.0);
        assert_eq!(nll(&[1e30, 0.0], 1), f64::from(1e30f32));
        assert_eq!(nll(&[0.0, f32::NEG_INFINITY], 0), 0.0);
        let odds = nll(&[1.0, 1.0 + 3f32.ln()], 1);
        assert!((odds - (4f64 / 3.0).ln()).abs() < 1e-7, "{odds}");
    }

    #[test]
    fn rows_without_probabilities_are_refused() {
        let message = |row: &[f32]| negative_log_likelihood(row, 0).unwrap_err().to_string();
        assert!(message(&[0.0, f32::NAN]).starts_with("the logit of token 1 is NaN"));
        assert!(message(&[0.0, 0.0, f32::INFINITY]).starts_with("the logit of token 2 is inf"));
        assert!(message(&[f32::NEG_INFINITY; 2]).starts_with("every logit is minus infinity"));
    }
}
