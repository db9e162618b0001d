//! Magnitude pruning of bf16 matrices.
//!
//! The bits of a bf16 without the sign order like its magnitude, so choosing what to prune is choosing among 32768 integers:
//! a count of each finds the magnitude below which everything goes, and how many of the weights exactly there go too.

use rayon::prelude::*;

use crate::options::{Pattern, Scope};

/// All bits of a bf16 but the sign.
const MAGNITUDE: u16 = 0x7fff;
/// Weights that one thread works on at a time; only ties are counted from chunk to chunk, so it changes no result.
const CHUNK: usize = 1 << 16;

/// The number of zeros among `len` weights at this sparsity: the nearest whole number, halves up.
pub fn zeros_for(sparsity: f64, len: usize) -> usize {
    ((sparsity * len as f64).round() as usize).min(len)
}

/// Sets the smallest weights of `rows` (row-major, rows of `k`) to zero until [`zeros_for`] of each scope are zero. Of equal
/// magnitudes the one of the lowest index goes first. Zeros that are there count, and where they are enough nothing changes.
pub fn prune(rows: &mut [u16], k: usize, sparsity: f64, scope: Scope) {
    match scope {
        Scope::Tensor => prune_tensor(rows, zeros_for(sparsity, rows.len())),
        Scope::Row => {
            let zeros = zeros_for(sparsity, k);
            rows.par_chunks_mut(k.max(1))
                .for_each(|row| prune_row(row, zeros));
        }
    }
}

/// Sets the smallest weights of every `of` consecutive ones of a row to zero until `keep` are left, at most. The last group of a
/// row may be shorter. Of equal magnitudes the one of the lowest index goes first.
fn prune_groups(rows: &mut [u16], k: usize, keep: usize, of: usize) {
    rows.par_chunks_mut(k.max(1)).for_each(|row| {
        let mut order: Vec<usize> = Vec::with_capacity(of);
        for group in row.chunks_mut(of) {
            order.clear();
            order.extend(0..group.len());
            order.sort_unstable_by_key(|&i| (group[i] & MAGNITUDE, i));
            for &i in &order[..group.len().saturating_sub(keep)] {
                group[i] = 0;
            }
        }
    });
}

/// Prunes `rows` by magnitude as a pattern says.
pub(crate) fn prune_pattern(rows: &mut [u16], k: usize, pattern: Pattern, scope: Scope) {
    match pattern {
        Pattern::Unstructured(sparsity) => prune(rows, k, sparsity, scope),
        Pattern::NofM { keep, of } => prune_groups(rows, k, keep, of),
    }
}

/// Makes negative zeros plain ones. Training with a mask leaves them behind; they multiply like zeros, but the packed layout
/// keeps every bit of a weight, so it would store each as a value.
pub fn clear_negative_zeros(weights: &mut [u16]) {
    weights.par_chunks_mut(CHUNK).for_each(|chunk| {
        for bits in chunk {
            // A choice and no branch, so that it becomes vector code.
            *bits = if *bits & MAGNITUDE == 0 { 0 } else { *bits };
        }
    });
}

/// What to prune: everything smaller than `magnitude`, and the first `ties` of exactly that size.
struct Cut {
    magnitude: u16,
    ties: usize,
}

fn prune_row(row: &mut [u16], zeros: usize) {
    let mut sizes: Vec<u16> = row.iter().map(|&bits| bits & MAGNITUDE).collect();
    if zeros == 0 {
        return;
    }
    let (below, &mut magnitude, _) = sizes.select_nth_unstable(zeros - 1);
    // Of the `zeros` smallest those that are not smaller than the largest of them.
    let ties = 1 + below.iter().filter(|&&size| size == magnitude).count();
    apply(row, &Cut { magnitude, ties });
}

