//! Packing and unpacking keep every level and scale, for every shape and density.

mod common;

use common::{levels, scale_values};
use proptest::prelude::*;
use sparamx_format::{DenseI4, DenseI8, FormatError, GROUP_ELEMS, Scales, SparseI4, SparseI8};

/// What a weight is made from: levels and the scale of an element.
struct Case {
    levels: Vec<i8>,
    n: usize,
    k: usize,
    /// Columns of a group, or one scale a row.
    elems: Option<usize>,
    values: Vec<f32>,
}

impl Case {
    fn rows(levels: Vec<i8>, n: usize, k: usize) -> Self {
        let values = scale_values(n, k as u64);
        let elems = None;
        Case {
            levels,
            n,
            k,
            elems,
            values,
        }
    }

    fn groups(levels: Vec<i8>, n: usize, k: usize, elems: usize) -> Self {
        let values = scale_values(n * k.div_ceil(elems), k as u64);
        let elems = Some(elems);
        Case {
            levels,
            n,
            k,
            elems,
            values,
        }
    }

    fn scales(&self) -> Scales {
        match self.elems {
            None => Scales::row(&self.values, self.n).unwrap(),
            Some(elems) => Scales::group(&self.values, self.n, self.k, elems).unwrap(),
        }
    }

    /// Row `i` of W by its definition.
    fn row(&self, i: usize) -> Vec<f32> {
        let elems = self.elems.unwrap_or(self.k);
        let groups = self.k.div_ceil(elems);
        (0..self.k)
            .map(|c| {
                let scale = self.values[i * groups + c / elems];
                f32::from(self.levels[i * self.k + c]) * scale
            })
            .collect()
    }

    /// Every row of a weight is what its levels and scales say.
    fn check_rows(&self, row: impl Fn(usize, &mut [f32])) {
        let mut out = vec![f32::NAN; self.k];
        for i in 0..self.n {
            row(i, &mut out);
            assert_eq!(out, self.row(i), "row {i} of [{}, {}]", self.n, self.k);
        }
    }
}

/// Level of row `i` and column `c` by the specification's place of it in `lines` of 64 levels.
fn place(k_padded: usize, i: usize, c: usize) -> usize {
    (i / 16) * 16 * k_padded + c / 4 * 64 + 4 * (i % 16) + c % 4
}

fn check_i8(case: &Case) {
    let (n, k) = (case.n, case.k);
    let sparse = SparseI8::pack(&case.levels, n, k, case.scales()).unwrap();
    let nnz = case.levels.iter().filter(|&&level| level != 0).count();
    assert_eq!((sparse.n(), sparse.k(), sparse.nnz()), (n, k, nnz));
    assert_eq!(sparse.decode(), case.levels, "[{n}, {k}]");
    check_layout(
        sparse.masks(),
        sparse.offsets(),
        (
            sparse.strips(),
            sparse.lines_per_strip(),
            sparse.blocks_per_strip(),
        ),
        64,
    );
    for address in [
        sparse.masks().as_ptr().addr(),
        sparse.values().as_ptr().addr(),
    ] {
        assert_eq!(address % 64, 0);
    }
    let strips: usize = (0..sparse.strips()).map(|s| sparse.strip_bytes(s)).sum();
    assert_eq!(
        strips + 64,
        size_of_val(sparse.masks()) + sparse.values().len()
    );

    let dense = DenseI8::from_rows(&case.levels, n, k, case.scales()).unwrap();
    assert_eq!(dense.decode(), case.levels, "[{n}, {k}]");
    assert_eq!(
        DenseI8::from_sparse(&sparse).unwrap().unwrap().lines(),
        dense.lines()
    );
    for (i, row) in case.levels.chunks(k).enumerate() {
        for (c, &level) in row.iter().enumerate() {
            assert_eq!(dense.lines()[place(dense.k_padded(), i, c)], level);
        }
    }
    case.check_rows(|i, out| dense.row(i, out));
}

fn check_dense_i4(case: &Case) {
    let (n, k) = (case.n, case.k);
    let dense = DenseI4::from_rows(&case.levels, n, k, case.scales()).unwrap();
    assert_eq!(dense.decode(), case.levels, "[{n}, {k}]");
    let bytes = dense.strips() * dense.lines_per_strip() * 32;
    assert_eq!(dense.lines().len(), bytes);
    let nibble = |place: usize| {
        let (line, element) = (place / 64, place % 64);
        let byte = dense.lines()[line / 2 * 64 + element];
        if line % 2 == 0 { byte & 15 } else { byte >> 4 }
    };
    for i in 0..dense.strips() * 16 {
        for c in 0..dense.k_padded() {
            let inside = i < n && c < k;
            let level = if inside { case.levels[i * k + c] } else { 0 };
            assert_eq!(nibble(place(dense.k_padded(), i, c)), (level + 8) as u8);
        }
    }
    case.check_rows(|i, out| dense.row(i, out));
}

