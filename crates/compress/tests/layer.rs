//! What holds for every layer: patterns, order of the methods, bad input, and threads.

use sparamx_compress::layer::{LayerSpec, Method, Moments, Outcome, Pattern, Solved, solve};
use sparamx_compress::{CompressError, Scope, zeros_for};
use sparamx_model::Precision;

const METHODS: [Method; 3] = [Method::Magnitude, Method::Wanda, Method::SparseGpt];
const INT4: Precision = Precision::Int4 { group_elems: 32 };
const HALF: Pattern = Pattern::Unstructured(0.5);

/// Numbers of about normal distribution.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..6).map(|_| uniform()).sum::<f32>() * 1.4
    }

    fn take(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// A layer whose inputs are mixtures of a few sources, of unequal sizes; in the pruned model a little off.
struct Layer {
    n: usize,
    k: usize,
    weights: Vec<f32>,
    inputs: Vec<f32>,
    dense: Vec<f32>,
}

impl Layer {
    fn new(n: usize, k: usize, tokens: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let sources = 1 + k / 8;
        let mix = numbers.take(sources * k);
        let sizes: Vec<f32> = (0..k).map(|_| (0.7 * numbers.next()).exp()).collect();
        let (mut inputs, mut dense) = (Vec::new(), Vec::new());
        for _ in 0..tokens {
            let source = numbers.take(sources);
            for j in 0..k {
                let mixed: f32 = source
                    .iter()
                    .zip(mix[j..].iter().step_by(k))
                    .map(|(a, b)| a * b)
                    .sum();
                let value = sizes[j] * (mixed / (sources as f32).sqrt() + 0.3 * numbers.next());
                dense.push(value);
                inputs.push(value + 0.2 * sizes[j] * numbers.next());
            }
        }
        let weights = numbers.take(n * k).into_iter().map(|w| 0.05 * w).collect();
        Layer {
            n,
            k,
            weights,
            inputs,
            dense,
        }
    }

    fn moments(&self, with_dense: bool) -> Moments {
        let mut moments = Moments::new(self.k, with_dense);
        moments.add(&self.inputs, with_dense.then_some(&self.dense));
        moments
    }

    fn solve(&self, moments: &Moments, spec: &LayerSpec) -> Outcome {
        solve(&self.weights, self.n, self.k, Some(moments), spec)
            .unwrap_or_else(|error| panic!("{spec:?}: {error}"))
    }
}

fn spec(method: Method, pattern: Pattern) -> LayerSpec {
    LayerSpec {
        method,
        pattern,
        ..LayerSpec::default()
    }
}

/// Where the weights are zero; a zero that is not +0 fails.
fn zeros(rows: &Solved) -> Vec<bool> {
    match rows {
        Solved::Bf16(bits) => {
            assert!(bits.iter().all(|&bits| bits != 0x8000), "a negative zero");
            assert!(
                bits.iter().all(|&bits| bits & 0x7f80 != 0x7f80),
                "not finite"
            );
            bits.iter().map(|&bits| bits == 0).collect()
        }
        Solved::Int8 { levels, .. } | Solved::Int4 { levels, .. } => {
            levels.iter().map(|&level| level == 0).collect()
        }
    }
}

#[test]
fn threads_change_nothing() {
    // Several chunks of rows and blocks of columns; the larger one is refitted by iteration.
    for (n, k, tokens) in [(70, 300, 300), (130, 530, 700)] {
        let layer = Layer::new(n, k, tokens, 1);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            pool.install(|| {
                let moments = layer.moments(true);
                let mut found = Vec::new();
                for method in METHODS {
                    for (precision, reconstruct) in [
                        (Precision::Bf16, true),
                        (Precision::Int8, false),
                        (INT4, true),
                    ] {
                        let spec = LayerSpec {
                            precision,
                            reconstruct,
                            ..spec(method, HALF)
                        };
                        found.push(layer.solve(&moments, &spec));
                    }
                }
                (moments, found)
            })
        };
        let one = with(1);
        for threads in [2, 3] {
            assert!(one == with(threads), "{threads} threads");
        }
    }
}

#[test]
fn the_better_method_leaves_the_smaller_error() {
    for (seed, with_dense) in [(3, false), (4, true)] {
        let layer = Layer::new(32, 200, 600, seed);
        let moments = layer.moments(with_dense);
        let patterns = [0.3, 0.5, 0.7].map(Pattern::Unstructured);
        for pattern in patterns
            .into_iter()
            .chain([Pattern::NofM { keep: 2, of: 4 }])
        {
            let [magnitude, wanda, sparse_gpt] =
                METHODS.map(|method| layer.solve(&moments, &spec(method, pattern)).error);
            assert!(
                0.0 < sparse_gpt && sparse_gpt < wanda && wanda < magnitude,
                "{pattern:?}: {sparse_gpt} {wanda} {magnitude}"
            );
        }
    }
}

