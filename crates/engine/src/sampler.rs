//! The next token from a row of logits.
//!
//! Order, as in vLLM: biases, a [`LogitsProcessor`] if there is one, the three penalties (repetition, frequency, presence),
//! temperature, top-k, top-p (on the probabilities of those left by top-k, made to sum to one), min-p, draw. Each of the three
//! filters keeps the most probable tokens up to some rank, so all that matters of their order is which probabilities top-p adds
//! up.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::EngineError;

/// How to choose among the tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 takes the most probable token, the lowest id among equals; the filters below then have no say.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens. 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens until their probabilities sum to this; the one that gets there is kept, so 0 keeps
    /// one token. 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the highest probability. 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens in the prompt and the text so far are divided by this, negative ones multiplied. 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens in the text so far, prompt not included. -2 to 2; 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens in the text so far, prompt not included, as often as they occur. -2 to 2; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids before everything else. -100 to 100: what bans an id, and what forces it.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Same seed, same logits: same tokens, on every platform.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Temperature 0.8, top-p 0.95; no other filter, no penalty, no bias; seed 0.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::default(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// # Errors
    /// The first field outside its range, with the range.
    pub fn validate(&self) -> Result<(), EngineError> {
        let number = |name, value: f32, ok: bool, allowed: &str| {
            if ok {
                return Ok(());
            }
            Err(EngineError::parameter(name, value, allowed))
        };
        let t = self.temperature;
        let penalty = self.repetition_penalty;
        let unit = "0 to 1";
        number("temperature", t, t >= 0.0 && t.is_finite(), "0 or more")?;
        number("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), unit)?;
        number("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), unit)?;
        number(
            "repetition_penalty",
            penalty,
            penalty > 0.0 && penalty.is_finite(),
            "more than 0, and 1 for none",
        )?;
        for (name, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            number(name, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
        }
        for &(_, bias) in self.logit_bias.iter() {
            let fits = (-100.0..=100.0).contains(&bias);
            number("logit_bias", bias, fits, "-100 to 100")?;
        }
        Ok(())
    }
}

/// Changes the logits of a request before a token is chosen: masks and biases. Log probabilities are those without it.
pub trait LogitsProcessor: fmt::Debug + Send {
    /// Changes the logits of the next token, one for each id. Minus infinity forbids an id; NaN and plus infinity are errors.
    fn process(&mut self, logits: &mut [f32]);

    /// The token `id` was chosen.
    fn accept(&mut self, id: u32);

    /// Why no token can be chosen after [`Self::process`], if so: it ends the request.
    fn failure(&self) -> Option<EngineError> {
        None
    }
}

/// A token that may be drawn, with its logit after penalty (not yet divided by the temperature).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Candidate {
    /// Most probable first, lower id first among equals. Logits are never NaN here.
    fn rank(&self, other: &Self) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit);
        by_logit
            .unwrap_or(Ordering::Equal)
            .then(self.id.cmp(&other.id))
    }
}

/// Chooses tokens for one sequence: holds its random stream and the tokens it has seen.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    processor: Option<Box<dyn LogitsProcessor>>,
    /// Ids of the prompt and the text so far; kept only for the repetition penalty.
    seen: HashSet<u32>,
    /// How often each id is in the text so far; kept only for the penalties that count.
    counts: HashMap<u32, u32>,
    /// Logits after processor and penalty, kept to reuse the memory.
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a sequence that starts with `prompt`.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Result<Self, EngineError> {
        params.validate()?;
        let mut sampler = Self {
            params: params.clone(),
            rng: ChaCha8Rng::seed_from_u64(params.seed),
            processor: None,
            seen: HashSet::new(),
            counts: HashMap::new(),
            logits: Vec::new(),
            candidates: Vec::new(),
        };
        for &id in prompt {
            sampler.see(id);
        }
        Ok(sampler)
    }

    /// The same with a processor of logits.
    pub fn with_processor(mut self, processor: Option<Box<dyn LogitsProcessor>>) -> Self {
        self.processor = processor;
        self
    }

    /// Chooses a token from the logits of all ids and counts it as seen.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity, before or after the processor; all of them minus infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        self.sample_except(logits, &[])
    }

    /// The same without the ids of `banned`, unless they are all that the processor leaves.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_except(&mut self, logits: &[f32], banned: &[u32]) -> Result<u32, EngineError> {
        check_logits(logits)?;
        let mut penalized = std::mem::take(&mut self.logits);
        penalized.clear();
        penalized.extend_from_slice(logits);
        for &(id, bias) in self.params.logit_bias.iter() {
            if let Some(logit) = penalized.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if let Some(processor) = &mut self.processor {
            processor.process(&mut penalized);
            if let Some(error) = processor.failure() {
                return Err(error);
            }
            check_logits(&penalized)?;
        }
        ban(&mut penalized, banned);
        self.penalize(&mut penalized);
        let best = argmax(&penalized).ok_or(EngineError::NoToken)?;
        let id = if self.params.temperature == 0.0 {
            best.id
        } else {
            self.draw(&penalized, best.logit)
        };
        self.logits = penalized;
        if let Some(processor) = &mut self.processor {
            processor.accept(id);
        }
        self.accept(id);
        Ok(id)
    }

    /// Counts a token of the text.
    fn accept(&mut self, id: u32) {
        self.see(id);
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    /// Remembers a token of prompt or text.
    fn see(&mut self, id: u32) {
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.params.repetition_penalty;
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize)
                && logit.is_finite()
            {
                let penalized = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
                // However extreme the penalty, what was possible stays so, and probabilities follow from the row.
                *logit = penalized.clamp(f32::MIN, f32::MAX);
            }
        }
        let (presence, frequency) = (self.params.presence_penalty, self.params.frequency_penalty);
        for (&id, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize)
                && logit.is_finite()
            {
                let penalized = *logit - frequency * count as f32 - presence;
                *logit = penalized.clamp(f32::MIN, f32::MAX);
            }
        }
    }

    fn draw(&mut self, logits: &[f32], max: f32) -> u32 {
        let temperature = f64::from(self.params.temperature);
        // Probability, but for the factor that makes all of them sum to one. The best token has 1.
        let weight = |c: &Candidate| (f64::from(c.logit - max) / temperature).exp();
        let candidates = &mut self.candidates;
        keep_top_k(logits, self.params.top_k, candidates);
        if self.params.top_p < 1.0 {
            let len = sort_top_p(candidates, f64::from(self.params.top_p), weight);
            candidates.truncate(len);
        }
        if self.params.min_p > 0.0 {
            let min_p = f64::from(self.params.min_p);
            candidates.retain(|c| weight(c) >= min_p);
        }
        // 53 random bits, the precision of an f64, in 0.0 .. 1.0.
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * candidates.iter().map(weight).sum::<f64>();
        let mut chosen = None;
        for candidate in candidates.iter() {
            let weight = weight(candidate);
            if weight > 0.0 {
                chosen = Some(candidate.id);
            }
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        // Where rounding leaves a little over at the end, it is the last token with any weight. The best one has some.
        chosen.expect("the best token passes every filter")
    }
}

