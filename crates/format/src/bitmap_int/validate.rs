//! Proof that arrays from elsewhere are a packed int8 or int4 weight.

use crate::bitmap::{Parts, check_zero};
use crate::levels::first_bad_stored;
use crate::shape::{Geometry, LINE_BYTES, SLACK_BYTES};
use crate::{Field, FormatError};

/// Checks the arrays of an int8 weight and counts the stored levels. Reads every byte once.
///
/// # Errors
/// The first thing wrong in the first strip that is wrong.
pub(super) fn validate_i8(
    shape: &Geometry,
    masks: &[u64],
    values: &[i8],
    offsets: &[u64],
) -> Result<usize, FormatError> {
    let parts = parts(shape, masks, offsets, values.len(), 1);
    let nnz = parts.validate(|used, next_start| {
        let (start, end) = (used.start, used.end);
        if let Some(i) = first_bad_stored(&values[used]) {
            return Err(FormatError::BadLevel {
                index: start + i,
                level: values[start + i],
            });
        }
        check_zero(Field::Values, values, end, next_start)
    })?;
    check_zero(
        Field::Values,
        values,
        values.len() - SLACK_BYTES,
        values.len(),
    )?;
    Ok(nnz)
}

/// Checks the arrays of an int4 weight and counts the stored levels. Every nibble is a level, so of the values only
/// the padding is read.
///
/// # Errors
/// The first thing wrong in the first strip that is wrong.
pub(super) fn validate_i4(
    shape: &Geometry,
    masks: &[u64],
    values: &[u8],
    offsets: &[u64],
) -> Result<usize, FormatError> {
    let parts = parts(shape, masks, offsets, values.len(), 2);
    let nnz = parts.validate(|used, next_start| {
        let end = used.end;
        // The strip ends in the middle of this byte.
        if end % 2 == 1 && values[end / 2] >> 4 != 0 {
            return Err(FormatError::Padding {
                field: Field::Values,
                index: end / 2,
            });
        }
        check_zero(Field::Values, values, end.div_ceil(2), next_start / 2)
    })?;
    check_zero(
        Field::Values,
        values,
        values.len() - SLACK_BYTES,
        values.len(),
    )?;
    Ok(nnz)
}

/// The arrays, where values are `per_unit` to a byte.
fn parts<'a>(
    shape: &'a Geometry,
    masks: &'a [u64],
    offsets: &'a [u64],
    values_len: usize,
    per_unit: usize,
) -> Parts<'a, u64> {
    Parts {
        shape,
        masks,
        offsets,
        values_len,
        slack: SLACK_BYTES,
        per_unit,
        align: per_unit * LINE_BYTES,
    }
}
