//! Arrays that are almost a packed weight are refused with the place of the difference.
#![cfg(not(miri))] // Safe code on weights too large for Miri's speed.

mod common;

use common::rows;
use sparamx_format::{Field, FormatError, SparseBf16, Storage};

/// The arrays of a packed weight, offsets with their padding.
struct Parts {
    n: usize,
    k: usize,
    masks: Vec<u32>,
    values: Vec<u16>,
    offsets: Vec<u64>,
}

impl Parts {
    /// Three strips of two blocks; odd K, one row in the last strip.
    fn new() -> Self {
        let (n, k) = (33, 531);
        let weight = SparseBf16::pack(&rows(n, k, 0.5, 9), n, k).unwrap();
        let mut offsets = weight.offsets().to_vec();
        offsets.resize(8, 0);
        Parts {
            n,
            k,
            masks: weight.masks().to_vec(),
            values: weight.values().to_vec(),
            offsets,
        }
    }

    fn check(&self) -> Result<SparseBf16, FormatError> {
        SparseBf16::from_parts(
            self.n,
            self.k,
            Storage::from_slice(&self.masks).unwrap(),
            Storage::from_slice(&self.values).unwrap(),
            Storage::from_slice(&self.offsets).unwrap(),
        )
    }

    fn error(&self) -> FormatError {
        self.check().unwrap_err()
    }
}

#[test]
fn the_sample_is_valid() {
    Parts::new().check().unwrap();
}

#[test]
fn length_of_masks_values_and_offsets() {
    for (field, change) in [
        (Field::Masks, -1),
        (Field::Masks, 1),
        (Field::Offsets, -1),
        (Field::Offsets, 8),
    ] {
        let mut parts = Parts::new();
        let resized = |length: usize| length.checked_add_signed(change).unwrap();
        match field {
            Field::Masks => parts.masks.resize(resized(parts.masks.len()), 0),
            _ => parts.offsets.resize(resized(parts.offsets.len()), 0),
        }
        let error = parts.error();
        assert!(
            matches!(error, FormatError::Length { field: f, .. } if f == field),
            "{error}"
        );
    }
    let mut parts = Parts::new();
    parts.values.truncate(31);
    let error = parts.error();
    assert!(
        matches!(
            error,
            FormatError::Length {
                field: Field::Values,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn values_longer_or_shorter_by_a_line() {
    let mut parts = Parts::new();
    let (_, end) = (parts.values.len(), parts.values.len() - 32);
    parts.values.resize(end + 64, 0);
    let error = parts.error();
    assert!(
        matches!(
            error,
            FormatError::Offset {
                strip: 2,
                block: 2,
                ..
            }
        ),
        "{error}"
    );
    parts.values.truncate(end);
    let error = parts.error();
    assert!(
        matches!(
            error,
            FormatError::Offset {
                strip: 2,
                block: 2,
                ..
            }
        ),
        "{error}"
    );
    // So short that the second strip ends behind it.
    parts.values.truncate(parts.offsets[2] as usize);
    assert!(matches!(
        parts.error(),
        FormatError::Length {
            field: Field::Values,
            ..
        }
    ));
}

#[test]
fn offsets_that_disagree_with_the_masks() {
    for at in 0..6 {
        for found in [0, 1, 32, u64::MAX, u64::MAX - 31, 1 << 63] {
            let mut parts = Parts::new();
            if parts.offsets[at] == found {
                continue;
            }
            parts.offsets[at] = found;
            let error = parts.error();
            assert!(
                matches!(
                    error,
                    FormatError::Offset { .. } | FormatError::Length { .. }
                ),
                "offset {at} = {found}: {error}"
            );
        }
    }
}

#[test]
fn a_bit_moved_to_the_next_block() {
    // The count of the strip stays, the block boundary moves.
    let mut parts = Parts::new();
    let bit = 1 << parts.masks[255].trailing_zeros();
    parts.masks[255] ^= bit;
    let hole = 1 << parts.masks[256].trailing_ones();
    parts.masks[256] |= hole;
    let error = parts.error();
    assert!(
        matches!(
            error,
            FormatError::Offset {
                strip: 0,
                block: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn padding_of_masks() {
    let lines = 544 / 2;
    // The odd column of the last pair, a later line, a row after the last, each in the first or last line.
    for (index, bits) in [
        (265, 0x8000_0000),
        (265, 0x0000_0002),
        (266, 1),
        (lines - 1, 1),
        (2 * lines, 0b100),
        (2 * lines + 265, 0b10),
        (3 * lines - 1, 1 << 31),
    ] {
        let mut parts = Parts::new();
        parts.masks[index] |= bits;
        let error = parts.error();
        assert!(
            matches!(error, FormatError::Padding { field: Field::Masks, index: i } if i == index),
            "{error}"
        );
    }
}

#[test]
fn padding_of_offsets_and_values() {
    let mut parts = Parts::new();
    parts.offsets[6] = 1;
    let error = parts.error();
    assert!(
        matches!(
            error,
            FormatError::Padding {
                field: Field::Offsets,
                index: 6
            }
        ),
        "{error}"
    );

    let slack = parts.values.len() - 1;
    for index in [parts.offsets[2] as usize - 1, slack - 31, slack] {
        let mut parts = Parts::new();
        assert_eq!(
            parts.values[index], 0,
            "the sample has a gap before its second strip"
        );
        parts.values[index] = 0x3f80;
        let error = parts.error();
        assert!(
            matches!(error, FormatError::Padding { field: Field::Values, index: i } if i == index),
            "{error}"
        );
    }
}

#[test]
fn values_that_may_not_be_stored() {
    for bits in [0x0000, 0x7f80, 0xff80, 0x7fc0, 0xffff] {
        for index in [0, 100] {
            let mut parts = Parts::new();
            parts.values[index] = bits;
            let error = parts.error();
            assert!(
                matches!(error, FormatError::BadValue { index: i, bits: b } if (i, b) == (index, bits)),
                "{error}"
            );
        }
    }
}

#[test]
fn negative_zero_may_be_stored() {
    let mut parts = Parts::new();
    parts.values[0] = 0x8000;
    parts.check().unwrap();
}

#[test]
fn shapes_of_other_weights() {
    for (n, k) in [
        (32, 531),
        (34, 531),
        (33, 530),
        (33, 532),
        (33, 545),
        (0, 531),
        (33, usize::MAX),
    ] {
        let mut parts = Parts::new();
        (parts.n, parts.k) = (n, k);
        // One row or column more fits the padding, and reads as zeros.
        assert_eq!(
            parts.check().is_ok(),
            matches!((n, k), (34, 531) | (33, 532)),
            "[{n}, {k}]"
        );
    }
}
