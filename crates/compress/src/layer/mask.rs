//! Which weights to keep.

use rayon::prelude::*;

use super::{Pattern, panels::BLOCK};
use crate::{CompressError, Scope, prune, zeros_for};

impl Pattern {
    /// # Errors
    /// [`CompressError::Sparsity`], [`CompressError::Pattern`].
    pub(crate) fn check(self) -> Result<(), CompressError> {
        match self {
            Pattern::Unstructured(found) if !(0.0..1.0).contains(&found) => {
                Err(CompressError::Sparsity { found })
            }
            Pattern::NofM { keep, of }
                if keep == 0 || keep > of || of > BLOCK || !of.is_power_of_two() =>
            {
                Err(CompressError::Pattern { keep, of })
            }
            _ => Ok(()),
        }
    }

    /// The share of weights that are pruned.
    pub(crate) fn sparsity(self) -> f64 {
        match self {
            Pattern::Unstructured(sparsity) => sparsity,
            Pattern::NofM { keep, of } => 1.0 - keep as f64 / of as f64,
        }
    }
}

/// True for weights to keep, those of the largest magnitude; a weight that is zero is never kept.
pub(super) fn magnitude(weights: &[f32], k: usize, pattern: Pattern, scope: Scope) -> Vec<bool> {
    match pattern {
        Pattern::Unstructured(sparsity) => {
            let mut bits: Vec<u16> = weights
                .par_iter()
                .map(|&w| super::bf16_bits(w.into()))
                .collect();
            if sparsity > 0.0 {
                prune(&mut bits, k, sparsity, scope);
            }
            bits.into_par_iter().map(|bits| bits != 0).collect()
        }
        Pattern::NofM { .. } => by_score(weights, k, pattern, |_, w| f64::from(w.abs())),
    }
}

/// True for weights to keep, those of the largest product of magnitude and norm of the input, within a row or a group; a
/// weight that is zero is never kept.
pub(super) fn wanda(weights: &[f32], k: usize, norms: &[f64], pattern: Pattern) -> Vec<bool> {
    by_score(weights, k, pattern, |j, w| f64::from(w.abs()) * norms[j])
}

/// Keeps the largest scores, `score(column, weight)`, of each row or group.
fn by_score(
    weights: &[f32],
    k: usize,
    pattern: Pattern,
    score: impl Fn(usize, f32) -> f64 + Sync,
) -> Vec<bool> {
    let mut kept = vec![true; weights.len()];
    kept.par_chunks_mut(k.max(1))
        .zip(weights.par_chunks(k.max(1)))
        .for_each(|(kept, row)| {
            let scores: Vec<f64> = row.iter().enumerate().map(|(j, &w)| score(j, w)).collect();
            match pattern {
                Pattern::Unstructured(sparsity) => {
                    drop_least(&scores, zeros_for(sparsity, k), kept)
                }
                Pattern::NofM { keep, of } => drop_groups(&scores, keep, of, kept),
            }
            for (kept, &weight) in kept.iter_mut().zip(row) {
                *kept &= weight != 0.0;
            }
        });
    kept
}

/// Drops all but `keep` of every `of`.
pub(super) fn drop_groups(scores: &[f64], keep: usize, of: usize, kept: &mut [bool]) {
    for (scores, kept) in scores.chunks(of).zip(kept.chunks_mut(of)) {
        drop_least(scores, scores.len().saturating_sub(keep), kept);
    }
}

/// Drops the `count` smallest; of equal ones the one of the lowest index first.
pub(super) fn drop_least(scores: &[f64], count: usize, kept: &mut [bool]) {
    if count == 0 {
        return;
    }
    let mut sorted = scores.to_vec();
    let (below, &mut last, _) = sorted.select_nth_unstable_by(count - 1, f64::total_cmp);
    // Of the `count` smallest those that are not smaller than the largest of them.
    let mut ties = 1 + below.iter().filter(|&&score| score == last).count();
    for (&score, kept) in scores.iter().zip(kept) {
        if score < last {
            *kept = false;
        } else if score == last && ties > 0 {
            *kept = false;
            ties -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_are_dropped_and_the_first_of_equals() {
        let scores = [3.0, 1.0, 2.0, 1.0, 1.0, 0.0];
        let dropped = |count| {
            let mut kept = [true; 6];
            drop_least(&scores, count, &mut kept);
            (0..6).filter(|&i| !kept[i]).collect::<Vec<_>>()
        };
        assert!(dropped(0).is_empty());
        assert_eq!(dropped(1), [5]);
        assert_eq!(dropped(3), [1, 3, 5]);
        assert_eq!(dropped(5), [1, 2, 3, 4, 5]);
        assert_eq!(dropped(6), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn groups_keep_their_largest_and_a_short_one_as_many() {
        let mut kept = [true; 7];
        drop_groups(&[1.0, 4.0, 3.0, 2.0, 5.0, 6.0, 7.0], 2, 4, &mut kept);
        assert_eq!(kept, [false, true, true, false, false, true, true]);
    }

    #[test]
    fn wanda_weighs_a_weight_by_its_input() {
        let weights = [1.0, -3.0, 2.0, 0.0, 5.0, 1.0, 1.0, 1.0];
        let norms = [10.0, 1.0, 2.0, 100.0];
        let half = Pattern::Unstructured(0.5);
        let kept = wanda(&weights, 4, &norms, half);
        assert_eq!(kept, [true, false, true, false, true, false, false, true]);
        // Of the second row 5 * 10, 1, 2, 100.
        let kept = wanda(&weights, 4, &norms, Pattern::NofM { keep: 1, of: 2 });
        assert_eq!(kept, [true, false, true, false, true, false, false, true]);
    }

    #[test]
    fn patterns_are_checked() {
        for (keep, of) in [(1, 2), (2, 4), (4, 8), (8, 16), (4, 4), (1, 128)] {
            Pattern::NofM { keep, of }.check().unwrap();
        }
        for (keep, of) in [(0, 4), (5, 4), (2, 6), (2, 0), (1, 256)] {
            let error = Pattern::NofM { keep, of }.check().unwrap_err();
            assert!(matches!(error, CompressError::Pattern { .. }), "{error}");
        }
        for sparsity in [-0.1, 1.0, f64::NAN] {
            let error = Pattern::Unstructured(sparsity).check().unwrap_err();
            assert!(matches!(error, CompressError::Sparsity { .. }), "{error}");
        }
    }
}
