//! Proof that arrays from elsewhere are a packed weight.
//!
//! Every strip is checked on its own: its masks against its offsets, its end against the start of the next strip, its padding,
//! its values. Together these pin down every byte, so there is one encoding of a weight and a kernel that follows masks and
//! offsets stays inside the values.

use std::ops::Range;

use rayon::prelude::*;

use crate::element::{Element, Mask};
use crate::error::check_length;
use crate::scan::first_non_zero;
use crate::shape::{Geometry, STRIP_ROWS};
use crate::{Field, FormatError};

/// The arrays of a packed weight from elsewhere.
pub(crate) struct Parts<'a, E: Element> {
    pub shape: &'a Geometry,
    pub masks: &'a [E::Mask],
    pub values: &'a [E::Unit],
    pub offsets: &'a [u64],
}

impl<E: Element> Parts<'_, E> {
    /// Checks the arrays in parallel and counts the stored values. Reads every byte that can be wrong once.
    ///
    /// # Errors
    /// The first thing wrong in the first strip that is wrong.
    pub fn validate(&self) -> Result<usize, FormatError> {
        let shape = self.shape;
        let masks = shape.strips * shape.lines_per_strip;
        check_length(Field::Masks, masks, self.masks.len())?;
        let offsets = shape.offset_count_padded();
        check_length(Field::Offsets, offsets, self.offsets.len())?;
        check_zero(Field::Offsets, self.offsets, shape.offset_count()..offsets)?;
        let units = self.values.len();
        if units < E::LINE_UNITS {
            return Err(FormatError::Length {
                field: Field::Values,
                expected: E::LINE_UNITS,
                found: units,
            });
        }
        let counts: Vec<Result<usize, FormatError>> = (0..shape.strips)
            .into_par_iter()
            .map(|s| {
                let (used, next_start) = self.check_strip(s)?;
                let (count, end) = (used.len(), used.end);
                E::check_stored(self.values, used)?;
                let padding = end.div_ceil(E::PER_UNIT)..next_start / E::PER_UNIT;
                check_zero(Field::Values, self.values, padding)?;
                Ok(count)
            })
            .collect();
        let nnz = counts.into_iter().sum::<Result<usize, FormatError>>()?;
        check_zero(Field::Values, self.values, units - E::LINE_UNITS..units)?;
        Ok(nnz)
    }

    /// Checks masks and offsets of strip `s`. Its values, and where those of the next strip start.
    fn check_strip(&self, s: usize) -> Result<(Range<usize>, usize), FormatError> {
        let lines = self.shape.lines_per_strip;
        let masks = &self.masks[s * lines..][..lines];
        self.check_padding_bits(s, masks)?;

        let blocks = self.shape.blocks_per_strip;
        let offsets = &self.offsets[s * blocks..][..blocks];
        let start = offsets[0];
        // The end of the values before this strip is checked with the strip before it.
        if s == 0 {
            check_offset(s, 0, 0, start)?;
        }
        let mut count = 0;
        for (b, block) in masks.chunks(self.shape.lines_per_block).enumerate() {
            check_offset(s, b, start.saturating_add(count), offsets[b])?;
            count += block.iter().map(|m| m.ones() as u64).sum::<u64>();
        }

        let end = start.saturating_add(count);
        let padded_end = end.checked_next_multiple_of(E::VALUES_ALIGN as u64);
        let next_start = self.start_after(s);
        check_offset(s, blocks, padded_end.unwrap_or(u64::MAX), next_start)?;
        if next_start > self.slack_start() {
            return Err(FormatError::Length {
                field: Field::Values,
                expected: (next_start as usize / E::PER_UNIT).saturating_add(E::LINE_UNITS),
                found: self.values.len(),
            });
        }
        // All fit: they are at most `next_start`, which was just found to be inside the values.
        Ok((start as usize..end as usize, next_start as usize))
    }

    /// Where the strip after `s` starts; after the last strip, where the slack starts.
    fn start_after(&self, s: usize) -> u64 {
        if s + 1 < self.shape.strips {
            self.offsets[(s + 1) * self.shape.blocks_per_strip]
        } else {
            self.slack_start()
        }
    }

    fn slack_start(&self) -> u64 {
        (self.values.len() - E::LINE_UNITS) as u64 * E::PER_UNIT as u64
    }

    /// Rows from N and columns from K on have no bits.
    fn check_padding_bits(&self, s: usize, masks: &[E::Mask]) -> Result<(), FormatError> {
        let columns = E::COLUMNS;
        let rows = self.shape.rows_in_strip(s);
        let row_bits = if rows < STRIP_ROWS {
            u64::MAX << (columns * rows)
        } else {
            0
        };
        // Line `last` holds the first column of padding, if there is one. Its bits are repeated for all 16 rows.
        let (last, inside) = (self.shape.k / columns, self.shape.k % columns);
        let last_bits = (0..STRIP_ROWS).fold(0, |bits, j| {
            bits | ((1u64 << columns) - (1 << inside)) << (columns * j)
        });
        let bad = |&(l, &mask): &(usize, &E::Mask)| {
            let column_bits = match l.cmp(&last) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => last_bits,
                std::cmp::Ordering::Greater => u64::MAX,
            };
            mask.into() & (row_bits | column_bits) != 0
        };
        // Only the last strip can have padding rows; elsewhere a look at the last tile is enough.
        let first = if row_bits == 0 { last } else { 0 };
        match masks.iter().enumerate().skip(first).find(bad) {
            None => Ok(()),
            Some((l, _)) => Err(FormatError::Padding {
                field: Field::Masks,
                index: s * self.shape.lines_per_strip + l,
            }),
        }
    }
}

fn check_offset(strip: usize, block: usize, expected: u64, found: u64) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Offset {
        strip,
        block,
        expected,
        found,
    })
}

/// Checks that this part of an array is zero.
fn check_zero<T: Copy + PartialEq + Default>(
    field: Field,
    array: &[T],
    part: Range<usize>,
) -> Result<(), FormatError> {
    let start = part.start;
    match first_non_zero(&array[part]) {
        None => Ok(()),
        Some(i) => Err(FormatError::Padding {
            field,
            index: start + i,
        }),
    }
}