/// Forbids ids, unless nothing else is possible.
fn ban(logits: &mut [f32], banned: &[u32]) {
    let mut before = Vec::with_capacity(banned.len());
    for &id in banned {
        if let Some(logit) = logits.get_mut(id as usize) {
            before.push((id, std::mem::replace(logit, f32::NEG_INFINITY)));
        }
    }
    if !before.is_empty() && logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        // Backwards: an id may be there twice.
        for (id, logit) in before.into_iter().rev() {
            logits[id as usize] = logit;
        }
    }
}

/// The `count` most probable tokens of a row without NaN, best first, the lower id first among equals.
pub(crate) fn best(logits: &[f32], count: usize) -> impl Iterator<Item = u32> {
    let mut kept = Vec::new();
    if count > 0 {
        keep_top_k(logits, count, &mut kept);
    }
    kept.into_iter().map(|candidate| candidate.id)
}

/// Refuses a row that no probabilities follow from: with NaN or plus infinity in it.
pub(crate) fn check_logits(logits: &[f32]) -> Result<(), EngineError> {
    let bad = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    match logits.iter().position(bad) {
        Some(id) => Err(EngineError::Logit {
            id,
            value: logits[id],
        }),
        None => Ok(()),
    }
}

/// The token with the highest logit, the lowest id among equals; none when all are minus infinity.
fn argmax(logits: &[f32]) -> Option<Candidate> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if highest == f32::NEG_INFINITY {
        return None;
    }
    let id = logits.iter().position(|&x| x == highest)?;
    Some(Candidate {
        id: id as u32,
        logit: highest,
    })
}

/// Fills `kept` with the `top_k` most probable tokens, by rank; with all that are possible, by id, when `top_k` is 0.
///
/// One pass: tokens above the lowest that is certain to be kept are collected, and thinned out when they become many. In a
/// vocabulary of 128k few get past the first comparison.
fn keep_top_k(logits: &[f32], top_k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let thin_out = |kept: &mut Vec<Candidate>| {
        if top_k > 0 && kept.len() > top_k {
            kept.select_nth_unstable_by(top_k - 1, Candidate::rank);
            kept.truncate(top_k);
        }
    };
    let full = match top_k {
        0 => usize::MAX,
        k => k.saturating_mul(2).max(256),
    };
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // An equal one comes later and ranks lower.
        if logit > floor {
            kept.push(Candidate {
                id: id as u32,
                logit,
            });
            if kept.len() == full {
                thin_out(kept);
                floor = kept[top_k - 1].logit;
            }
        }
    }
    thin_out(kept);
    if top_k > 0 {
        kept.sort_unstable_by(Candidate::rank);
    }
}

/// Brings the most probable candidates to the front, by rank, and returns how many of them have `top_p` of the weight.
///
/// Sorts only as far as needed: 256 candidates, then eight times as many, and so on.
fn sort_top_p(
    candidates: &mut [Candidate],
    top_p: f64,
    weight: impl Fn(&Candidate) -> f64,
) -> usize {
    let target = top_p * candidates.iter().map(&weight).sum::<f64>();
    let (mut sum, mut sorted, mut take) = (0.0, 0, 256);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        if take < rest.len() {
            rest.select_nth_unstable_by(take, Candidate::rank);
        }
        take = take.min(rest.len());
        rest[..take].sort_unstable_by(Candidate::rank);
        for candidate in &rest[..take] {
            sum += weight(candidate);
            sorted += 1;
            if sum >= target {
                return sorted;
            }
        }
        take *= 8;
    }
    candidates.len()
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
