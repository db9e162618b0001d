//! Proof that arrays from elsewhere are a packed bf16 weight.

use super::{SLACK_ELEMS, VALUES_ALIGN};
use crate::bitmap::{Parts, check_zero};
use crate::finite::first_bad_value;
use crate::shape::Geometry;
use crate::{Field, FormatError};

/// Checks the arrays and counts the stored values. Reads every byte once.
///
/// # Errors
/// The first thing wrong in the first strip that is wrong.
pub(super) fn validate(
    shape: &Geometry,
    masks: &[u32],
    values: &[u16],
    offsets: &[u64],
) -> Result<usize, FormatError> {
    let parts = Parts {
        shape,
        masks,
        offsets,
        values_len: values.len(),
        slack: SLACK_ELEMS,
        per_unit: 1,
        align: VALUES_ALIGN,
    };
    let nnz = parts.validate(|used, next_start| {
        let (start, end) = (used.start, used.end);
        if let Some(i) = first_bad_value(&values[used]) {
            return Err(FormatError::BadValue {
                index: start + i,
                bits: values[start + i],
            });
        }
        check_zero(Field::Values, values, end, next_start)
    })?;
    let slack = values.len() - SLACK_ELEMS;
    check_zero(Field::Values, values, slack, values.len())?;
    Ok(nnz)
}
