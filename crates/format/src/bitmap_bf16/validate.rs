//! Proof that arrays from elsewhere are a packed weight.
//!
//! Every strip is checked on its own: its masks against its offsets, its end against the start of the next strip,
//! its padding, its values. Together these pin down every byte, so there is one encoding of a weight and a kernel
//! that follows masks and offsets stays inside the values.

use rayon::prelude::*;

use super::{SLACK_ELEMS, VALUES_ALIGN};
use crate::error::check_length;
use crate::finite::{first_bad_value, first_non_zero};
use crate::shape::{Geometry, STRIP_ROWS};
use crate::{Field, FormatError};

/// The arrays under test.
struct Parts<'a> {
    shape: &'a Geometry,
    masks: &'a [u32],
    values: &'a [u16],
    offsets: &'a [u64],
}

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
    check_length(
        Field::Masks,
        shape.strips * shape.lines_per_strip,
        masks.len(),
    )?;
    check_length(Field::Offsets, shape.offset_count_padded(), offsets.len())?;
    check_zero(Field::Offsets, offsets, shape.offset_count(), offsets.len())?;
    if values.len() < SLACK_ELEMS {
        return Err(FormatError::Length {
            field: Field::Values,
            expected: SLACK_ELEMS,
            found: values.len(),
        });
    }
    let parts = Parts {
        shape,
        masks,
        values,
        offsets,
    };
    let counts: Vec<Result<usize, FormatError>> = (0..shape.strips)
        .into_par_iter()
        .map(|s| parts.check_strip(s))
        .collect();
    let nnz = counts.into_iter().sum::<Result<usize, FormatError>>()?;
    let slack = values.len() - SLACK_ELEMS;
    check_zero(Field::Values, values, slack, values.len())?;
    Ok(nnz)
}

impl Parts<'_> {
    /// Checks everything that belongs to strip `s` and counts its values.
    fn check_strip(&self, s: usize) -> Result<usize, FormatError> {
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
            count += block.iter().map(|m| u64::from(m.count_ones())).sum::<u64>();
        }

        let end = start.saturating_add(count);
        let padded_end = end.checked_next_multiple_of(VALUES_ALIGN as u64);
        let next_start = self.start_after(s);
        check_offset(s, blocks, padded_end.unwrap_or(u64::MAX), next_start)?;
        if next_start > (self.values.len() - SLACK_ELEMS) as u64 {
            return Err(FormatError::Length {
                field: Field::Values,
                expected: (next_start as usize).saturating_add(SLACK_ELEMS),
                found: self.values.len(),
            });
        }
        // Both fit: they are at most `next_start`, which was just found to be inside the values.
        let (start, end) = (start as usize, end as usize);
        if let Some(i) = first_bad_value(&self.values[start..end]) {
            return Err(FormatError::BadValue {
                index: start + i,
                bits: self.values[start + i],
            });
        }
        check_zero(Field::Values, self.values, end, next_start as usize)?;
        Ok(count as usize)
    }

    /// Where the strip after `s` starts; after the last strip, where the slack starts.
    fn start_after(&self, s: usize) -> u64 {
        if s + 1 < self.shape.strips {
            self.offsets[(s + 1) * self.shape.blocks_per_strip]
        } else {
            (self.values.len() - SLACK_ELEMS) as u64
        }
    }

    /// Rows from N and columns from K on have no bits.
    fn check_padding_bits(&self, s: usize, masks: &[u32]) -> Result<(), FormatError> {
        let rows = self.shape.rows_in_strip(s);
        let row_bits = if rows < STRIP_ROWS {
            u32::MAX << (2 * rows)
        } else {
            0
        };
        // Bit p of a line's pair of columns 2l, 2l + 1 is repeated for all 16 rows.
        let last = self.shape.k / 2;
        let odd_bits = if self.shape.k % 2 == 1 {
            0xaaaa_aaaa
        } else {
            u32::MAX
        };
        let bad = |&(l, &mask): &(usize, &u32)| {
            let column_bits = match l.cmp(&last) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => odd_bits,
                std::cmp::Ordering::Greater => u32::MAX,
            };
            mask & (row_bits | column_bits) != 0
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

/// Checks that `array[start..end]` is zero.
fn check_zero<T: Copy + PartialEq + Default>(
    field: Field,
    array: &[T],
    start: usize,
    end: usize,
) -> Result<(), FormatError> {
    match first_non_zero(&array[start..end]) {
        None => Ok(()),
        Some(i) => Err(FormatError::Padding {
            field,
            index: start + i,
        }),
    }
}
