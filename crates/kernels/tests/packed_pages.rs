//! What stays of a page that is packed, against a selection by sorting.

mod common;

use std::collections::HashSet;

use common::cpus;
use half::bf16;
use sparamx_cpu::{Cpu, Isa};
use sparamx_kernels::attention::{
    PAGE_TOKENS, PackedPages, Packing, Page, PageDtype, PageShape, PruneRule, add_magnitudes,
    read_key, read_value, write_key, write_value,
};
use sparamx_testkit::{Random, activations};

/// Keys or values of a page, `[64, head_dim]`.
struct Rows {
    head_dim: usize,
    rows: Vec<f32>,
    is_key: bool,
}

impl Rows {
    /// With few different magnitudes many are equal.
    fn new(head_dim: usize, is_key: bool, magnitudes: usize, random: &mut Random) -> Self {
        let number = |random: &mut Random| {
            let sign = [-1.0, 1.0][random.below(2)];
            sign * bf16::from_f32((1 + random.below(magnitudes)) as f32 * 0.37).to_f32()
        };
        Self {
            head_dim,
            rows: (0..PAGE_TOKENS * head_dim)
                .map(|_| number(random))
                .collect(),
            is_key,
        }
    }

    fn page(&self) -> Vec<u16> {
        let shape = PageShape {
            head_dim: self.head_dim,
        };
        let mut page = match self.is_key {
            true => vec![0; shape.key_elems()],
            false => vec![0; shape.value_elems()],
        };
        for (slot, row) in self.rows.chunks_exact(self.head_dim).enumerate() {
            match self.is_key {
                true => write_key(&mut page, shape, slot, row),
                false => write_value(&mut page, shape, slot, row),
            }
        }
        page
    }

    /// Where the element is in the order of lines.
    fn order(&self, token: usize, dim: usize) -> [usize; 4] {
        let (n, k) = if self.is_key {
            (token, dim)
        } else {
            (dim, token)
        };
        [n / 16, k / 2, n % 16, k % 2]
    }

    /// What must stay: zeros in the place of everything else.
    fn pruned(&self, rule: PruneRule, dims: usize, query: &[f32]) -> Vec<f32> {
        let weighted = rule == PruneRule::Query && self.is_key;
        let importance = |at: &usize| {
            let factor = if weighted {
                query[at % self.head_dim].abs()
            } else {
                1.0
            };
            (self.rows[*at].abs() * factor).to_bits() >> 16
        };
        let largest = |mut places: Vec<usize>, count| {
            let order = |at: usize| self.order(at / self.head_dim, at % self.head_dim);
            places.sort_by_key(|&at| (std::cmp::Reverse(importance(&at)), order(at)));
            places.truncate(count);
            places
        };
        let all = 0..self.rows.len();
        let by_page = rule != PruneRule::Token;
        let stay: HashSet<usize> = match by_page {
            true => largest(all.collect(), PAGE_TOKENS * dims)
                .into_iter()
                .collect(),
            false => all
                .step_by(self.head_dim)
                .flat_map(|first| largest((first..first + self.head_dim).collect(), dims))
                .collect(),
        };
        let element = |(at, &x): (usize, &f32)| if stay.contains(&at) { x } else { 0.0 };
        self.rows.iter().enumerate().map(element).collect()
    }

    /// Rounds to levels as int8 pages do.
    fn to_levels(&self, mut rows: Vec<f32>) -> Vec<f32> {
        let (tokens, dims) = (PAGE_TOKENS, self.head_dim);
        let groups: Vec<Vec<usize>> = match self.is_key {
            true => (0..tokens)
                .map(|t| (t * dims..(t + 1) * dims).collect())
                .collect(),
            false => (0..dims)
                .map(|d| (d..tokens * dims).step_by(dims).collect())
                .collect(),
        };
        for group in groups {
            let most = group
                .iter()
                .fold(0f32, |most, &at| most.max(rows[at].abs()));
            if most > 0.0 {
                for at in group {
                    rows[at] = (rows[at] * (127.0 / most)).round_ties_even() * (most / 127.0);
                }
            }
        }
        rows
    }
}

