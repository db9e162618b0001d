//! Two passes over the rows: masks and counts, then values.

use rayon::prelude::*;

use super::{SLACK_ELEMS, SparseBf16, VALUES_ALIGN};
use crate::bitmap::{split_strips, write_offsets};
use crate::dense_bf16::{check_rows, not_finite};
use crate::shape::{Geometry, LINE_ELEMS_BF16, STRIP_ROWS, TILE_LINES};
use crate::strip::gather_tile;
use crate::{FormatError, Storage, finite};

/// Columns of a tile: a pair for each of its lines.
const TILE_K: usize = 2 * TILE_LINES;
const EMPTY_TILE: [u16; TILE_K * STRIP_ROWS] = [0; TILE_K * STRIP_ROWS];

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
    let counts = write_offsets(&masks, &shape, VALUES_ALIGN, offsets.unique());
    let nnz = counts.iter().sum();

    let padded = |count: usize| count.next_multiple_of(VALUES_ALIGN);
    let strips: usize = counts.iter().map(|&count| padded(count)).sum();
    let mut values = Storage::zeroed(strips + SLACK_ELEMS)?;
    let lengths = counts.iter().map(|&count| (count, padded(count)));
    split_strips(values.unique(), lengths)
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
        gather_tile::<2, _>(rows, k, t * TILE_K, &mut tile);
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

/// Copies the elements of the strip that holds `rows` that are not zero, in line order.
fn write_values(rows: &[u16], k: usize, values: &mut [u16]) {
    let mut tile = EMPTY_TILE;
    let mut next = 0;
    for col in (0..k).step_by(TILE_K) {
        gather_tile::<2, _>(rows, k, col, &mut tile);
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