fn prune_tensor(weights: &mut [u16], zeros: usize) {
    let Some(cut) = tensor_cut(weights, zeros) else {
        return;
    };
    let equal = |chunk: &[u16]| {
        chunk
            .iter()
            .filter(|&&bits| bits & MAGNITUDE == cut.magnitude)
            .count()
    };
    let equals: Vec<usize> = weights.par_chunks(CHUNK).map(equal).collect();
    let mut left = cut.ties;
    let ties: Vec<usize> = equals
        .iter()
        .map(|&equal| {
            let taken = equal.min(left);
            left -= taken;
            taken
        })
        .collect();
    let magnitude = cut.magnitude;
    weights
        .par_chunks_mut(CHUNK)
        .zip(ties)
        .for_each(|(chunk, ties)| apply(chunk, &Cut { magnitude, ties }));
}

/// The cut that makes `zeros` of the weights zero; nothing if none are to be.
fn tensor_cut(weights: &[u16], zeros: usize) -> Option<Cut> {
    if zeros == 0 {
        return None;
    }
    let counts = weights
        .par_chunks(CHUNK)
        .fold(
            || vec![0u64; usize::from(MAGNITUDE) + 1],
            |mut counts, chunk| {
                for &bits in chunk {
                    counts[usize::from(bits & MAGNITUDE)] += 1;
                }
                counts
            },
        )
        .reduce_with(|mut sum, counts| {
            sum.iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
            sum
        })?;
    let mut left = zeros as u64;
    for (magnitude, &count) in (0..=MAGNITUDE).zip(&counts) {
        if left <= count {
            let ties = left as usize;
            return (left > 0).then_some(Cut { magnitude, ties });
        }
        left -= count;
    }
    None
}

