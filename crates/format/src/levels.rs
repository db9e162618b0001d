//! Ranges of levels.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use crate::FormatError;
use crate::shape::{Geometry, LINE_ELEMS_I8, STRIP_ROWS};

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

/// Index of the first level that may not be stored in a packed weight: 0 or -128.
pub(crate) fn first_bad_stored(levels: &[i8]) -> Option<usize> {
    first(levels, |level| (level == 0) | (level == i8::MIN))
}

/// Index of the first -128, which no weight holds.
pub(crate) fn first_lowest(levels: &[i8]) -> Option<usize> {
    first(levels, |level| level == i8::MIN)
}

/// Index of the first bad level.
fn first(levels: &[i8], bad: impl Fn(i8) -> bool) -> Option<usize> {
    // Without an early exit inside a chunk the common case, nothing found, is vector code.
    const CHUNK: usize = 1024;
    let any_bad = |chunk: &[i8]| chunk.iter().fold(false, |any, &level| any | bad(level));
    let chunk = levels.chunks(CHUNK).position(any_bad)?;
    let start = chunk * CHUNK;
    let in_chunk = levels[start..].iter().position(|&level| bad(level))?;
    Some(start + in_chunk)
}

/// Line and element of the first level of strip `s` that lies outside `[n, k]` and is not 0; `level_at` gives the level
/// at a line and element of the strip.
pub(crate) fn first_padding(
    shape: &Geometry,
    s: usize,
    level_at: impl Fn(usize, usize) -> i8,
) -> Option<(usize, usize)> {
    let rows = shape.rows_in_strip(s);
    // Only the last strip can have padding rows; elsewhere a look at the last tile is enough.
    let first = if rows < STRIP_ROWS { 0 } else { shape.k / 4 };
    let outside = |l: usize, e: usize| e / 4 >= rows || 4 * l + e % 4 >= shape.k;
    (first..shape.lines_per_strip)
        .flat_map(|l| (0..LINE_ELEMS_I8).map(move |e| (l, e)))
        .find(|&(l, e)| outside(l, e) && level_at(l, e) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_level_is_found_in_any_chunk() {
        for at in [0, 1023, 1024, 20_000] {
            let mut levels = vec![1i8; 20_001];
            levels[at] = i8::MIN;
            levels[20_000] = i8::MIN;
            assert_eq!(first_bad_stored(&levels), Some(at));
            assert_eq!(first_lowest(&levels), Some(at));
            let error = check_range(&levels, 7, I8_LEVELS).unwrap_err();
            let found = matches!(error, FormatError::Level { row, col, .. } if (row, col) == (at / 7, at % 7));
            assert!(found, "{error}");
        }
        assert_eq!(first_bad_stored(&[-127, 1, 127]), None);
        assert_eq!(first_bad_stored(&[1, 0]), Some(1));
        assert_eq!(first_lowest(&[-127, 0]), None);
        check_range(&[-127, 127], 1, I8_LEVELS).unwrap();
    }
}