fn read(page: Page<'_>, rows: &Rows) -> Vec<f32> {
    let shape = PageShape {
        head_dim: rows.head_dim,
    };
    let mut back = vec![f32::NAN; rows.rows.len()];
    for (slot, row) in back.chunks_exact_mut(rows.head_dim).enumerate() {
        match (page, rows.is_key) {
            (Page::Dense(lines), true) => read_key(lines, shape, slot, row),
            (Page::Dense(lines), false) => read_value(lines, shape, slot, row),
            (Page::Packed(page), true) => page.read_key(slot, row),
            (Page::Packed(page), false) => page.read_value(slot, row),
        }
    }
    back
}

#[test]
fn what_matters_most_stays() {
    let mut random = Random::new(11);
    let cases = [1, 2, 17, 20, 64, 80, 128]
        .into_iter()
        .flat_map(|head_dim| {
            let sparsities = [[0.5, 0.7], [0.0, 0.3], [0.9, 0.0], [1.0, 1.0], [0.0, 0.0]];
            sparsities.map(|sparsity| (head_dim, sparsity))
        });
    for (head_dim, [key_sparsity, value_sparsity]) in cases {
        let magnitudes = [3, 100][random.below(2)];
        let [keys, values] = [true, false].map(|k| Rows::new(head_dim, k, magnitudes, &mut random));
        let query = activations(1, head_dim, &mut random);
        for (rule, precision) in PruneRule::ALL
            .into_iter()
            .flat_map(|rule| [PageDtype::Bf16, PageDtype::Int8].map(|precision| (rule, precision)))
        {
            let shape = PageShape { head_dim };
            let packing = Packing::new(shape, precision, key_sparsity, value_sparsity, rule);
            let want =
                [(&keys, packing.key_dims), (&values, packing.value_dims)].map(|(rows, dims)| {
                    let pruned = rows.pruned(rule, dims, &query);
                    match precision {
                        PageDtype::Bf16 => pruned,
                        PageDtype::Int8 => rows.to_levels(pruned),
                    }
                });
            for cpu in cpus(&Isa::ALL) {
                // The pages between two others, packed twice, so that what is left of the first time would show.
                let mut pages = PackedPages::new(packing, 3).unwrap();
                for mut pair in pages.pairs_mut() {
                    pair.pack(&cpu, &values_as_keys(&values), &values.page(), &query);
                }
                let mut middle = pages.pairs_mut().nth(1).unwrap();
                middle.pack(&cpu, &keys.page(), &values.page(), &query);
                let context = format!("{} {packing:?}", cpu.isa());
                let compare = |page, rows, want: &[f32], what| {
                    let got = read(page, rows);
                    let different = (0..got.len()).find(|&at| got[at] != want[at]);
                    let places =
                        different.map(|at| (at / head_dim, at % head_dim, got[at], want[at]));
                    assert!(different.is_none(), "{what}, {context}: {places:?}");
                };
                compare(pages.key(1), &keys, &want[0], "keys");
                compare(pages.value(1), &values, &want[1], "values");
                compare(pages.value(2), &values, &want[1], "next values");
            }
        }
    }
}

fn values_as_keys(values: &Rows) -> Vec<u16> {
    let rows = Rows {
        is_key: true,
        rows: values.rows.clone(),
        ..*values
    };
    rows.page()
}

