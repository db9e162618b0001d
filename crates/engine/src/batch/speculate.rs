//! How many draft tokens are worth their time.
//!
//! A draft token at depth `i` brings a token more with probability `p^i`, where `p` is the share of drafts of its kind that were
//! accepted. What a row more costs is measured: the median time of steps by their rows. As many draft tokens are taken, most
//! probable first, as give the most tokens a second. Neither figure changes which tokens come out.

use std::collections::{BTreeMap, VecDeque};

use super::lookup::MAX_ORDER;

/// Draft tokens for one sequence in one step, at most.
pub(crate) const MAX_DRAFT: usize = 8;
/// What all draft tokens of a step together must gain: measurements are no better than that.
const MIN_GAIN: f64 = 1.05;
/// Draft tokens that are less probable are not considered.
const MIN_PROBABILITY: f64 = 0.02;
/// Weight of the latest draft in the share of accepted ones: the last twenty or so count.
const NEWEST: f64 = 0.1;

/// How often draft tokens of a request are accepted, by the length of the run they come from.
///
/// Drafts that do not go through the model are observed as well, so that a text that turns repetitive is noticed.
#[derive(Debug, Clone)]
pub(crate) struct Acceptance([f64; MAX_ORDER]);

impl Default for Acceptance {
    /// Before anything is known: long runs are right more often.
    fn default() -> Self {
        Self([0.2, 0.4, 0.6])
    }
}

impl Acceptance {
    /// A draft token from a run of `order` tokens was accepted or not.
    pub fn observe(&mut self, order: usize, accepted: bool) {
        let share = &mut self.0[order - 1];
        *share += NEWEST * (f64::from(u8::from(accepted)) - *share);
    }

    /// How probably such a draft token is accepted.
    pub fn share(&self, order: usize) -> f64 {
        self.0[order - 1]
    }
}

/// Time of a step by its rows, for steps that only decode.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepCost {
    times: BTreeMap<usize, Times>,
    steps: u64,
}

#[derive(Debug, Clone, Default)]
struct Times {
    /// The latest few, in seconds: their median ignores a step that was interrupted.
    latest: VecDeque<f64>,
    median: f64,
    /// When the last came.
    step: u64,
}

impl StepCost {
    const KEPT: usize = 5;
    /// Steps after which a time is forgotten: contexts have grown since.
    const MAX_AGE: u64 = 256;

    /// A step of `rows` rows took so many seconds.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        self.steps += 1;
        let oldest = self.steps.saturating_sub(Self::MAX_AGE);
        self.times.retain(|_, times| times.step >= oldest);
        let times = self.times.entry(class(rows)).or_default();
        times.step = self.steps;
        if times.latest.len() == Self::KEPT {
            times.latest.pop_front();
        }
        times.latest.push_back(seconds);
        let mut sorted: Vec<f64> = times.latest.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // Of two the longer: what was fast once has to be so again.
        times.median = sorted[sorted.len() / 2];
    }

    /// What is known now.
    pub fn curve(&self) -> Curve {
        let mut least: f64 = 0.0;
        let point = |(&rows, times): (&usize, &Times)| {
            least = least.max(times.median);
            (rows, least)
        };
        Curve(self.times.iter().map(point).collect())
    }
}

/// Rows and the seconds of a step with so many, both rising: more rows that took less time were measured wrong.
#[derive(Debug, Clone)]
pub(crate) struct Curve(Vec<(usize, f64)>);

impl Curve {
    /// Seconds that a step of `rows` rows takes, by the nearest ones measured; none if there is nothing to go by.
    ///
    /// A little more than the most rows measured is taken to cost no more, so that it is tried; twice as many are not.
    pub fn estimate(&self, rows: usize) -> Option<f64> {
        let rows = class(rows);
        let above = self.0.partition_point(|&(known, _)| known <= rows);
        let &(r0, t0) = self.0[..above].last()?;
        match self.0.get(above) {
            _ if r0 == rows => Some(t0),
            Some(&(r1, t1)) => Some(t0 + (t1 - t0) * (rows - r0) as f64 / (r1 - r0) as f64),
            None => (rows <= (2 * r0).max(r0 + MAX_DRAFT)).then_some(t0),
        }
    }
}

/// Rows whose times are taken together: each number of them up to 16, then eight classes a doubling.
fn class(rows: usize) -> usize {
    match rows.checked_ilog2() {
        Some(log) if log >= 4 => rows.next_multiple_of(1 << (log - 3)),
        _ => rows,
    }
}

/// A sequence that could take draft tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Offer {
    /// How probably a draft token is accepted.
    pub share: f64,
    /// Most draft tokens there can be.
    pub most: usize,
}