#[test]
fn reconstruction_never_raises_the_error() {
    for (seed, k, with_dense) in [(5, 96, false), (6, 96, true), (7, 530, true)] {
        let layer = Layer::new(20, k, 3 * k, seed);
        let moments = layer.moments(with_dense);
        for method in METHODS {
            for pattern in [
                Pattern::Unstructured(0.0),
                HALF,
                Pattern::NofM { keep: 4, of: 8 },
            ] {
                let plain = layer.solve(&moments, &spec(method, pattern));
                let refitted = layer.solve(
                    &moments,
                    &LayerSpec {
                        reconstruct: true,
                        ..spec(method, pattern)
                    },
                );
                assert!(
                    refitted.error <= plain.error,
                    "{method:?} {pattern:?}: {} {}",
                    refitted.error,
                    plain.error
                );
                if method != Method::SparseGpt && pattern == HALF {
                    assert!(
                        refitted.error < 0.9 * plain.error,
                        "{method:?}: {} {}",
                        refitted.error,
                        plain.error
                    );
                }
                // A kept weight may round to zero, but no pruned one comes back.
                let (before, after) = (zeros(&plain.rows), zeros(&refitted.rows));
                assert!(
                    before
                        .iter()
                        .zip(&after)
                        .all(|(before, after)| !before | after)
                );
            }
        }
    }
}

