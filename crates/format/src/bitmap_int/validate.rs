//! Proof that arrays from elsewhere are a packed int8 or int4 weight.

use super::Form;
use crate::bitmap::{Parts, check_zero};
use crate::shape::{Geometry, LINE_BYTES, SLACK_BYTES};
use crate::{Field, FormatError};

/// Checks the arrays of a weight and counts the stored levels. Reads every byte that can be wrong once.
///
/// # Errors
/// The first thing wrong in the first strip that is wrong.
pub(super) fn validate<F: Form>(
    shape: &Geometry,
    masks: &[u64],
    values: &[F::Byte],
    offsets: &[u64],
) -> Result<usize, FormatError> {
    let parts = Parts {
        shape,
        masks,
        offsets,
        values_len: values.len(),
        slack: SLACK_BYTES,
        per_unit: F::PER_BYTE,
        align: F::PER_BYTE * LINE_BYTES,
    };
    let zeros = |from, to| check_zero(Field::Values, values, from, to);
    let nnz = parts.validate(|used, next_start| {
        let end = used.end;
        F::check_strip(values, used)?;
        zeros(end.div_ceil(F::PER_BYTE), next_start / F::PER_BYTE)
    })?;
    zeros(values.len() - SLACK_BYTES, values.len())?;
    Ok(nnz)
}
