//! What the packed layouts share: masks that say which elements are stored, and where the values of a block start.
//!
//! To validate, every strip is checked on its own: its masks against its offsets, its end against the start of the
//! next strip, its padding, its values. Together these pin down every byte, so there is one encoding of a weight and
//! a kernel that follows masks and offsets stays inside the values.

use std::ops::Range;

use bytemuck::Pod;
use rayon::prelude::*;

use crate::error::check_length;
use crate::finite::first_non_zero;
use crate::shape::{Geometry, STRIP_ROWS};
use crate::{Field, FormatError};

/// The mask of a line, one bit an element.
pub(crate) trait Mask: Pod + Into<u64> + Sync {
    /// Set bits.
    fn ones(self) -> usize;
}

impl Mask for u32 {
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

impl Mask for u64 {
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

/// Writes where every block starts and returns the number of values of each strip, whose values start at multiples
/// of `align` elements.
pub(crate) fn write_offsets<M: Mask>(
    masks: &[M],
    shape: &Geometry,
    align: usize,
    offsets: &mut [u64],
) -> Vec<usize> {
    let mut next = 0usize;
    let mut offsets = offsets.iter_mut();
    masks
        .chunks_exact(shape.lines_per_strip)
        .map(|strip| {
            let start = next;
            for (block, offset) in strip.chunks(shape.lines_per_block).zip(&mut offsets) {
                *offset = next as u64;
                next += block.iter().map(|m| m.ones()).sum::<usize>();
            }
            let count = next - start;
            next = start + count.next_multiple_of(align);
            count
        })
        .collect()
}

/// The part of `values` that belongs to each strip, without its padding. `lengths`: used and padded, a strip.
pub(crate) fn split_strips<T>(
    mut values: &mut [T],
    lengths: impl Iterator<Item = (usize, usize)>,
) -> Vec<&mut [T]> {
    lengths
        .map(|(used, padded)| {
            let (strip, rest) = std::mem::take(&mut values).split_at_mut(padded);
            values = rest;
            &mut strip[..used]
        })
        .collect()
}

/// The arrays of a packed weight from elsewhere.
///
/// Values are counted in elements of the weight, of which `per_unit` share an element of the array.
pub(crate) struct Parts<'a, M> {
    pub shape: &'a Geometry,
    pub masks: &'a [M],
    pub offsets: &'a [u64],
    /// Length of the array of values.
    pub values_len: usize,
    /// Elements of the array after the last strip.
    pub slack: usize,
    /// 1, or 2 for nibbles.
    pub per_unit: usize,
    /// Values of a strip start at a multiple of this.
    pub align: usize,
}

impl<M: Mask> Parts<'_, M> {
    /// Checks masks and offsets in parallel and calls `check_values` with the values of every strip and the start of
    /// the next strip, all inside the array. Returns the number of values. The slack is left to the caller.
    ///
    /// # Errors
    /// The first thing wrong in the first strip that is wrong.
    pub fn validate(
        &self,
        check_values: impl Fn(Range<usize>, usize) -> Result<(), FormatError> + Sync,
    ) -> Result<usize, FormatError> {
        let shape = self.shape;
        let masks = shape.strips * shape.lines_per_strip;
        check_length(Field::Masks, masks, self.masks.len())?;
        let offsets = shape.offset_count_padded();
        check_length(Field::Offsets, offsets, self.offsets.len())?;
        check_zero(Field::Offsets, self.offsets, shape.offset_count(), offsets)?;
        if self.values_len < self.slack {
            return Err(FormatError::Length {
                field: Field::Values,
                expected: self.slack,
                found: self.values_len,
            });
        }
        let counts: Vec<Result<usize, FormatError>> = (0..shape.strips)
            .into_par_iter()
            .map(|s| {
                let (used, next_start) = self.check_strip(s)?;
                let count = used.len();
                check_values(used, next_start)?;
                Ok(count)
            })
            .collect();
        counts.into_iter().sum()
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
        let padded_end = end.checked_next_multiple_of(self.align as u64);
        let next_start = self.start_after(s);
        check_offset(s, blocks, padded_end.unwrap_or(u64::MAX), next_start)?;
        if next_start > self.slack_start() {
            return Err(FormatError::Length {
                field: Field::Values,
                expected: (next_start as usize / self.per_unit).saturating_add(self.slack),
                found: self.values_len,
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
        (self.values_len - self.slack) as u64 * self.per_unit as u64
    }

    /// Rows from N and columns from K on have no bits.
    fn check_padding_bits(&self, s: usize, masks: &[M]) -> Result<(), FormatError> {
        let columns = self.shape.line_elems / STRIP_ROWS;
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
        let bad = |&(l, &mask): &(usize, &M)| {
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

/// Checks that `array[start..end]` is zero.
pub(crate) fn check_zero<T: Copy + PartialEq + Default>(
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
