//! How levels are held: a byte for each of int8, a nibble for each of int4.

use std::fmt::Debug;
use std::ops::{Range, RangeInclusive};

use bytemuck::Pod;

use crate::levels::{I8_LEVELS, SPARSE_I4_LEVELS, first_bad_stored};
use crate::{Field, FormatError, Scales};

/// What differs between packed int8 and int4 weights.
pub trait Form: Clone + Debug {
    /// A byte of levels.
    type Byte: Pod + Debug + Default + PartialEq + Send + Sync;
    /// Levels in it.
    const PER_BYTE: usize;
    /// Levels that can be packed.
    const LEVELS: RangeInclusive<i8>;

    /// # Errors
    /// If they are of another kind than such weights have.
    fn check_scales(scales: &Scales) -> Result<(), FormatError>;

    /// Checks the levels `used` of a strip, and what shares the last byte with them.
    ///
    /// # Errors
    /// If a level is one that is never stored, or the padding in the last byte is not zero.
    fn check_strip(values: &[Self::Byte], used: Range<usize>) -> Result<(), FormatError>;

    /// Writes levels that are not 0 as those from `at` on; `values` is zero from there on.
    fn write(levels: &[i8], at: usize, values: &mut [Self::Byte]);

    /// Level `at`.
    fn level(values: &[Self::Byte], at: usize) -> i8;
}

/// Levels of -127 to 127, a byte each; the scales are of rows.
#[derive(Clone, Debug)]
pub enum Bytes {}

impl Form for Bytes {
    type Byte = i8;
    const PER_BYTE: usize = 1;
    const LEVELS: RangeInclusive<i8> = I8_LEVELS;

    fn check_scales(scales: &Scales) -> Result<(), FormatError> {
        scales.must_be_rows()
    }

    fn check_strip(values: &[i8], used: Range<usize>) -> Result<(), FormatError> {
        match first_bad_stored(&values[used.clone()]) {
            None => Ok(()),
            Some(i) => Err(FormatError::BadLevel {
                index: used.start + i,
                level: values[used.start + i],
            }),
        }
    }

    fn write(levels: &[i8], at: usize, values: &mut [i8]) {
        values[at..][..levels.len()].copy_from_slice(levels);
    }

    fn level(values: &[i8], at: usize) -> i8 {
        values[at]
    }
}

/// Levels of -8 to -1 and 1 to 8 by 16 codes, two to a byte, the low nibble first: code `c` is level `c - 8` below 8 and
/// `c - 7` from 8 on. The scales are of groups of columns.
#[derive(Clone, Debug)]
pub enum Nibbles {}

impl Form for Nibbles {
    type Byte = u8;
    const PER_BYTE: usize = 2;
    const LEVELS: RangeInclusive<i8> = SPARSE_I4_LEVELS;

    fn check_scales(scales: &Scales) -> Result<(), FormatError> {
        scales.must_be_groups()
    }

    /// Every nibble is a level, so there is only padding to check.
    fn check_strip(values: &[u8], used: Range<usize>) -> Result<(), FormatError> {
        let end = used.end;
        if end % 2 == 1 && values[end / 2] >> 4 != 0 {
            return Err(FormatError::Padding {
                field: Field::Values,
                index: end / 2,
            });
        }
        Ok(())
    }

    fn write(levels: &[i8], at: usize, values: &mut [u8]) {
        for (i, &level) in (at..).zip(levels) {
            let code = (level + if level < 0 { 8 } else { 7 }) as u8;
            values[i / 2] |= code << (4 * (i % 2));
        }
    }

    fn level(values: &[u8], at: usize) -> i8 {
        let code = values[at / 2] >> (4 * (at % 2)) & 15;
        code as i8 - if code < 8 { 8 } else { 7 }
    }
}