fn apply(weights: &mut [u16], cut: &Cut) {
    if cut.magnitude == 0 {
        // The zeros that are there are enough; a negative one keeps its sign.
        return;
    }
    let mut ties = cut.ties;
    for bits in weights {
        let size = *bits & MAGNITUDE;
        if size < cut.magnitude {
            *bits = 0;
        } else if size == cut.magnitude && ties > 0 {
            *bits = 0;
            ties -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(values: &[f32]) -> Vec<u16> {
        values
            .iter()
            .map(|&v| half::bf16::from_f32(v).to_bits())
            .collect()
    }

    fn pruned(values: &[f32], k: usize, sparsity: f64, scope: Scope) -> Vec<f32> {
        let mut rows = bits(values);
        prune(&mut rows, k, sparsity, scope);
        rows.iter()
            .map(|&b| half::bf16::from_bits(b).to_f32())
            .collect()
    }

    /// Sorts by magnitude and index and prunes from the front: what the definition says, slowly.
    fn oracle(rows: &mut [u16], zeros: usize) {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&index| (rows[index] & MAGNITUDE, index));
        if rows.iter().filter(|&&bits| bits & MAGNITUDE == 0).count() < zeros {
            order[..zeros].iter().for_each(|&index| rows[index] = 0);
        }
    }

    /// Few magnitudes, so that there are many ties, of both signs, zeros included.
    fn coarse(len: usize) -> Vec<u16> {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u16
        };
        (0..len)
            .map(|_| (next() % 40) << 7 | (next() % 2) << 15)
            .collect()
    }

    #[test]
    fn the_smallest_go_and_signs_do_not_matter() {
        let values = [3.0, -1.0, 2.0, -4.0, 0.5, 1.5, -2.5, 6.0];
        assert_eq!(
            pruned(&values, 4, 0.5, Scope::Tensor),
            [3.0, 0.0, 0.0, -4.0, 0.0, 0.0, -2.5, 6.0]
        );
        assert_eq!(
            pruned(&values, 4, 0.5, Scope::Row),
            [3.0, 0.0, 0.0, -4.0, 0.0, 0.0, -2.5, 6.0]
        );
        assert_eq!(
            pruned(
                &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                4,
                0.5,
                Scope::Tensor
            ),
            [0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0]
        );
        assert_eq!(
            pruned(
                &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                4,
                0.5,
                Scope::Row
            ),
            [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0]
        );
    }

    #[test]
    fn of_equal_weights_the_first_goes() {
        assert_eq!(
            pruned(&[1.0, -1.0, 1.0, 1.0], 4, 0.5, Scope::Tensor),
            [0.0, 0.0, 1.0, 1.0]
        );
        assert_eq!(
            pruned(&[2.0, 1.0, -1.0, 1.0], 4, 0.5, Scope::Row),
            [2.0, 0.0, 0.0, 1.0]
        );
    }

    #[test]
    fn zeros_that_are_there_count() {
        let sparse = [0.0, 0.0, -0.0, 5.0, 1.0, 2.0, 0.0, 3.0];
        let mut rows = bits(&sparse);
        prune(&mut rows, 8, 0.5, Scope::Tensor);
        assert_eq!(
            rows,
            bits(&sparse),
            "enough zeros: nothing changes, not even a sign"
        );
        prune(&mut rows, 8, 0.25, Scope::Row);
        assert_eq!(rows, bits(&sparse));
        assert_eq!(
            pruned(&sparse, 8, 0.75, Scope::Tensor),
            [0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 3.0]
        );
    }

    #[test]
    fn negative_zeros_become_plain_ones() {
        let mut weights = bits(&[-0.0, 1.0, 0.0, -2.0]);
        clear_negative_zeros(&mut weights);
        assert_eq!(weights, bits(&[0.0, 1.0, 0.0, -2.0]));
    }

    #[test]
    fn counts_are_rounded_to_the_nearest() {
        let table = [
            (0.5, 7, 4),
            (0.5, 8, 4),
            (0.57, 100, 57),
            (0.29, 100, 29),
            (0.0, 9, 0),
            (1.0, 9, 9),
            (0.04, 10, 0),
        ];
        for (sparsity, len, zeros) in table {
            assert_eq!(zeros_for(sparsity, len), zeros, "{sparsity} of {len}");
        }
    }

    #[test]
    fn any_matrix_is_pruned_as_the_definition_says() {
        for (n, k) in [(1, 1), (3, 7), (5, 64), (300, 701), (2, 100_000)] {
            for sparsity in [0.0, 0.1, 0.5, 0.77, 1.0] {
                let dense = coarse(n * k);
                let (mut tensor, mut wanted) = (dense.clone(), dense.clone());
                prune(&mut tensor, k, sparsity, Scope::Tensor);
                oracle(&mut wanted, zeros_for(sparsity, n * k));
                assert!(tensor == wanted, "tensor {n} x {k} at {sparsity}");

                let (mut rows, mut wanted) = (dense.clone(), dense);
                prune(&mut rows, k, sparsity, Scope::Row);
                wanted
                    .chunks_mut(k)
                    .for_each(|row| oracle(row, zeros_for(sparsity, k)));
                assert!(rows == wanted, "rows {n} x {k} at {sparsity}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let dense = coarse(500_001);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let mut rows = dense.clone();
            pool.install(|| prune(&mut rows, 500_001, 0.3, Scope::Tensor));
            rows
        };
        assert!(with(1) == with(3));
    }

    #[test]
    fn groups_keep_their_largest() {
        let pruned = |values: &[f32], k, keep, of| {
            let mut rows = bits(values);
            prune_pattern(&mut rows, k, Pattern::NofM { keep, of }, Scope::Tensor);
            rows.iter()
                .map(|&b| half::bf16::from_bits(b).to_f32())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            pruned(&[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, -6.0], 8, 2, 4),
            [0.0, -4.0, 3.0, 0.0, 0.0, 0.0, 5.0, -6.0]
        );
        // A group ends with its row, and a short one keeps as many.
        assert_eq!(
            pruned(
                &[1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 8.0, 7.0],
                6,
                2,
                4
            ),
            [0.0, 0.0, 3.0, 4.0, 9.0, 9.0, 0.0, 0.0, 3.0, 4.0, 8.0, 7.0]
        );
        // Zeros that are there count.
        assert_eq!(pruned(&[0.0, 1.0, 0.0, 2.0], 4, 2, 4), [0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn nothing_of_nothing() {
        prune(&mut [], 0, 0.5, Scope::Tensor);
        prune(&mut [], 0, 0.5, Scope::Row);
    }
}