#[test]
fn a_page_takes_the_bytes_that_its_packing_says() {
    let shape = PageShape { head_dim: 128 };
    let bytes = |precision, sparsity: f32| {
        Packing::new(shape, precision, sparsity, sparsity, PruneRule::Magnitude).pair_bytes()
    };
    let all = PAGE_TOKENS * 128;
    assert_eq!(bytes(PageDtype::Bf16, 0.0), 2 * all * 2);
    // Where strips begin, masks, values, slack.
    assert_eq!(bytes(PageDtype::Bf16, 0.5), 2 * (64 + all / 8 + all + 64));
    // Scales of 64 tokens and 128 dimensions, levels.
    assert_eq!(bytes(PageDtype::Int8, 0.0), 4 * (64 + 128) + 2 * all);
    assert_eq!(
        bytes(PageDtype::Int8, 0.5),
        4 * (64 + 128) + 2 * (64 + all / 8 + all / 2 + 64)
    );
    let packing = Packing::new(shape, PageDtype::Int8, 0.5, 0.7, PruneRule::Query);
    assert_eq!((packing.key_dims, packing.value_dims), (64, 38));
    let pages = PackedPages::new(packing, 7).unwrap();
    assert_eq!(
        (pages.pairs(), pages.bytes()),
        (7, 7 * packing.pair_bytes())
    );
    assert!(packing.needs_query() && !packing.is_identity());
    assert!(Packing::new(shape, PageDtype::Bf16, 0.0, 0.0, PruneRule::Query).is_identity());
    assert!(PackedPages::new(packing, usize::MAX).is_err());
}

/// Before anything was packed all elements are zero.
#[test]
fn new_pages_hold_zeros() {
    for precision in [PageDtype::Bf16, PageDtype::Int8] {
        let shape = PageShape { head_dim: 40 };
        let packing = Packing::new(shape, precision, 0.5, 0.0, PruneRule::Magnitude);
        let pages = PackedPages::new(packing, 1).unwrap();
        for (page, is_key) in [(pages.key(0), true), (pages.value(0), false)] {
            let rows = Rows {
                head_dim: 40,
                rows: vec![0.0; PAGE_TOKENS * 40],
                is_key,
            };
            assert_eq!(read(page, &rows), rows.rows);
        }
    }
}

/// Numbers that are not finite stay where they are, as important as can be, and harm nothing else.
#[test]
fn pages_with_nan_and_infinity_are_packed() {
    let shape = PageShape { head_dim: 32 };
    let cpu = Cpu::detect().unwrap();
    for (precision, rule) in [
        (PageDtype::Bf16, PruneRule::Query),
        (PageDtype::Int8, PruneRule::Token),
    ] {
        let packing = Packing::new(shape, precision, 0.5, 0.5, rule);
        let mut page = vec![0x3f80; shape.key_elems()];
        (page[7], page[8], page[2000]) = (0x7fff, 0xff80, 0x7f80);
        let mut pages = PackedPages::new(packing, 1).unwrap();
        pages
            .pairs_mut()
            .next()
            .unwrap()
            .pack(&cpu, &page, &page, &[1.0; 32]);
        let mut row = [0.0; 32];
        let Page::Packed(packed) = pages.key(0) else {
            panic!("pruned pages are packed")
        };
        packed.read_key(3, &mut row);
        assert!(row[1].is_nan(), "{precision:?}: {row:?}");
        packed.read_key(0, &mut row);
        assert!(row.iter().all(|x| x.is_finite()), "{precision:?}: {row:?}");
    }
}

#[test]
#[should_panic(expected = "query magnitudes")]
fn a_rule_that_needs_queries_gets_them() {
    let shape = PageShape { head_dim: 8 };
    let packing = Packing::new(shape, PageDtype::Bf16, 0.5, 0.0, PruneRule::Query);
    let (key, value) = (vec![0; shape.key_elems()], vec![0; shape.value_elems()]);
    let mut pages = PackedPages::new(packing, 1).unwrap();
    let mut pair = pages.pairs_mut().next().unwrap();
    pair.pack(&Cpu::detect().unwrap(), &key, &value, &[]);
}

#[test]
fn magnitudes_add_up() {
    let mut sums = [1.0, 0.0];
    add_magnitudes(&mut sums, &[-2.0, 0.5]);
    add_magnitudes(&mut sums, &[3.0, -0.25]);
    assert_eq!(sums, [6.0, 0.75]);
}
