//! How many tokens of prompts a step takes beside those that decode, so that a text comes at an even pace while prompts arrive.
//!
//! What a row of a prompt costs is measured: what a step took longer than one that only decodes, by its rows. As many are taken
//! as make a step about [`SLOWEST`] times as long as one without. How a prompt is cut changes nothing about what comes out.

use std::collections::VecDeque;

/// A step with prompts takes about so many times as long as one without. Hardly any is to take more than three times as long, and
/// times vary.
const SLOWEST: f64 = 2.0;
/// Tokens that a step takes in any case, so that prompts get on: what a kernel multiplies in about the time of one.
const LEAST: usize = 8;
/// Measurements that count: their median ignores a step that was interrupted.
const KEPT: usize = 3;

/// What is known about it.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Seconds of the latest step that only decoded.
    plain: Option<f64>,
    /// Seconds of a row of a prompt, in the latest steps with some.
    rows: VecDeque<f64>,
    /// Tokens of prompts that a step takes.
    most: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            plain: None,
            rows: VecDeque::new(),
            most: LEAST,
        }
    }
}

impl Pace {
    /// Tokens of prompts that a step takes beside those that decode. No bound before there was a step that only decodes.
    pub fn tokens(&self) -> usize {
        match self.plain {
            Some(_) => self.most,
            None => usize::MAX,
        }
    }

    /// A step that only decoded took so many seconds.
    pub fn decoded(&mut self, seconds: f64) {
        self.plain = Some(seconds);
    }

    /// A step with so many rows of prompts beside those that decoded took so many seconds. `plain` is what it would have taken
    /// without, if that is known better than by the latest of those.
    pub fn mixed(&mut self, rows: usize, seconds: f64, plain: Option<f64>) {
        let Some(plain) = plain.or(self.plain) else {
            return;
        };
        if 2 * rows < self.most {
            // The last rows of a prompt say little about many.
            return;
        }
        if self.rows.len() == KEPT {
            self.rows.pop_front();
        }
        self.rows
            .push_back((seconds - plain).max(0.0) / rows as f64);
        let mut sorted: Vec<f64> = self.rows.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let rows = rows as f64;
        // Infinite where rows cost nothing.
        let affordable = (SLOWEST - 1.0) * plain / sorted[sorted.len() / 2];
        // Half of the way there, and twice as many as were measured at most: more rows may cost more each.
        let tokens = (affordable.min(4.0 * rows) * rows).sqrt() as usize;
        // Whole tiles.
        self.most = match tokens {
            0..LEAST => LEAST,
            LEAST..32 => tokens,
            _ => tokens / 16 * 16,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs steps beside those that decode in `plain` seconds, on a machine where so many rows more take `cost(rows)` seconds.
    /// The rows of the last.
    fn settle(plain: f64, cost: impl Fn(usize) -> f64) -> usize {
        let mut pace = Pace::default();
        assert_eq!(pace.tokens(), usize::MAX);
        pace.decoded(plain);
        let mut rows = 0;
        for _ in 0..40 {
            rows = pace.tokens().min(512);
            pace.mixed(rows, plain + cost(rows), None);
        }
        rows
    }

    #[test]
    fn a_step_becomes_about_twice_as_long() {
        let even = settle(0.1, |rows| rows as f64 * 1e-3);
        assert!((80..=100).contains(&even), "{even}");
        assert_eq!(settle(0.1, |rows| rows as f64 * 1e-4), 512);
        assert_eq!(settle(0.1, |_| 0.0), 512);
        // Rows that cost nothing until there are 40 of them, as where weights are read anyway.
        let bound = settle(0.1, |rows| rows.saturating_sub(40) as f64 * 2e-3);
        assert!((80..=96).contains(&bound), "{bound}");
    }

    #[test]
    fn prompts_get_on_however_slow_they_are() {
        assert_eq!(settle(0.001, |rows| rows as f64), LEAST);
    }

    #[test]
    fn a_step_that_was_interrupted_and_the_end_of_a_prompt_change_nothing() {
        let mut pace = Pace::default();
        pace.decoded(0.1);
        for seconds in [0.148, 0.148, 9.0, 0.148] {
            pace.mixed(48, seconds, None);
        }
        let tokens = pace.tokens();
        assert!((48..=80).contains(&tokens), "{tokens}");
        pace.mixed(3, 5.0, None);
        assert_eq!(pace.tokens(), tokens);
        // A better estimate of the step without prompts goes before the latest one.
        for _ in 0..3 {
            pace.mixed(48, 0.148, Some(0.14));
        }
        assert!(pace.tokens() > tokens, "{}", pace.tokens());
    }
}
