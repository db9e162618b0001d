//! Bounds of the histograms. They are vLLM's, bound by bound, so that its dashboards and alerts work as they are.

/// Time to the first token, seconds.
pub const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

/// Time between two tokens, seconds.
pub const BETWEEN_TOKENS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];

/// Time of a request, or of a part of it, seconds.
pub const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// Tokens of a step.
pub const STEP_TOKENS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];

/// Texts that a request asks for.
pub const CHOICES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// Times that a request was preempted.
pub const PREEMPTIONS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Tokens of a request: 1, 2, 5, 10, 20, 50, … up to the context.
pub fn tokens(context: usize) -> Vec<f64> {
    let powers = std::iter::successors(Some(1_u64), |power| power.checked_mul(10));
    let bounds = powers.flat_map(|power| [power, 2 * power, 5 * power]);
    bounds
        .take_while(|&bound| bound <= context as u64)
        .map(|bound| bound as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_up_to_the_context() {
        assert_eq!(tokens(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(tokens(99).last(), Some(&50.0));
        assert_eq!(tokens(131_072).last(), Some(&100_000.0));
    }

    #[test]
    fn bounds_rise() {
        for bounds in [
            &FIRST_TOKEN[..],
            &BETWEEN_TOKENS,
            &REQUEST,
            &STEP_TOKENS,
            &CHOICES,
            &PREEMPTIONS,
        ] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
