//! The grammar of one text as it grows.

use std::fmt;

use llguidance::Matcher;

use super::clean;
use super::clock::{Clock, MOST_SECONDS};
use crate::{EngineError, LogitsProcessor};

/// Ids in a word of a mask.
const WORD: usize = u32::BITS as usize;

/// Forbids the tokens that a grammar does not allow next.
pub(super) struct Masking {
    matcher: Matcher,
    clock: Clock,
    error: Option<String>,
}

impl Masking {
    pub fn new(matcher: Matcher) -> Self {
        let matcher = matcher.into_cancellable();
        Self {
            clock: Clock::new(matcher.cancellation_handle().unwrap_or_default()),
            matcher,
            error: None,
        }
    }

    fn fails(&mut self, error: &str) {
        self.error = Some(match self.clock.is_over() {
            true => format!("a token takes more than {MOST_SECONDS} s"),
            false => clean(error),
        });
    }
}

impl fmt::Debug for Masking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masking")
            .field("stop_reason", &self.matcher.stop_reason())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl LogitsProcessor for Masking {
    fn process(&mut self, logits: &mut [f32]) {
        let matcher = &mut self.matcher;
        match self.clock.within(|| matcher.compute_mask_or_eos()) {
            Ok(mask) => forbid_others(logits, mask.as_slice()),
            Err(error) => self.fails(&error.to_string()),
        }
    }

    fn accept(&mut self, id: u32) {
        if self.error.is_some() || self.matcher.is_stopped() {
            return;
        }
        let matcher = &mut self.matcher;
        if let Err(error) = self.clock.within(|| matcher.consume_token(id)) {
            self.fails(&error.to_string());
        }
    }

    fn failure(&self) -> Option<EngineError> {
        let error = self.error.as_ref()?;
        Some(EngineError::Grammar {
            error: format!("no token is possible any more: {error}"),
        })
    }
}

/// Sets the logits of ids without a bit to minus infinity.
fn forbid_others(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(WORD).zip(words) {
        if word == 0 {
            logits.fill(f32::NEG_INFINITY);
        } else if word != u32::MAX {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llguidance::ParserFactory;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};

    use super::*;

    #[test]
    fn a_matcher_whose_time_is_over_ends_its_text_only() {
        let tokens = ApproximateTokEnv::single_byte_env();
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).unwrap();
        let grammar = TopLevelGrammar::from_lark("start: /[a-z]+/".to_owned());
        let matcher = Matcher::new(factory.create_parser(grammar));
        let [mut late, mut other] = [(); 2].map(|()| Masking::new(matcher.deep_clone()));
        let cancel = late.matcher.cancellation_handle().unwrap();
        for masking in [&mut late, &mut other] {
            masking.process(&mut [0.0; 300]);
            masking.accept(u32::from(b'a'));
            assert!(masking.failure().is_none());
        }
        cancel.cancel();
        late.process(&mut [0.0; 300]);
        let failure = late.failure().expect("its time is over").to_string();
        assert!(failure.contains("more than 1 s"), "{failure}");
        other.process(&mut [0.0; 300]);
        assert!(other.failure().is_none());
    }

    #[test]
    fn logits_beyond_the_mask_are_forbidden() {
        let mut logits = vec![1.0; 100];
        forbid_others(&mut logits, &[u32::MAX, 0b101, 0]);
        let allowed: Vec<usize> = (0..100).filter(|&id| logits[id] == 1.0).collect();
        let want: Vec<usize> = (0..33).chain([34]).collect();
        assert_eq!(allowed, want);
    }
}
