//! Which elements of a full page stay.

use std::fmt;

use sparamx_format::LINE_ELEMS_BF16;

use super::{PAGE_TOKENS, PageShape};

/// By what the elements of a page that stay are chosen. Of equals the first in the order of the page's lines stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PruneRule {
    /// The largest of a page.
    Magnitude,
    /// The largest of each token, the same number of every one.
    Token,
    /// Of keys those that move scores most, the largest of a page after multiplication by the magnitude of the queries in
    /// their dimension; of values the largest of a page.
    Query,
}

impl PruneRule {
    /// All rules.
    pub const ALL: [PruneRule; 3] = [PruneRule::Magnitude, PruneRule::Token, PruneRule::Query];
}

impl fmt::Display for PruneRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PruneRule::Magnitude => "magnitude",
            PruneRule::Token => "token",
            PruneRule::Query => "query",
        })
    }
}

/// Adds the magnitudes of `x` to `sums`: what [`PruneRule::Query`] wants to know of queries.
///
/// # Panics
/// If the lengths differ.
pub fn add_magnitudes(sums: &mut [f32], x: &[f32]) {
    assert_eq!(sums.len(), x.len(), "sums and elements");
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum += x.abs();
    }
}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Key,
    Value,
}

/// A full dense page.
#[derive(Clone, Copy)]
pub(super) struct DensePage<'a> {
    pub side: Side,
    pub shape: PageShape,
    pub lines: &'a [u16],
}

impl DensePage<'_> {
    /// Strips of the page, and lines of a strip.
    pub fn strips_and_lines(&self) -> (usize, usize) {
        match self.side {
            Side::Key => (PAGE_TOKENS / 16, self.shape.key_k() / 2),
            Side::Value => (self.shape.value_n() / 16, PAGE_TOKENS / 2),
        }
    }

    /// The elements of a line of strip `s` that are no padding: bit `2 j + p` is row `j`, column `2 l + p`.
    pub fn inside(&self, s: usize, l: usize) -> u32 {
        let dims =
            |before: usize, most: usize| self.shape.head_dim.saturating_sub(before).min(most);
        match self.side {
            Side::Key => [0, 0x5555_5555, u32::MAX][dims(2 * l, 2)],
            Side::Value => match dims(16 * s, 16) {
                16 => u32::MAX,
                rows => (1 << (2 * rows)) - 1,
            },
        }
    }

    /// How much each element matters, the more the larger; -1 for padding. With `query`, the magnitudes of the queries for each
    /// dimension of a key.
    #[inline(always)]
    fn importance(&self, query: Option<&[f32]>) -> Vec<i16> {
        let (_, lines) = self.strips_and_lines();
        let mut importance = vec![0; self.lines.len()];
        let outs = importance.chunks_exact_mut(LINE_ELEMS_BF16);
        for (index, (line, out)) in self
            .lines
            .chunks_exact(LINE_ELEMS_BF16)
            .zip(outs)
            .enumerate()
        {
            let (s, l) = (index / lines, index % lines);
            match query {
                None => {
                    for (out, bits) in out.iter_mut().zip(line) {
                        *out = (bits & 0x7fff) as i16;
                    }
                }
                Some(query) => {
                    let factor = |dim: usize| query.get(dim).map_or(0.0, |q| q.abs());
                    let factors = [factor(2 * l), factor(2 * l + 1)];
                    for (out, bits) in out.chunks_exact_mut(2).zip(line.chunks_exact(2)) {
                        for p in 0..2 {
                            let key = f32::from_bits(u32::from(bits[p] & 0x7fff) << 16);
                            out[p] = ((key * factors[p]).to_bits() >> 16 & 0x7fff) as i16;
                        }
                    }
                }
            }
            let inside = self.inside(s, l);
            if inside != u32::MAX {
                for (e, out) in out.iter_mut().enumerate() {
                    if inside >> e & 1 == 0 {
                        *out = -1;
                    }
                }
            }
        }
        importance
    }

    /// Writes for each line the mask of the elements that stay, `dims` a token on average, to `masks`; those of a strip begin
    /// `mask_lines` after those of the strip before.
    #[inline(always)]
    pub fn select(
        &self,
        rule: PruneRule,
        query: &[f32],
        dims: usize,
        masks: &mut [u32],
        mask_lines: usize,
    ) {
        let (strips, lines) = self.strips_and_lines();
        let by_query = rule == PruneRule::Query && self.side == Side::Key;
        let importance = self.importance(by_query.then_some(query));
        let mut choice = Choice {
            importance: &importance,
            lines,
            masks,
            mask_lines,
        };
        let all = Group {
            first: 0,
            step: 1,
            count: strips * lines,
        };
        match (rule, self.side) {
            (PruneRule::Magnitude | PruneRule::Query, _) => {
                choice.choose(all, PAGE_TOKENS * dims, |_| 0);
            }
            (PruneRule::Token, Side::Key) => {
                for s in 0..strips {
                    let strip = Group {
                        first: s * lines,
                        step: 1,
                        count: lines,
                    };
                    choice.choose(strip, dims, |e| e / 2);
                }
            }
            (PruneRule::Token, Side::Value) => {
                for l in 0..lines {
                    let pair = Group {
                        first: l,
                        step: lines,
                        count: strips,
                    };
                    choice.choose(pair, dims, |e| e % 2);
                }
            }
        }
    }
}

