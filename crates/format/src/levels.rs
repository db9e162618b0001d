//! Ranges of levels.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use crate::FormatError;

/// Levels of int8 weights: symmetric, so that a product of two fits 15 bits and a sign.
pub(crate) const I8_LEVELS: RangeInclusive<i8> = -127..=127;
/// Levels of dense int4 weights.
pub(crate) const DENSE_I4_LEVELS: RangeInclusive<i8> = -8..=7;
/// Levels of packed int4 weights: 16 that are not zero, and the zero that is not stored.
pub(crate) const SPARSE_I4_LEVELS: RangeInclusive<i8> = -8..=8;

/// Checks that row-major `levels` of rows of `k` lie in `range`.
///
/// # Errors
/// [`FormatError::Level`] with the first that does not.
pub(crate) fn check_range(
    levels: &[i8],
    k: usize,
    range: RangeInclusive<i8>,
) -> Result<(), FormatError> {
    let (lowest, highest) = (*range.start(), *range.end());
    // Without an early exit inside a chunk the common case, nothing found, is vector code.
    const CHUNK: usize = 1 << 14;
    let bad = |&level: &i8| (level < lowest) | (level > highest);
    let Some(chunk) = levels
        .par_chunks(CHUNK)
        .position_first(|chunk| chunk.iter().fold(false, |any, level| any | bad(level)))
    else {
        return Ok(());
    };
    let start = chunk * CHUNK;
    let i = start
        + levels[start..]
            .iter()
            .position(bad)
            .expect("seen in this chunk");
    Err(FormatError::Level {
        row: i / k,
        col: i % k,
        level: levels[i],
        lowest,
        highest,
    })
}