/// How many draft tokens to take of each offer in a step that has `rows` rows without any.
pub(crate) fn choose(rows: usize, offers: &[Offer], cost: &StepCost) -> Vec<usize> {
    let mut taken = vec![0; offers.len()];
    let curve = cost.curve();
    let Some(plain) = curve.estimate(rows) else {
        return taken;
    };
    let mut drafts: Vec<(f64, usize)> = Vec::new();
    for (index, offer) in offers.iter().enumerate() {
        let depths = 1..=offer.most.min(MAX_DRAFT);
        let probabilities = depths.map(|depth| offer.share.powi(depth as i32));
        let likely = probabilities.take_while(|&probability| probability >= MIN_PROBABILITY);
        drafts.extend(likely.map(|probability| (probability, index)));
    }
    // A stable sort: deeper draft tokens of one offer, never more probable, stay behind shallower ones.
    drafts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut expected, mut best) = (rows as f64, (rows as f64 / plain * MIN_GAIN, 0));
    for (index, &(probability, _)) in drafts.iter().enumerate() {
        let Some(seconds) = curve.estimate(rows + index + 1) else {
            break;
        };
        expected += probability;
        if expected / seconds > best.0 {
            best = (expected / seconds, index + 1);
        }
    }
    for &(_, index) in &drafts[..best.1] {
        taken[index] += 1;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(times: &[(usize, f64)]) -> StepCost {
        let mut cost = StepCost::default();
        for &(rows, seconds) in times {
            cost.observe(rows, seconds);
        }
        cost
    }

    fn offer(share: f64) -> Offer {
        Offer {
            share,
            most: MAX_DRAFT,
        }
    }

    #[test]
    fn free_rows_are_all_taken_and_dear_ones_none() {
        let flat = cost(&[(1, 1.0), (9, 1.0)]);
        assert_eq!(choose(1, &[offer(0.8)], &flat), [8]);
        assert_eq!(choose(1, &[offer(0.5)], &flat), [5], "1 of 64 is too few");
        let dear = cost(&[(1, 1.0), (9, 9.0)]);
        assert_eq!(choose(1, &[offer(0.9)], &dear), [0]);
        // Half of the first drafts are accepted, and each costs a fifth of a step: 1.5 / 1.2, then 1.75 / 1.4, which is no more.
        let some = cost(&[(1, 1.0), (6, 2.0)]);
        assert_eq!(choose(1, &[offer(0.5)], &some), [1]);
        assert_eq!(choose(1, &[offer(0.0)], &flat), [0]);
        let few = Offer {
            share: 1.0,
            most: 2,
        };
        assert_eq!(choose(1, &[few], &flat), [2]);
    }

    #[test]
    fn the_most_probable_drafts_of_a_batch_come_first() {
        let steep = cost(&[(2, 1.0), (4, 1.0), (5, 50.0), (18, 50.0)]);
        assert_eq!(choose(2, &[offer(0.9), offer(0.5)], &steep), [2, 0]);
        assert_eq!(choose(2, &[offer(0.9), offer(0.85)], &steep), [1, 1]);
    }

    #[test]
    fn nothing_is_tried_before_plain_steps_are_known_and_then_not_everything_at_once() {
        assert_eq!(choose(1, &[offer(1.0)], &StepCost::default()), [0]);
        let plain = cost(&[(4, 1.0)]);
        let taken = choose(4, &[offer(1.0); 4], &plain);
        assert_eq!(taken.iter().sum::<usize>(), 8);
    }

    #[test]
    fn interrupted_steps_and_old_ones_do_not_count() {
        let mut cost = cost(&[(1, 1.0), (1, 1.1), (1, 90.0), (1, 0.9), (1, 1.0)]);
        assert_eq!(cost.curve().estimate(1), Some(1.0));
        for _ in 0..=StepCost::MAX_AGE {
            cost.observe(8, 2.0);
        }
        let curve = cost.curve();
        assert_eq!((curve.estimate(1), curve.estimate(8)), (None, Some(2.0)));
        assert!(cost.times.len() < 3);
    }

    #[test]
    fn rows_between_are_interpolated_and_more_rows_never_cost_less() {
        let curve = cost(&[(1, 1.0), (5, 3.0)]).curve();
        assert_eq!(curve.estimate(2), Some(1.5));
        assert_eq!(curve.estimate(13), Some(3.0));
        assert_eq!(curve.estimate(14), None);
        assert_eq!(curve.estimate(0), None);
        let lucky = cost(&[(4, 2.0), (8, 1.0), (12, 4.0)]).curve();
        assert_eq!(
            (lucky.estimate(8), lucky.estimate(10)),
            (Some(2.0), Some(3.0))
        );
        assert_eq!(
            (class(16), class(17), class(33), class(64)),
            (16, 18, 36, 64)
        );
    }

    #[test]
    fn acceptance_follows_what_happens() {
        let mut acceptance = Acceptance::default();
        for _ in 0..60 {
            acceptance.observe(1, true);
            acceptance.observe(3, false);
        }
        assert!(acceptance.share(1) > 0.99 && acceptance.share(3) < 0.01);
    }
}