/// Lines of a page among whose elements is chosen.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    step: usize,
    count: usize,
}

struct Choice<'a> {
    importance: &'a [i16],
    /// Lines of a strip.
    lines: usize,
    masks: &'a mut [u32],
    mask_lines: usize,
}

/// A number for each element of a line.
type Lanes = [i16; LINE_ELEMS_BF16];

impl Choice<'_> {
    fn line(&self, index: usize) -> &Lanes {
        let (lines, _) = self.importance.as_chunks();
        &lines[index]
    }

    /// For each of the classes that `class` puts the elements of a line into, how many are at least as important as the class's
    /// `least`.
    #[inline(always)]
    fn count(
        &self,
        group: Group,
        least: &Lanes,
        class: impl Fn(usize) -> usize,
    ) -> [i32; LINE_ELEMS_BF16] {
        let mut counts: Lanes = [0; LINE_ELEMS_BF16];
        for i in 0..group.count {
            let line = self.line(group.first + i * group.step);
            for e in 0..LINE_ELEMS_BF16 {
                counts[e] += i16::from(line[e] >= least[e]);
            }
        }
        let mut sums = [0; LINE_ELEMS_BF16];
        for e in 0..LINE_ELEMS_BF16 {
            sums[class(e)] += i32::from(counts[e]);
        }
        std::array::from_fn(|e| sums[class(e)])
    }

    /// Keeps the `keep` most important of each class of a group. What is just important enough is found bit by bit, for all
    /// classes at once and without a branch that depends on the data.
    #[inline(always)]
    fn choose(&mut self, group: Group, keep: usize, class: impl Fn(usize) -> usize + Copy) {
        let keep = keep as i32;
        let mut least: Lanes = [0; LINE_ELEMS_BF16];
        for bit in (0..15).rev() {
            let higher = least.map(|least| least | 1 << bit);
            let counts = self.count(group, &higher, class);
            for e in 0..LINE_ELEMS_BF16 {
                least[e] = if counts[e] >= keep {
                    higher[e]
                } else {
                    least[e]
                };
            }
        }
        let above = least.map(|least| least.saturating_add(1));
        let more = self.count(group, &above, class);
        // Of each class, how many of those that are just important enough stay. (Nothing is above the largest number.)
        let mut equals = [0; LINE_ELEMS_BF16];
        for e in 0..LINE_ELEMS_BF16 {
            let more = if least[e] == i16::MAX { 0 } else { more[e] };
            equals[class(e)] = keep - more;
        }
        for i in 0..group.count {
            let index = group.first + i * group.step;
            let line = self.line(index);
            let (mut mask, mut equal) = (0u32, 0u32);
            for e in 0..LINE_ELEMS_BF16 {
                mask |= u32::from(line[e] > least[e]) << e;
                equal |= u32::from(line[e] == least[e]) << e;
            }
            while equal != 0 {
                let e = equal.trailing_zeros() as usize;
                let left = &mut equals[class(e)];
                if *left > 0 {
                    *left -= 1;
                    mask |= 1 << e;
                }
                equal &= equal - 1;
            }
            let (s, l) = (index / self.lines, index % self.lines);
            self.masks[s * self.mask_lines + l] = mask;
        }
    }
}
