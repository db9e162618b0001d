//! Two passes over the rows: masks and counts, then values.

use rayon::prelude::*;

use super::{SLACK_ELEMS, SparseBf16, VALUES_ALIGN};
use crate::dense_bf16::{check_rows, not_finite};
use crate::shape::{Geometry, LINE_ELEMS_BF16, STRIP_ROWS, TILE_LINES};
use crate::strip::{EMPTY_TILE, TILE_K, gather_tile};
use crate::{FormatError, Storage, finite};

/// Packs row-major `rows` of `shape`.
pub(super) fn pack(rows: &[u16], shape: Geometry) -> Result<SparseBf16, FormatError> {
    check_rows(rows, &shape)?;
    let mut masks = Storage::zeroed(shape.strips * shape.lines_per_strip)?;
    let finite = masks
        .unique()
        .par_chunks_exact_mut(shape.lines_per_strip)
        .zip(rows.par_chunks(STRIP_ROWS * shape.k))
        .map(|(masks, rows)| {
            write_masks(rows, shape.k, masks);
            finite::all_finite(rows)
        })
        .reduce(|| true, |a, b| a & b);
    if !finite {
        return Err(not_finite(rows, shape.k));
    }

    let mut offsets = Storage::zeroed(shape.offset_count_padded())?;
    let counts = write_offsets(&masks, &shape, offsets.unique());
    let nnz = counts.iter().sum();

    let mut values = Storage::zeroed(padded_values(&counts))?;
    split_strips(values.unique(), &counts)
        .into_par_iter()
        .zip(rows.par_chunks(STRIP_ROWS * shape.k))
        .for_each(|(values, rows)| write_values(rows, shape.k, values));
    Ok(SparseBf16 {
        shape,
        nnz,
        masks,
        values,
        offsets,
    })
}

/// One mask for every line of the strip that holds `rows`.
fn write_masks(rows: &[u16], k: usize, masks: &mut [u32]) {
    let mut tile = EMPTY_TILE;
    for (t, masks) in masks.chunks_exact_mut(TILE_LINES).enumerate() {
        gather_tile(rows, k, t * TILE_K, &mut tile);
        for (mask, line) in masks.iter_mut().zip(tile.chunks_exact(LINE_ELEMS_BF16)) {
            let (low, high) = line.split_at(16);
            *mask = u32::from(non_zero_bits(low)) | u32::from(non_zero_bits(high)) << 16;
        }
    }
}

/// Bit i is set if element i of 16 is not zero. Written so that it becomes vector code.
fn non_zero_bits(elements: &[u16]) -> u16 {
    elements
        .iter()
        .enumerate()
        .fold(0, |bits, (i, &element)| bits | u16::from(element != 0) << i)
}

/// Writes where every block starts and returns the number of values of each strip.
fn write_offsets(masks: &[u32], shape: &Geometry, offsets: &mut [u64]) -> Vec<usize> {
    let mut next = 0usize;
    let mut offsets = offsets.iter_mut();
    masks
        .chunks_exact(shape.lines_per_strip)
        .map(|strip| {
            let start = next;
            for (block, offset) in strip.chunks(shape.lines_per_block).zip(&mut offsets) {
                *offset = next as u64;
                next += block.iter().map(|m| m.count_ones() as usize).sum::<usize>();
            }
            let count = next - start;
            next = start + count.next_multiple_of(VALUES_ALIGN);
            count
        })
        .collect()
}

/// Elements of the values of strips that hold `counts` values.
fn padded_values(counts: &[usize]) -> usize {
    let strips: usize = counts
        .iter()
        .map(|c| c.next_multiple_of(VALUES_ALIGN))
        .sum();
    strips + SLACK_ELEMS
}

/// The part of `values` that belongs to each strip, without its padding.
fn split_strips<'a>(mut values: &'a mut [u16], counts: &[usize]) -> Vec<&'a mut [u16]> {
    counts
        .iter()
        .map(|&count| {
            let (strip, rest) =
                std::mem::take(&mut values).split_at_mut(count.next_multiple_of(VALUES_ALIGN));
            values = rest;
            &mut strip[..count]
        })
        .collect()
}

/// Copies the elements of the strip that holds `rows` that are not zero, in line order.
fn write_values(rows: &[u16], k: usize, values: &mut [u16]) {
    let mut tile = EMPTY_TILE;
    let mut next = 0;
    for col in (0..k).step_by(TILE_K) {
        gather_tile(rows, k, col, &mut tile);
        for &bits in &tile {
            // No branch on the element: a zero is written to where the next value will go. Behind the last value
            // there is no such place and nothing but zeros is left.
            let Some(value) = values.get_mut(next) else {
                return;
            };
            *value = bits;
            next += usize::from(bits != 0);
        }
    }
}
