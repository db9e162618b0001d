//! Log probabilities from a row of logits.

use crate::sampler::{best, check_logits};
use crate::{EngineError, TokenLogprob};

/// `ln(sum(exp(row))) - row[target]`, added up in f64.
///
/// # Errors
/// [`EngineError::Logit`] for NaN and plus infinity; [`EngineError::NoToken`] for a row of nothing but minus infinity.
pub fn negative_log_likelihood(row: &[f32], target: u32) -> Result<f64, EngineError> {
    let Normalizer { max, ln_sum } = normalizer(row)?;
    Ok(ln_sum + (max - f64::from(row[target as usize])))
}

/// Log probabilities, of `id` and of the `top` most probable tokens, from a row of logits.
///
/// # Errors
/// As [`normalizer`].
pub(crate) fn log_probabilities(
    row: &[f32],
    id: u32,
    top: usize,
) -> Result<TokenLogprob, EngineError> {
    let Normalizer { max, ln_sum } = normalizer(row)?;
    let of = |id: u32| (f64::from(row[id as usize]) - max) - ln_sum;
    Ok(TokenLogprob {
        id,
        logprob: of(id),
        top: best(row, top).map(|id| (id, of(id))).collect(),
    })
}

/// `ln(sum(exp(row)))`, in two parts: their sum could lose what the second adds to the first.
struct Normalizer {
    max: f64,
    ln_sum: f64,
}

/// # Errors
/// [`EngineError::Logit`] for NaN and plus infinity; [`EngineError::NoToken`] for a row of nothing but minus infinity.
fn normalizer(row: &[f32]) -> Result<Normalizer, EngineError> {
    check_logits(row)?;
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(EngineError::NoToken);
    }
    let max = f64::from(max);
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    Ok(Normalizer {
        max,
        ln_sum: sum.ln(),
    })
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
    fn log_probabilities_are_the_same_numbers_best_first() {
        let row = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
        let got = log_probabilities(&row, 2, 3).unwrap();
        assert_eq!((got.id, got.logprob), (2, f64::NEG_INFINITY));
        assert_eq!(
            got.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(),
            [1, 3, 4]
        );
        for &(id, logprob) in &got.top {
            assert_eq!(logprob, -negative_log_likelihood(&row, id).unwrap());
        }
        // What is impossible is no alternative.
        assert_eq!(log_probabilities(&row, 0, 9).unwrap().top.len(), 4);
        assert_eq!(log_probabilities(&row, 0, 0).unwrap().top, []);
        assert!(log_probabilities(&[f32::NAN, 0.0], 0, 1).is_err());
    }

    #[test]
    fn rows_without_probabilities_are_refused() {
        let message = |row: &[f32]| negative_log_likelihood(row, 0).unwrap_err().to_string();
        assert!(message(&[0.0, f32::NAN]).starts_with("the logit of token 1 is NaN"));
        assert!(message(&[0.0, 0.0, f32::INFINITY]).starts_with("the logit of token 2 is inf"));
        assert!(message(&[f32::NEG_INFINITY; 2]).starts_with("every logit is minus infinity"));
    }
}