#[test]
fn groups_have_exactly_as_many_zeros_as_the_pattern_says() {
    // 250 is no multiple of any group.
    let layer = Layer::new(9, 250, 300, 8);
    let moments = layer.moments(false);
    for method in METHODS {
        for (keep, of) in [(2, 4), (4, 8), (8, 16)] {
            for (precision, reconstruct) in [
                (Precision::Bf16, false),
                (Precision::Bf16, true),
                (INT4, false),
                (INT4, true),
            ] {
                let spec = LayerSpec {
                    precision,
                    reconstruct,
                    ..spec(method, Pattern::NofM { keep, of })
                };
                let found = zeros(&layer.solve(&moments, &spec).rows);
                for row in found.chunks(layer.k) {
                    for group in row.chunks(of) {
                        let zeros = group.iter().filter(|&&zero| zero).count();
                        assert_eq!(zeros, group.len().saturating_sub(keep), "{spec:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn as_many_weights_are_zero_as_asked_for() {
    let layer = Layer::new(21, 150, 200, 9);
    let moments = layer.moments(false);
    for share in [0.0, 0.333, 0.5, 0.9] {
        let found = |method| {
            zeros(
                &layer
                    .solve(&moments, &spec(method, Pattern::Unstructured(share)))
                    .rows,
            )
        };
        let count = |part: &[bool]| part.iter().filter(|&&zero| zero).count();
        assert_eq!(count(&found(Method::Magnitude)), zeros_for(share, 21 * 150));
        for row in found(Method::Wanda).chunks(150) {
            assert_eq!(count(row), zeros_for(share, 150));
        }
        let sparse_gpt = found(Method::SparseGpt);
        let columns = |range: std::ops::Range<usize>| -> usize {
            sparse_gpt
                .chunks(150)
                .map(|row| count(&row[range.clone()]))
                .sum()
        };
        assert_eq!(columns(0..128), zeros_for(share, 21 * 128));
        assert_eq!(columns(128..150), zeros_for(share, 21 * 22));
    }
}

#[test]
fn zeros_that_are_there_stay_and_count() {
    let mut layer = Layer::new(16, 160, 300, 10);
    for (i, weight) in layer.weights.iter_mut().enumerate() {
        if i % 3 == 0 {
            *weight = if i % 2 == 0 { 0.0 } else { -0.0 };
        }
    }
    let moments = layer.moments(false);
    for method in METHODS {
        for (precision, reconstruct) in [
            (Precision::Bf16, true),
            (Precision::Int8, false),
            (INT4, false),
        ] {
            for share in [0.0, 0.5] {
                let spec = LayerSpec {
                    precision,
                    reconstruct,
                    ..spec(method, Pattern::Unstructured(share))
                };
                let found = zeros(&layer.solve(&moments, &spec).rows);
                assert!(found.iter().step_by(3).all(|&zero| zero), "{spec:?}");
                let count = found.iter().filter(|&&zero| zero).count();
                let wanted = zeros_for(share.max(1.0 / 3.0), found.len());
                // int8 makes zeros of small weights; rows and blocks round on their own.
                let more = if precision == Precision::Int8 { 80 } else { 16 };
                assert!(
                    (wanted..=wanted + more).contains(&count),
                    "{spec:?}: {count} of {wanted}"
                );
            }
        }
    }
}

#[test]
fn rounding_that_makes_up_for_errors_leaves_smaller_ones() {
    let layer = Layer::new(32, 200, 600, 11);
    let moments = layer.moments(false);
    for precision in [Precision::Int8, INT4] {
        for pattern in [Pattern::Unstructured(0.0), HALF] {
            for method in METHODS {
                let with = |rtn| {
                    layer.solve(
                        &moments,
                        &LayerSpec {
                            precision,
                            rtn,
                            ..spec(method, pattern)
                        },
                    )
                };
                let (nearest, compensated) = (with(true), with(false));
                // Beside pruning half of the weights int8 is almost nothing, and which weights are pruned is chance.
                let room = if precision == Precision::Int8 && pattern == HALF {
                    1.01
                } else {
                    1.0
                };
                assert!(
                    compensated.error < room * nearest.error,
                    "{precision} {method:?}: {} {}",
                    compensated.error,
                    nearest.error
                );
                let (Solved::Int8 { levels, .. } | Solved::Int4 { levels, .. }) = compensated.rows
                else {
                    panic!("not levels");
                };
                let (low, high) = if precision == INT4 {
                    (-8, 7)
                } else {
                    (-127, 127)
                };
                assert!(levels.iter().all(|level| (low..=high).contains(level)));
            }
        }
    }
}

#[test]
fn without_moments_weights_are_pruned_by_magnitude_and_rounded_to_nearest() {
    let layer = Layer::new(10, 70, 1, 12);
    let bf16: Vec<u16> = layer
        .weights
        .iter()
        .map(|&w| half::bf16::from_f32(w).to_bits())
        .collect();
    for scope in [Scope::Tensor, Scope::Row] {
        let mut wanted = bf16.clone();
        sparamx_compress::prune(&mut wanted, 70, 0.5, scope);
        let with = |precision| {
            let spec = LayerSpec {
                scope,
                precision,
                ..spec(Method::Magnitude, HALF)
            };
            solve(&layer.weights, 10, 70, None, &spec)
                .expect("no moments are needed")
                .rows
        };
        let int8 = sparamx_compress::quantize::int8(&wanted, 70);
        assert_eq!(
            with(Precision::Int8),
            Solved::Int8 {
                levels: int8.levels,
                scales: int8.scales
            }
        );
        let int4 = sparamx_compress::quantize::int4(
            &wanted,
            70,
            32,
            sparamx_compress::quantize::Int4::Sparse,
        );
        let (levels, scales) = (int4.levels, int4.scales);
        assert_eq!(
            with(INT4),
            Solved::Int4 {
                levels,
                scales,
                group: 32
            }
        );
        assert_eq!(with(Precision::Bf16), Solved::Bf16(wanted));
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let layer = Layer::new(4, 32, 40, 13);
    let without = |spec: LayerSpec| solve(&layer.weights, 4, 32, None, &spec).unwrap_err();
    for (spec, name) in [
        (spec(Method::Wanda, HALF), "Wanda"),
        (spec(Method::SparseGpt, HALF), "SparseGPT"),
        (
            LayerSpec {
                reconstruct: true,
                ..spec(Method::Magnitude, HALF)
            },
            "reconstruction",
        ),
    ] {
        let error = without(spec);
        assert!(
            matches!(error, CompressError::NeedsCalibration { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = without(spec(Method::Magnitude, Pattern::Unstructured(1.0)));
    assert!(matches!(error, CompressError::Sparsity { .. }), "{error}");
    let error = without(spec(Method::Magnitude, Pattern::NofM { keep: 3, of: 5 }));
    assert!(
        matches!(error, CompressError::Pattern { keep: 3, of: 5 }),
        "{error}"
    );
    let mut moments = layer.moments(false);
    let mut bad = vec![1.0; 32];
    bad[7] = f32::INFINITY;
    moments.add(&bad, None);
    let error = solve(
        &layer.weights,
        4,
        32,
        Some(&moments),
        &spec(Method::Wanda, HALF),
    )
    .unwrap_err();
    assert!(
        matches!(error, CompressError::Calibration { input: 7 }),
        "{error}"
    );
}

#[test]
fn dead_inputs_and_dead_layers_do_no_harm() {
    let mut layer = Layer::new(8, 40, 60, 14);
    for part in [1, 40] {
        // First every 40th input, then all.
        for (j, value) in layer.inputs.iter_mut().enumerate() {
            if j % 40 < part {
                *value = 0.0;
            }
        }
        let moments = layer.moments(false);
        for method in METHODS {
            for (precision, reconstruct) in [
                (Precision::Bf16, true),
                (Precision::Int8, false),
                (INT4, true),
            ] {
                let spec = LayerSpec {
                    precision,
                    reconstruct,
                    ..spec(method, HALF)
                };
                let found = layer.solve(&moments, &spec);
                assert!(found.error.is_finite());
                assert_eq!(found.error == 0.0, part == 40, "{spec:?}");
                let zeros = zeros(&found.rows);
                assert!(zeros.iter().filter(|&&zero| zero).count() >= zeros.len() / 2);
                if method == Method::SparseGpt {
                    assert!(
                        zeros
                            .chunks(40)
                            .all(|row| row[..part].iter().all(|&zero| zero))
                    );
                }
            }
        }
    }
}
