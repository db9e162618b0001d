//! Draft tokens from the text itself: what came after the same tokens before.

use std::collections::HashMap;

/// Longest run of tokens that is looked up.
pub(crate) const MAX_ORDER: usize = 3;

/// The text so far, by its runs of one to [`MAX_ORDER`] tokens.
///
/// A token costs one look-up a length, so that a draft costs the same in a long context.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookup {
    /// Where each run was seen last: the position after it.
    seen: HashMap<Run, u32>,
    /// For each length, where the run at the end of the text was seen before: the position after it.
    before: [Option<u32>; MAX_ORDER],
    len: usize,
}

/// A run of tokens, its length and its ids with zeros behind.
type Run = (u8, [u32; MAX_ORDER]);

/// Where draft tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Draft {
    /// Tokens of the run that was found again.
    pub order: usize,
    /// Position of the token after it.
    at: usize,
}

impl Lookup {
    /// Takes in the tokens of `ids` that were not there at the last call.
    pub fn extend(&mut self, ids: &[u32]) {
        for end in self.len + 1..=ids.len() {
            for order in 1..=MAX_ORDER {
                self.before[order - 1] = if end >= order {
                    self.seen.insert(run(&ids[end - order..end]), end as u32)
                } else {
                    None
                };
            }
        }
        self.len = ids.len();
    }

    /// The longest run at the end of the text that was there before.
    pub fn draft(&self) -> Option<Draft> {
        let found = |order: usize| {
            self.before[order - 1].map(|at| Draft {
                order,
                at: at as usize,
            })
        };
        (1..=MAX_ORDER).rev().find_map(found)
    }
}

impl Draft {
    /// The `index`th token that came after the run. A run that reaches into what follows it repeats for ever.
    pub fn token(&self, ids: &[u32], index: usize) -> u32 {
        ids[self.at + index % (ids.len() - self.at)]
    }
}

fn run(ids: &[u32]) -> Run {
    let mut key = [0; MAX_ORDER];
    key[..ids.len()].copy_from_slice(ids);
    (ids.len() as u8, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the longest run that ends the text and was there before, where it was last.
    fn naive(ids: &[u32]) -> Option<(usize, usize)> {
        let find = |order: usize| {
            let end = ids.len().checked_sub(order)?;
            (order..ids.len())
                .rev()
                .find(|&at| ids[at - order..at] == ids[end..])
                .map(|at| (order, at))
        };
        (1..=MAX_ORDER).rev().find_map(find)
    }

    #[test]
    fn what_follows_is_copied_and_repeats() {
        let ids = [7, 1, 2, 3, 4, 9, 1, 2, 3];
        let mut lookup = Lookup::default();
        lookup.extend(&ids);
        let draft = lookup.draft().unwrap();
        assert_eq!(draft.order, 3);
        let tokens: Vec<u32> = (0..7).map(|i| draft.token(&ids, i)).collect();
        assert_eq!(tokens, [4, 9, 1, 2, 3, 4, 9]);
        let mut one = Lookup::default();
        one.extend(&[5, 5]);
        assert_eq!(one.draft().unwrap().token(&[5, 5], 6), 5);
        assert_eq!(Lookup::default().draft(), None);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(ids in prop::collection::vec(0u32..4, 0..40), cuts in prop::collection::vec(0usize..40, 0..4)) {
            let mut lookup = Lookup::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(ids.len())).collect();
            cuts.sort_unstable();
            for cut in cuts.into_iter().chain([ids.len()]) {
                lookup.extend(&ids[..cut]);
                prop_assert_eq!(lookup.draft().map(|g| (g.order, g.at)), naive(&ids[..cut]));
            }
        }
    }
}
