//! Packing and unpacking keep every bit, for every shape and density.

mod common;

use common::{CORNERS, rows};
use proptest::prelude::*;
use sparamx_format::{DenseBf16, FormatError, SparseBf16, Storage};

/// Packs, checks what is documented, unpacks in every way there is.
fn check(rows: &[u16], n: usize, k: usize) {
    let sparse = SparseBf16::pack(rows, n, k).unwrap();
    let nnz = rows.iter().filter(|&&bits| bits != 0).count();
    assert_eq!((sparse.n(), sparse.k(), sparse.nnz()), (n, k, nnz));
    assert_eq!(
        sparse.masks().len(),
        sparse.strips() * sparse.lines_per_strip()
    );
    assert_eq!(
        sparse.offsets().len(),
        sparse.strips() * sparse.blocks_per_strip()
    );
    for field in [
        sparse.masks().as_ptr().addr(),
        sparse.values().as_ptr().addr(),
        sparse.offsets().as_ptr().addr(),
    ] {
        assert_eq!(field % 64, 0);
    }
    for s in 0..sparse.strips() {
        assert_eq!(sparse.offsets()[s * sparse.blocks_per_strip()] % 32, 0);
    }
    let strips: usize = (0..sparse.strips()).map(|s| sparse.strip_bytes(s)).sum();
    assert_eq!(
        strips + 64,
        size_of_val(sparse.masks()) + size_of_val(sparse.values())
    );
    assert_eq!(sparse.decode(), rows, "[{n}, {k}]");

    let dense = DenseBf16::from_rows(rows, n, k).unwrap();
    assert_eq!(dense.decode(), rows, "[{n}, {k}]");
    assert_eq!(
        DenseBf16::from_sparse(&sparse).unwrap().unwrap().lines(),
        dense.lines()
    );
    let mut row = vec![f32::NAN; k];
    for (i, expected) in rows.chunks(k).enumerate() {
        dense.row(i, &mut row);
        let bits: Vec<u16> = row.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
        assert_eq!(bits, expected);
    }

    let again = SparseBf16::from_parts(
        n,
        k,
        Storage::from_slice(sparse.masks()).unwrap(),
        Storage::from_slice(sparse.values()).unwrap(),
        padded(sparse.offsets()),
    )
    .unwrap();
    assert_eq!(again.decode(), rows, "[{n}, {k}]");
    assert_eq!(again.nnz(), nnz);
}

/// Offsets rounded up to 8 entries, as a file holds them.
fn padded(offsets: &[u64]) -> Storage<u64> {
    let mut padded = offsets.to_vec();
    padded.resize(offsets.len().next_multiple_of(8), 0);
    Storage::from_slice(&padded).unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn shapes_around_every_boundary() {
    let ns = [1, 2, 15, 16, 17, 31, 32, 33, 130];
    let ks = [
        1, 2, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1023, 1024, 1500,
    ];
    for n in ns {
        for k in ks {
            for density in [0.0, 0.02, 0.5, 1.0] {
                check(&rows(n, k, density, (n * 7919 + k) as u64), n, k);
            }
        }
    }
}

#[test]
fn corner_values_survive() {
    let rows: Vec<u16> = CORNERS.iter().copied().cycle().take(16 * 40).collect();
    check(&rows, 16, 40);
    let sparse = SparseBf16::pack(&[0x8000, 0, 0x0001], 1, 3).unwrap();
    assert_eq!(sparse.nnz(), 2, "-0.0 is a value, +0.0 is not");
}

#[test]
fn every_element_full_and_empty() {
    for (n, k) in [(16, 32), (17, 33), (48, 1056)] {
        if cfg!(miri) && k > 100 {
            continue;
        }
        check(&vec![0x3f80; n * k], n, k);
        check(&vec![0; n * k], n, k);
        let empty = SparseBf16::pack(&vec![0; n * k], n, k).unwrap();
        assert_eq!(empty.values().len(), 32, "only the slack");
        assert_eq!(empty.density(), 0.0);
    }
}

#[test]
fn empty_rows_and_strips_between_full_ones() {
    let (n, k) = (64, 70);
    let rows: Vec<u16> = (0..n * k)
        .map(|i| {
            let row = i / k;
            if row / 16 == 1 || row % 3 == 0 {
                0
            } else {
                0x4000
            }
        })
        .collect();
    check(&rows, n, k);
}

#[test]
fn the_first_element_that_is_not_finite_is_named() {
    let (n, k) = (40, 70);
    for (row, col, bits) in [
        (0, 0, 0x7f80),
        (39, 69, 0xff80),
        (17, 33, 0x7fc1),
        (17, 34, 0xffff),
    ] {
        let mut rows = rows(n, k, 0.5, 3);
        rows[row * k + col] = bits;
        rows[n * k - 1] |= 0x7f80;
        for error in [
            SparseBf16::pack(&rows, n, k).unwrap_err(),
            DenseBf16::from_rows(&rows, n, k).unwrap_err(),
        ] {
            let FormatError::NotFinite { row: r, col: c, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((r, c), (row, col));
        }
    }
}

#[test]
fn rows_of_another_size() {
    for error in [
        SparseBf16::pack(&[0; 5], 2, 3).unwrap_err(),
        DenseBf16::from_rows(&[0; 5], 2, 3).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "rows have 5 elements, the shape asks for 6"
        );
    }
}

#[test]
fn shapes_that_overflow_or_are_empty() {
    for (n, k) in [
        (0, 4),
        (4, 0),
        (usize::MAX, 2),
        (usize::MAX, usize::MAX),
        (1, usize::MAX),
    ] {
        assert!(SparseBf16::pack(&[], n, k).is_err());
        assert!(DenseBf16::from_rows(&[], n, k).is_err());
    }
}

#[test]
#[cfg_attr(miri, ignore = "starts many threads")]
fn any_number_of_threads_packs_the_same_bytes() {
    let (n, k) = (333, 1111);
    let rows = rows(n, k, 0.4, 11);
    let parts = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let sparse = SparseBf16::pack(&rows, n, k).unwrap();
            (
                sparse.masks().to_vec(),
                sparse.values().to_vec(),
                sparse.offsets().to_vec(),
            )
        })
    };
    let one = parts(1);
    for threads in [2, 3, 8] {
        assert!(parts(threads) == one, "{threads} threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_density(n in 1usize..70, k in 1usize..1100, density in 0.0f64..=1.0, seed: u64) {
        let k = if cfg!(miri) { k % 40 + 1 } else { k };
        check(&rows(n, k, density, seed), n, k);
    }
}
