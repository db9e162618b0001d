//! From rows to a bitmap and values: two passes over the rows, masks and counts, then values.

use rayon::prelude::*;

use crate::element::{Element, Mask};
use crate::lines::{self, Tile};
use crate::shape::{Geometry, STRIP_ROWS, TILE_LINES};
use crate::{FormatError, Storage, scan};

/// The arrays of a packed weight.
pub(crate) struct Packed<E: Element> {
    /// Stored values.
    pub nnz: usize,
    pub masks: Storage<E::Mask>,
    pub values: Storage<E::Unit>,
    pub offsets: Storage<u64>,
}

/// Packs row-major `rows` of `shape`, which has as many; strips are packed in parallel.
///
/// # Errors
/// If a value is one that no packed weight has, or memory is refused.
pub(crate) fn pack<E: Element>(
    rows: &[E::Value],
    shape: &Geometry,
) -> Result<Packed<E>, FormatError> {
    let k = shape.k;
    let mut masks = Storage::<E::Mask>::zeroed(shape.strips * shape.lines_per_strip)?;
    let held = masks
        .unique()
        .par_chunks_exact_mut(shape.lines_per_strip)
        .zip(rows.par_chunks(STRIP_ROWS * k))
        .map(|(masks, rows)| {
            write_masks::<E>(rows, k, masks);
            scan::all(rows, |value| E::holds(value, true))
        })
        .reduce(|| true, |a, b| a & b);
    if !held {
        return Err(lines::refused::<E>(rows, k, true));
    }

    let mut offsets = Storage::zeroed(shape.offset_count_padded())?;
    let counts = write_offsets::<E>(&masks, shape, offsets.unique());
    let padded = |count: usize| count.next_multiple_of(E::VALUES_ALIGN) / E::PER_UNIT;
    let units: usize = counts.iter().map(|&count| padded(count)).sum();
    let mut values = Storage::<E::Unit>::zeroed(units + E::LINE_UNITS)?;
    let lengths = counts.iter().map(|&count| padded(count));
    split_strips(values.unique(), lengths)
        .into_par_iter()
        .zip(rows.par_chunks(STRIP_ROWS * k))
        .for_each(|(values, rows)| write_values::<E>(rows, k, values));
    Ok(Packed {
        nnz: counts.iter().sum(),
        masks,
        values,
        offsets,
    })
}

/// Stores the values of `line` whose bits are set in `mask` as those from `at` on; how many there are then.
///
/// Plain Rust; inside a function for a level it becomes code of that level.
#[inline(always)]
pub(crate) fn keep<E: Element>(
    line: &[E::Value],
    mask: E::Mask,
    units: &mut [E::Unit],
    mut at: usize,
) -> usize {
    let mut rest: u64 = mask.into();
    while rest != 0 {
        E::put(units, at, line[rest.trailing_zeros() as usize]);
        at += 1;
        rest &= rest - 1;
    }
    at
}

/// One mask for every line of the strip that holds `rows`.
fn write_masks<E: Element>(rows: &[E::Value], k: usize, masks: &mut [E::Mask]) {
    let mut tile = Tile::<E>::zeroed();
    for (t, masks) in masks.chunks_exact_mut(TILE_LINES).enumerate() {
        tile.gather(rows, k, t * Tile::<E>::COLUMNS);
        let lines = tile.values().chunks_exact(E::LINE_ELEMS);
        for (mask, line) in masks.iter_mut().zip(lines) {
            *mask = E::Mask::from_low(
                line.as_chunks()
                    .0
                    .iter()
                    .map(non_zero_bits)
                    .enumerate()
                    .fold(0, |mask, (i, bits)| mask | u64::from(bits) << (16 * i)),
            );
        }
    }
}

/// Bit i is set if value i of 16 is not zero. Written so that it becomes vector code.
#[inline(always)]
fn non_zero_bits<T: Copy + PartialEq + Default>(values: &[T; 16]) -> u16 {
    values.iter().enumerate().fold(0, |bits, (i, &value)| {
        bits | u16::from(value != T::default()) << i
    })
}

/// Writes where every block starts and returns the number of values of each strip.
fn write_offsets<E: Element>(
    masks: &[E::Mask],
    shape: &Geometry,
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
            next = start + count.next_multiple_of(E::VALUES_ALIGN);
            count
        })
        .collect()
}

/// The parts of `values` that belong to the strips.
fn split_strips<T>(mut values: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    lengths
        .map(|length| {
            let (strip, rest) = std::mem::take(&mut values).split_at_mut(length);
            values = rest;
            strip
        })
        .collect()
}

/// Stores the values that are not zero of the strip that holds `rows`, in line order.
fn write_values<E: Element>(rows: &[E::Value], k: usize, values: &mut [E::Unit]) {
    let mut tile = Tile::<E>::zeroed();
    let mut at = 0;
    for col in (0..k).step_by(Tile::<E>::COLUMNS) {
        tile.gather(rows, k, col);
        at = E::put_non_zero(values, at, tile.values());
    }
}