fn check_sparse_i4(case: &Case) {
    let (n, k) = (case.n, case.k);
    let sparse = SparseI4::pack(&case.levels, n, k, case.scales()).unwrap();
    let nnz = case.levels.iter().filter(|&&level| level != 0).count();
    assert_eq!((sparse.n(), sparse.k(), sparse.nnz()), (n, k, nnz));
    assert_eq!(sparse.decode(), case.levels, "[{n}, {k}]");
    check_layout(
        sparse.masks(),
        sparse.offsets(),
        (
            sparse.strips(),
            sparse.lines_per_strip(),
            sparse.blocks_per_strip(),
        ),
        128,
    );
    let strips: usize = (0..sparse.strips()).map(|s| sparse.strip_bytes(s)).sum();
    assert_eq!(
        strips + 64,
        size_of_val(sparse.masks()) + sparse.values().len()
    );

    let expanded = DenseI8::from_sparse(&sparse).unwrap().unwrap();
    assert_eq!(expanded.decode(), case.levels);
    case.check_rows(|i, out| expanded.row(i, out));
}

/// Offsets count mask bits and strips start on 64-byte boundaries.
fn check_layout(
    masks: &[u64],
    offsets: &[u64],
    (strips, lines, blocks): (usize, usize, usize),
    align: u64,
) {
    assert_eq!(
        (masks.len(), offsets.len()),
        (strips * lines, strips * blocks)
    );
    let mut next = 0;
    for (masks, offsets) in masks.chunks(lines).zip(offsets.chunks(blocks)) {
        for (masks, &offset) in masks.chunks(128).zip(offsets) {
            assert_eq!(offset, next);
            next += masks.iter().map(|m| u64::from(m.count_ones())).sum::<u64>();
        }
        next = next.next_multiple_of(align);
    }
}

