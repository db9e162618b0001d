//! Rounding bf16 matrices to int8 and int4 levels.
//!
//! A weight becomes the nearest level of its scale; a zero stays exactly zero. What the scales are:
//!
//! - int8: the largest magnitude of the row becomes level 127 or -127.
//! - int4: the weight of largest magnitude of the group becomes about level -8, whatever its sign, so the scale may be
//!   negative. A few scales around that are tried, and that of the least sum of squared errors is taken. Levels are those of
//!   the scale as bf16, which is how it is stored.
//!
//! Rows are independent, so the number of threads changes nothing.

use rayon::prelude::*;
use sparamx_format::bf16_scale;

/// Levels and scales: an element is about its level times its scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Row-major `[n, k]`.
    pub levels: Vec<i8>,
    /// Row-major: `[n]` for int8, `[n, ceil(k / group)]` for int4.
    pub scales: Vec<f32>,
}

/// Levels that int4 weights can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int4 {
    /// -8 to 7, for dense weights.
    Dense,
    /// -8 to -1 and 1 to 7, and 0 for zeros: for packed weights, which do not store zeros. A weight that is not zero never gets
    /// level 0. Packed weights could have a level of 8 as well; without it they can be expanded to dense int4 weights, bit for bit, on
    /// CPUs where that is faster. What it costs is a step for weights as large as the largest and of the other sign.
    Sparse,
}

/// The level -8 stands for the largest magnitude times 8 / (8 + 0.1 i), for these i: the plain one first, so that it wins
/// among equals. The range and step are those of llama.cpp's search for Q4_0 with importance (`make_qx_quants`), at half its
/// resolution.
const INT4_STEPS: [i32; 9] = [0, -8, -6, -4, -2, 2, 4, 6, 8];

/// Rounds rows of `k` bf16 weights to int8 levels, -127 to 127. A small weight may become zero.
pub fn int8(rows: &[u16], k: usize) -> Quantized {
    let mut levels = vec![0i8; rows.len()];
    let scales = levels
        .par_chunks_mut(k.max(1))
        .zip(rows.par_chunks(k.max(1)))
        .map(|(levels, row)| int8_row(row, levels))
        .collect();
    Quantized { levels, scales }
}

