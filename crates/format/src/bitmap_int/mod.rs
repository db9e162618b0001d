//! Quantized weights as a bitmap and the levels that are not zero.
//!
//! ```text
//! strip s   rows 16s .. 16s+15                              lines_per_strip = k_padded / 4 lines
//! line  l   64 elements: element 4j + p is W[16s + j, 4l + p]
//! masks     u64 [strips][lines_per_strip]                   bit i set: the level of element i is not 0
//! values    for every strip the levels that are not 0, in line and then element order: bytes for int8, nibbles,
//!           the low one of a byte first, for int4; zeros up to the next multiple of 64 bytes after each strip, and
//!           64 zero bytes more at the very end
//! offsets   u64 [strips][blocks_per_strip]                  index into values, in levels, of the first of a block
//!           of 512 columns; zeros up to a multiple of 8 entries
//! ```
//!
//! So every strip of masks and of values starts on a 64-byte boundary and a 64-byte load that starts at any value
//! stays inside the tensor. Each weight has exactly one encoding: `validate.rs` refuses any
//! other.

mod form;
mod sparse_int;
mod validate;

use rayon::prelude::*;

use form::{Bytes, Form, Nibbles};
use sparse_int::SparseInt;

use crate::bitmap::write_offsets;
use crate::shape::{Geometry, LINE_ELEMS_I8, STRIP_ROWS, TILE_LINES};
use crate::strip::{self, gather_tile};
use crate::{FormatError, Storage};

/// A packed `[N, K]` int8 weight: levels of -127 to 127, a byte each, and the scales of rows.
pub type SparseI8 = SparseInt<Bytes>;
/// A packed `[N, K]` int4 weight: levels of -8 to -1 and 1 to 8, a nibble each, and the scales of groups of columns.
pub type SparseI4 = SparseInt<Nibbles>;

/// Columns of a tile: four for each of its lines.
const TILE_K: usize = 4 * TILE_LINES;
const EMPTY_TILE: [i8; TILE_K * STRIP_ROWS] = [0; TILE_K * STRIP_ROWS];

/// Which elements are stored, and where.
#[derive(Clone, Debug)]
struct Bitmap {
    shape: Geometry,
    nnz: usize,
    masks: Storage<u64>,
    offsets: Storage<u64>,
}

impl Bitmap {
    /// The bitmap of row-major `levels`, and the number of values of each strip. Values of a strip start at a
    /// multiple of `align` levels.
    fn of(levels: &[i8], shape: Geometry, align: usize) -> Result<(Self, Vec<usize>), FormatError> {
        let mut masks = Storage::zeroed(shape.strips * shape.lines_per_strip)?;
        masks
            .unique()
            .par_chunks_exact_mut(shape.lines_per_strip)
            .zip(levels.par_chunks(STRIP_ROWS * shape.k))
            .for_each(|(masks, rows)| write_masks(rows, shape.k, masks));
        let mut offsets = Storage::zeroed(shape.offset_count_padded())?;
        let counts = write_offsets(&masks, &shape, align, offsets.unique());
        let bitmap = Self {
            shape,
            nnz: counts.iter().sum(),
            masks,
            offsets,
        };
        Ok((bitmap, counts))
    }

    /// The same with the masks in the program's own memory.
    fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(Self {
            masks: self.masks.in_memory()?,
            ..self.clone()
        })
    }

    /// The masks of strip `s`.
    fn strip_masks(&self, s: usize) -> &[u64] {
        let lines = self.shape.lines_per_strip;
        &self.masks[s * lines..][..lines]
    }

    /// Index, in levels, of the first value of strip `s`.
    fn strip_start(&self, s: usize) -> usize {
        self.offsets[s * self.shape.blocks_per_strip] as usize
    }

    /// The same of the strip after `s`; after the last strip, where the slack starts: `end`.
    fn start_after(&self, s: usize, end: usize) -> usize {
        if s + 1 < self.shape.strips {
            self.strip_start(s + 1)
        } else {
            end
        }
    }

    /// Puts levels from `next` where the bits of strip `s` are set and 0 elsewhere.
    fn expand_strip(&self, s: usize, lines: &mut [i8], mut next: impl FnMut() -> i8) {
        let expected = self.shape.strip_elems();
        assert_eq!(lines.len(), expected, "a strip has {expected} elements");
        lines.fill(0);
        let lines = lines.chunks_exact_mut(LINE_ELEMS_I8);
        for (line, &mask) in lines.zip(self.strip_masks(s)) {
            let mut mask = mask;
            while mask != 0 {
                line[mask.trailing_zeros() as usize] = next();
                mask &= mask - 1;
            }
        }
    }

    /// Row-major `[n, k]` from what `decode_strip` makes of each strip.
    fn decode(&self, decode_strip: impl Fn(usize, &mut [i8]) + Sync) -> Vec<i8> {
        let k = self.shape.k;
        let mut rows = vec![0; self.shape.n * k];
        rows.par_chunks_mut(STRIP_ROWS * k)
            .enumerate()
            .for_each_init(
                || vec![0; self.shape.strip_elems()],
                |lines, (s, rows)| {
                    decode_strip(s, lines);
                    strip::scatter_strip::<4, _>(lines, rows, k);
                },
            );
        rows
    }
}

/// One mask for every line of the strip that holds `rows`.
fn write_masks(rows: &[i8], k: usize, masks: &mut [u64]) {
    let mut tile = EMPTY_TILE;
    for (t, masks) in masks.chunks_exact_mut(TILE_LINES).enumerate() {
        gather_tile::<4, _>(rows, k, t * TILE_K, &mut tile);
        for (mask, line) in masks.iter_mut().zip(tile.chunks_exact(LINE_ELEMS_I8)) {
            *mask = line
                .chunks_exact(16)
                .map(non_zero_bits)
                .enumerate()
                .fold(0, |mask, (i, bits)| mask | u64::from(bits) << (16 * i));
        }
    }
}

/// Bit i is set if level i of 16 is not zero. Written so that it becomes vector code.
fn non_zero_bits(levels: &[i8]) -> u16 {
    levels
        .iter()
        .enumerate()
        .fold(0, |bits, (i, &level)| bits | u16::from(level != 0) << i)
}

/// Calls `write` with the levels of every tile of the strip that holds `rows`, those that are not zero moved to the
/// front, and their number.
fn for_each_compressed_tile(rows: &[i8], k: usize, mut write: impl FnMut(&[i8])) {
    let mut tile = EMPTY_TILE;
    let mut kept = EMPTY_TILE;
    for col in (0..k).step_by(TILE_K) {
        gather_tile::<4, _>(rows, k, col, &mut tile);
        let mut count = 0;
        for &level in &tile {
            // No branch on the level: a zero is written to where the next value will go.
            kept[count] = level;
            count += usize::from(level != 0);
        }
        write(&kept[..count]);
    }
}