fn check(n: usize, k: usize, density: f64, seed: u64) {
    check_i8(&Case::rows(levels(n, k, density, -127, 127, seed), n, k));
    let elems = GROUP_ELEMS[seed as usize % 3];
    check_dense_i4(&Case::groups(
        levels(n, k, density, -8, 7, seed),
        n,
        k,
        elems,
    ));
    check_sparse_i4(&Case::groups(
        levels(n, k, density, -8, 8, seed),
        n,
        k,
        elems,
    ));
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn shapes_around_every_boundary() {
    for n in [1, 15, 16, 17, 33, 130] {
        for k in [1, 3, 31, 63, 64, 65, 128, 511, 512, 513, 1024, 1500] {
            for density in [0.0, 0.02, 0.5, 1.0] {
                check(n, k, density, (n * 7919 + k) as u64);
            }
        }
    }
}

#[test]
fn a_small_weight() {
    for seed in 0..3 {
        check(17, 70, 0.5, seed);
    }
}

#[test]
fn every_level_survives() {
    let all: Vec<i8> = (-127..=127).collect();
    check_i8(&Case::rows(all.clone(), 3, 85));
    check_i8(&Case::rows(all, 85, 3));
    check_dense_i4(&Case::groups((-8..=7).collect(), 2, 8, 32));
    check_sparse_i4(&Case::groups((-8..=8).collect(), 1, 17, 32));
}

#[test]
fn codes_of_packed_int4_skip_zero() {
    let scales = || Scales::group(&[1.0], 1, 17, 32).unwrap();
    let levels: Vec<i8> = (-8..=8).collect();
    // In a single row elements come in the order of columns.
    let packed = SparseI4::pack(&levels, 1, 17, scales()).unwrap();
    let bytes = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
    assert_eq!(&packed.values()[..8], bytes);
    assert!(packed.values()[8..].iter().all(|&byte| byte == 0));
    assert_eq!(packed.values().len(), 128);
}

#[test]
fn levels_out_of_range_are_named() {
    let mut levels = vec![0i8; 20 * 70];
    (levels[17 * 70 + 33], levels[19 * 70]) = (-128, -128);
    let rows = || Scales::row(&[1.0; 20], 20).unwrap();
    let groups = || Scales::group(&[1.0; 60], 20, 70, 32).unwrap();
    for (error, range) in [
        (SparseI8::pack(&levels, 20, 70, rows()).err(), "-127 to 127"),
        (
            DenseI8::from_rows(&levels, 20, 70, rows()).err(),
            "-127 to 127",
        ),
        (SparseI4::pack(&levels, 20, 70, groups()).err(), "-8 to 8"),
        (
            DenseI4::from_rows(&levels, 20, 70, groups()).err(),
            "-8 to 7",
        ),
    ] {
        let text = error.unwrap().to_string();
        let expected = "level at row 17, column 33 is -128; levels of this format are ";
        assert_eq!(text, format!("{expected}{range}"));
    }
    levels.fill(8);
    assert!(SparseI4::pack(&levels, 20, 70, groups()).is_ok());
    assert!(DenseI4::from_rows(&levels, 20, 70, groups()).is_err());
}

#[test]
fn scales_that_do_not_fit_are_refused() {
    use FormatError as E;
    let levels = vec![1i8; 20 * 70];
    let rows = |n| Scales::row(&vec![1.0; n], n).unwrap();
    let groups = |n, k, elems| {
        Scales::group(&vec![1.0; n * usize::div_ceil(k, elems)], n, k, elems).unwrap()
    };
    // As many rows as fit the padding would be worth something there.
    for (scales, padding) in [(rows(21), true), (rows(33), false), (rows(16), false)] {
        let error = SparseI8::pack(&levels, 20, 70, scales).unwrap_err();
        assert_eq!(matches!(error, E::Padding { .. }), padding, "{error}");
        assert_eq!(matches!(error, E::Length { .. }), !padding, "{error}");
    }
    for scales in [groups(20, 97, 32), groups(21, 70, 32)] {
        let error = DenseI4::from_rows(&levels, 20, 70, scales).unwrap_err();
        assert!(matches!(error, E::Padding { .. }), "{error}");
    }
    let error = DenseI4::from_rows(&levels, 20, 70, groups(20, 200, 32)).unwrap_err();
    assert!(matches!(error, E::Length { .. }), "{error}");
    for error in [
        SparseI8::pack(&levels, 20, 70, groups(20, 70, 32)).unwrap_err(),
        SparseI4::pack(&levels, 20, 70, rows(20)).unwrap_err(),
        DenseI4::from_rows(&levels, 20, 70, rows(20)).unwrap_err(),
    ] {
        assert!(matches!(error, E::ScaleKind { .. }), "{error}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let values = [1.0, bad];
        let error = Scales::row(&values, 2).unwrap_err();
        assert!(matches!(error, E::BadScale { index: 1, .. }), "{error}");
        let error = Scales::group(&values, 2, 20, 32).unwrap_err();
        assert!(matches!(error, E::BadScale { index: 1, .. }), "{error}");
    }
    assert!(Scales::row(&[-0.0], 1).is_err());
    assert!(
        Scales::group(&[f32::MAX], 1, 1, 32).is_err(),
        "rounds to infinity"
    );
    assert!(Scales::group(&[1.0], 1, 1, 48).is_err());
    assert!(
        Scales::group(&[1.0], 1, 33, 32).is_err(),
        "one scale too few"
    );
}

#[test]
fn group_scales_are_rounded_to_bf16_and_ordered_by_strip() {
    // 1 + 2^-8 is a tie and goes to even, 1 + 3 * 2^-8 as well; a little more or less is no tie.
    let tie: f32 = 1.0 + 1.0 / 256.0;
    for (scale, rounded) in [
        (tie, 1.0),
        (f32::from_bits(tie.to_bits() + 1), 1.0 + 2.0 / 256.0),
        (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
        (-tie, -1.0),
        (-0.0, 0.0),
    ] {
        assert_eq!(
            sparamx_format::bf16_scale(scale).to_bits(),
            f32::to_bits(rounded)
        );
    }
    // Row 17 is row 1 of strip 1.
    let (n, k) = (18, 96);
    let values: Vec<f32> = (0..n * 3).map(|i| i as f32).collect();
    let scales = Scales::group(&values, n, k, 32).unwrap();
    assert_eq!((scales.groups(), scales.group_elems(128)), (4, 32));
    assert_eq!(scales.strip(1, 2)[..3], [50.0, 53.0, 0.0]);
    assert_eq!(scales.strip(0, 3), [0.0; 16], "columns from K on");
    assert_eq!(scales.bytes(), 2 * 4 * 16 * 2);
}

#[test]
#[cfg_attr(miri, ignore = "starts many threads")]
fn any_number_of_threads_packs_the_same_bytes() {
    let (n, k) = (333, 1111);
    let bytes = levels(n, k, 0.4, -127, 127, 11);
    let nibbles = levels(n, k, 0.4, -8, 8, 12);
    let parts = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let rows = Scales::row(&scale_values(n, 1), n).unwrap();
            let groups = Scales::group(&scale_values(n * 9, 1), n, k, 128).unwrap();
            let a = SparseI8::pack(&bytes, n, k, rows).unwrap();
            let b = SparseI4::pack(&nibbles, n, k, groups).unwrap();
            (
                a.masks().to_vec(),
                a.values().to_vec(),
                b.masks().to_vec(),
                b.values().to_vec(),
            )
        })
    };
    let one = parts(1);
    for threads in [2, 3, 8] {
        assert!(parts(threads) == one, "{threads} threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_density(n in 1usize..70, k in 1usize..1100, density in 0.0f64..=1.0, seed: u64) {
        let k = if cfg!(miri) { k % 40 + 1 } else { k };
        check(n, k, density, seed);
    }
}