/// Writes the levels of a row and returns its scale.
fn int8_row(row: &[u16], levels: &mut [i8]) -> f32 {
    let max = row
        .iter()
        .fold(0f32, |max, &bits| max.max(value(bits).abs()));
    if max == 0.0 {
        return 0.0;
    }
    let scale = max / 127.0;
    for (level, &bits) in levels.iter_mut().zip(row) {
        *level = round_half_even(value(bits) / scale).clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// Rounds rows of `k` bf16 weights to int4 levels with a scale for each `group` columns; the last group of a row may be shorter.
pub fn int4(rows: &[u16], k: usize, group: usize, kind: Int4) -> Quantized {
    let (k, groups) = (k.max(1), k.div_ceil(group).max(1));
    let mut levels = vec![0i8; rows.len()];
    let mut scales = vec![0f32; rows.len() / k * groups];
    levels
        .par_chunks_mut(k)
        .zip(scales.par_chunks_mut(groups))
        .zip(rows.par_chunks(k))
        .for_each(|((levels, scales), row)| {
            let groups = row.chunks(group).zip(levels.chunks_mut(group));
            for (scale, (weights, levels)) in scales.iter_mut().zip(groups) {
                *scale = int4_group(weights, kind, levels);
            }
        });
    Quantized { levels, scales }
}

/// Writes the levels of a group and returns its scale, which is a bf16.
fn int4_group(weights: &[u16], kind: Int4, levels: &mut [i8]) -> f32 {
    let scale = int4_scale(weights.iter().map(|&bits| value(bits)), kind);
    for (level, &bits) in levels.iter_mut().zip(weights) {
        *level = int4_level(value(bits), scale, kind) as i8;
    }
    scale
}

/// The scale of the weights of a group, a bf16; 0 if they are zero or too small.
pub(crate) fn int4_scale(weights: impl Iterator<Item = f32> + Clone, kind: Int4) -> f32 {
    let mut largest = 0f32;
    for weight in weights.clone() {
        if weight.abs() > largest.abs() {
            largest = weight;
        }
    }
    let candidates = INT4_STEPS.map(|i| bf16_scale(-largest / (8.0 + 0.1 * i as f32)));
    let mut best = (f64::INFINITY, 0.0);
    for scale in candidates {
        // Too small for bf16: all levels are 0, as in a group of zeros.
        if scale == 0.0 {
            continue;
        }
        // In f64, where no square of an f32 overflows or vanishes.
        let error = weights
            .clone()
            .map(|weight| {
                let error = f64::from(weight - int4_level(weight, scale, kind) * scale);
                error * error
            })
            .sum();
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// The level nearest to `weight / scale`; 0 of a scale of 0.
pub(crate) fn int4_level(weight: f32, scale: f32, kind: Int4) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    let exact = weight / scale;
    let nearest = round_half_even(exact.clamp(-8.0, 7.0));
    match kind {
        Int4::Dense => nearest,
        Int4::Sparse if nearest == 0.0 && weight != 0.0 => 1f32.copysign(exact),
        Int4::Sparse => nearest,
    }
}

/// Rounds to the nearest whole number, ties to even, for magnitudes below 2^22: the sum with 1.5 * 2^23 has no bits left for
/// fractions. It is vector code without SSE4.1, unlike `f32::round_ties_even`.
fn round_half_even(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

fn value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn bits(values: &[f32]) -> Vec<u16> {
        values
            .iter()
            .map(|&v| bf16::from_f32(v).to_bits())
            .collect()
    }

    /// Weights of about normal distribution, the last of every four zero.
    fn weights(len: usize, seed: u64) -> Vec<u16> {
        let mut state = seed;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let sum = |i: usize, v: f32| if i % 4 == 3 { 0.0 } else { v };
        let values: Vec<f32> = (0..len)
            .map(|i| sum(i, 0.02 * (0..6).map(|_| uniform()).sum::<f32>()))
            .collect();
        bits(&values)
    }

    #[test]
    fn int8_levels_are_the_nearest() {
        // Scale 1; ties go to even, the ends to +-127.
        let rows = bits(&[127.0, -127.0, 0.5, 1.5, -0.5, -2.5, 3.25, 0.0]);
        let found = int8(&rows, 8);
        assert_eq!(found.scales, [1.0]);
        assert_eq!(found.levels, [127, -127, 0, 2, 0, -2, 3, 0]);
    }

    #[test]
    fn rows_have_scales_of_their_own() {
        let found = int8(&bits(&[1.0, 0.5, 0.0, 0.0, -254.0, 2.0]), 2);
        assert_eq!(found.scales, [1.0 / 127.0, 0.0, 2.0]);
        assert_eq!(found.levels, [127, 64, 0, 0, -127, 1]);
    }

    #[test]
    fn int8_errors_are_at_most_half_a_step() {
        let (n, k) = (20, 300);
        let rows = weights(n * k, 1);
        let found = int8(&rows, k);
        for (i, (&bits, &level)) in rows.iter().zip(&found.levels).enumerate() {
            let scale = found.scales[i / k];
            let error = (value(bits) - f32::from(level) * scale).abs();
            // Half a step, and the rounding of the quotient.
            assert!(
                error <= scale * (0.5 + 127.0 * f32::EPSILON),
                "{i}: {error} of {scale}"
            );
            assert!(bits != 0 || level == 0);
        }
    }

    #[test]
    fn int4_gives_back_what_it_can_hold() {
        // -8 to 7 times 0.25, and mirrored with a negative scale: exact, so no other scale is better.
        let up: Vec<f32> = (-8..=7).map(|level| level as f32 * 0.25).collect();
        let down: Vec<f32> = up.iter().map(|v| -v).collect();
        let found = int4(&bits(&[up, down].concat()), 16, 32, Int4::Dense);
        assert_eq!(found.scales, [0.25, -0.25]);
        let levels: Vec<i8> = (-8..=7).collect();
        assert_eq!(found.levels, levels.repeat(2));
        let half: Vec<f32> = (-8..=7).map(|level| level as f32 * 0.5).collect();
        let found = int4(&bits(&half), 16, 32, Int4::Sparse);
        assert_eq!(found.scales, [0.5]);
        assert_eq!(found.levels, levels);
    }

    #[test]
    fn only_zeros_become_zero_in_packed_int4() {
        let rows = bits(&[8.0, 0.25, -0.25, 0.0, -8.0, 1e-30]);
        let found = int4(&rows, 6, 32, Int4::Sparse);
        let zeros = |levels: &[i8]| levels.iter().map(|&l| l == 0).collect::<Vec<_>>();
        assert_eq!(
            zeros(&found.levels),
            [false, false, false, true, false, false]
        );
        for (&bits, &level) in rows.iter().zip(&found.levels) {
            let product = f32::from(level) * found.scales[0];
            assert_eq!(product > 0.0, value(bits) > 0.0, "the sign of {bits:#06x}");
        }
        let dense = int4(&rows, 6, 32, Int4::Dense);
        assert_eq!(zeros(&dense.levels), [false, true, true, true, false, true]);
    }

    #[test]
    fn every_int4_level_is_the_nearest_and_in_range() {
        for kind in [Int4::Dense, Int4::Sparse] {
            for (k, group) in [(100, 32), (128, 128), (130, 64)] {
                let rows = weights(7 * k, k as u64);
                let found = int4(&rows, k, group, kind);
                let groups = k.div_ceil(group);
                assert_eq!(found.scales.len(), 7 * groups);
                for (i, (&bits, &level)) in rows.iter().zip(&found.levels).enumerate() {
                    let scale = found.scales[i / k * groups + i % k / group];
                    assert_eq!(scale, bf16_scale(scale), "a bf16");
                    let allowed: Vec<i8> = match kind {
                        Int4::Dense => (-8..=7).collect(),
                        Int4::Sparse if bits & 0x7fff == 0 => vec![0],
                        Int4::Sparse => (-8..=7).filter(|&level| level != 0).collect(),
                    };
                    let error = |level: i8| (value(bits) - f32::from(level) * scale).abs();
                    let least = allowed
                        .iter()
                        .map(|&level| error(level))
                        .fold(f32::MAX, f32::min);
                    assert!(allowed.contains(&level), "{level}");
                    // The quotient is rounded, so near a tie the neighbor may be taken.
                    assert!(error(level) <= least + 8.0 * f32::EPSILON * scale.abs());
                    assert!(bits != 0 || level == 0);
                }
            }
        }
    }

    #[test]
    fn the_search_for_a_scale_helps() {
        let rows = weights(64 * 128, 5);
        let found = int4(&rows, 128, 128, Int4::Dense);
        let error = |scale: f32, weights: &[u16]| -> f32 {
            let one =
                |&bits: &u16| value(bits) - int4_level(value(bits), scale, Int4::Dense) * scale;
            weights.iter().map(one).map(|e| e * e).sum()
        };
        let (mut searched, mut plain) = (0.0, 0.0);
        for (row, &scale) in rows.chunks(128).zip(&found.scales) {
            let largest = row.iter().map(|&bits| value(bits));
            let largest = largest.fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
            let simple = error(bf16_scale(largest / -8.0), row);
            assert!(error(scale, row) <= simple);
            searched += error(scale, row);
            plain += simple;
        }
        assert!(searched < 0.95 * plain, "{searched} of {plain}");
    }

    #[test]
    fn extremes_do_no_harm() {
        // The largest and the smallest of bf16, alone and together.
        let (max, tiny) = (0x7f7f, 0x0001);
        for rows in [
            [max, max | 0x8000],
            [tiny, tiny | 0x8000],
            [max, tiny],
            [0, 0],
        ] {
            let found = int8(&rows, 2);
            assert!(found.scales[0].is_finite());
            assert_eq!(found.levels[0], if rows[0] == 0 { 0 } else { 127 });
            for kind in [Int4::Dense, Int4::Sparse] {
                let found = int4(&rows, 2, 32, kind);
                assert!(found.scales[0].is_finite(), "{rows:?}");
                // A quarter of a step is left of bf16's least number, so it becomes zero.
                let zero = rows[0] == 0 || rows[0] == tiny;
                // -7 where a weight of the other sign is as large.
                let expected = if zero { 0..=0 } else { -8..=-7 };
                assert!(expected.contains(&found.levels[0]), "{rows:?}");
            }
        }
        assert!(int8(&[], 0).levels.is_empty());
        assert!(int4(&[], 0, 32, Int4::Dense).levels.is_empty());
    }

    #[test]
    fn threads_change_nothing() {
        let rows = weights(301 * 97, 9);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads")
                .install(|| (int8(&rows, 97), int4(&rows, 97, 32, Int4::Sparse)))
        };
        assert!(with(1) == with(3));
    }
}
