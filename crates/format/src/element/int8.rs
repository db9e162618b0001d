//! int8: levels of -127 to 127, a byte each.

use std::ops::Range;

use safetensors::Dtype;

use super::codec::{Element, Quantized, move_to_front};
use crate::shape::MOST_LEVELS_K;
use crate::{ElementKind, FormatError, Scales, scan};

/// Levels of -127 to 127, a byte each, four columns to a line; symmetric, so that a product of two fits 15 bits and a sign.
/// A packed weight has scales of rows, a dense one of rows or groups.
#[derive(Clone, Copy, Debug)]
pub enum Int8 {}

impl Quantized for Int8 {}

impl Element for Int8 {
    type Value = i8;
    type Columns = [i8; 4];
    type Line = [i8; 64];
    type Mask = u64;
    type Unit = i8;
    type Scales = Scales;

    const KIND: ElementKind = ElementKind::Int8;
    const UNIT_DTYPE: Dtype = Dtype::I8;
    const PER_UNIT: usize = 1;
    const MOST_K: usize = MOST_LEVELS_K;

    #[inline(always)]
    fn holds(level: i8, _sparse: bool) -> bool {
        level != i8::MIN
    }

    fn refused(level: i8, row: usize, col: usize, _sparse: bool) -> FormatError {
        FormatError::Level {
            row,
            col,
            level,
            lowest: -127,
            highest: 127,
        }
    }

    #[inline(always)]
    fn to_f32(level: i8) -> f32 {
        f32::from(level)
    }

    fn check_scales(scales: &Scales, sparse: bool) -> Result<(), FormatError> {
        if sparse {
            scales.must_be_rows()
        } else {
            Ok(())
        }
    }

    #[inline(always)]
    fn put(units: &mut [i8], at: usize, level: i8) {
        units[at] = level;
    }

    #[inline(always)]
    fn put_non_zero(units: &mut [i8], at: usize, values: &[i8]) -> usize {
        move_to_front(values, units, at)
    }

    #[inline(always)]
    fn get(units: &[i8], at: usize) -> i8 {
        units[at]
    }

    fn check_stored(units: &[i8], used: Range<usize>) -> Result<(), FormatError> {
        let first = used.start;
        match scan::first(&units[used], |level| (level == 0) | (level == i8::MIN)) {
            None => Ok(()),
            Some(i) => Err(FormatError::BadLevel {
                index: first + i,
                level: units[first + i],
            }),
        }
    }

    fn check_dense(strip: &[i8], first: usize) -> Result<(), FormatError> {
        match scan::first(strip, |level| level == i8::MIN) {
            None => Ok(()),
            Some(i) => Err(FormatError::BadLevel {
                index: first + i,
                level: strip[i],
            }),
        }
    }

    #[inline(always)]
    fn dense_unit(l: usize, e: usize) -> usize {
        l * Self::LINE_ELEMS + e
    }

    #[inline(always)]
    fn dense_value(strip: &[i8], l: usize, e: usize) -> i8 {
        strip[Self::dense_unit(l, e)]
    }

    #[inline(always)]
    fn store_lines<R>(
        strip: &mut [i8],
        _scratch: &mut Vec<i8>,
        fill: impl FnOnce(&mut [i8]) -> R,
    ) -> R {
        fill(strip)
    }

    #[inline(always)]
    fn load_lines<'a>(strip: &'a [i8], _scratch: &'a mut Vec<i8>) -> &'a [i8] {
        strip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_the_lowest_are_never_stored() {
        let index = |levels: &[i8]| match Int8::check_stored(levels, 0..levels.len()) {
            Err(FormatError::BadLevel { index, .. }) => Some(index),
            _ => None,
        };
        assert_eq!(index(&[-127, 1, 127]), None);
        assert_eq!(index(&[1, 0]), Some(1));
        assert_eq!(index(&[i8::MIN]), Some(0));
        assert!(Int8::check_dense(&[-127, 0], 0).is_ok());
        assert!(Int8::check_dense(&[i8::MIN], 0).is_err());
    }
}
