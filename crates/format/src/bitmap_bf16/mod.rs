//! bf16 weights as a bitmap and the elements that are not zero.
//!
//! ```text
//! strip s   rows 16s .. 16s+15                              lines_per_strip = k_padded / 2 lines
//! line  l   32 elements: element 2j + p is W[16s + j, 2l + p]
//! masks     u32 [strips][lines_per_strip]                   bit i set: element i has bits other than 0x0000
//! values    u16, for every strip the bits of the elements whose mask bit is set, in line and then element order;
//!           zeros up to the next multiple of 32 after each strip, and 32 zeros more at the very end
//! offsets   u64 [strips][blocks_per_strip]                  index into values of the first value of a block of 512
//!           columns; zeros up to a multiple of 8 entries
//! ```
//!
//! So every strip of masks and of values starts on a 64-byte boundary, a 64-byte load that starts at any value
//! stays inside the tensor, and each array is a whole number of 64-byte lines. -0.0 has bits 0x8000 and is a
//! stored value; only +0.0 is left out. Each weight has exactly one encoding: `validate.rs` refuses any other.

mod pack;
mod validate;

use rayon::prelude::*;

use crate::shape::{Geometry, LINE_BYTES, LINE_ELEMS_BF16, SLACK_BYTES, STRIP_ROWS};
use crate::{FormatError, Storage, strip};

/// Elements to which the values of each strip are padded.
const VALUES_ALIGN: usize = LINE_BYTES / size_of::<u16>();
/// Zero elements after the values of the last strip.
const SLACK_ELEMS: usize = SLACK_BYTES / size_of::<u16>();

/// A sparse `[N, K]` bf16 weight in strip16 layout, version 1. A clone shares the memory.
///
/// A value of this type has been packed by this crate or passed every check of [`SparseBf16::from_parts`].
#[derive(Clone, Debug)]
pub struct SparseBf16 {
    shape: Geometry,
    nnz: usize,
    masks: Storage<u32>,
    values: Storage<u16>,
    offsets: Storage<u64>,
}

impl SparseBf16 {
    /// Packs row-major `rows` `[n, k]` of bf16 bits; strips are packed in parallel and the result is the same for
    /// any number of threads.
    ///
    /// # Errors
    /// If the shape is empty or too large, `rows` has not `n * k` elements, an element is NaN or infinite, or
    /// memory is refused.
    pub fn pack(rows: &[u16], n: usize, k: usize) -> Result<Self, FormatError> {
        pack::pack(rows, Geometry::new(n, k, LINE_ELEMS_BF16)?)
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel: one pass over
    /// the bytes at about the speed of memory (`benches/rates.rs` measures it).
    ///
    /// # Errors
    /// If the arrays are not exactly what [`SparseBf16::pack`] would have made: wrong lengths, offsets that
    /// disagree with the masks, padding that is not zero, values that are zero, NaN or infinite.
    pub fn from_parts(
        n: usize,
        k: usize,
        masks: Storage<u32>,
        values: Storage<u16>,
        offsets: Storage<u64>,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::new(n, k, LINE_ELEMS_BF16)?;
        let nnz = validate::validate(&shape, &masks, &values, &offsets)?;
        Ok(Self {
            shape,
            nnz,
            masks,
            values,
            offsets,
        })
    }

    /// Output rows N.
    pub fn n(&self) -> usize {
        self.shape.n
    }

    /// Input columns K.
    pub fn k(&self) -> usize {
        self.shape.k
    }

    /// K rounded up to 32.
    pub fn k_padded(&self) -> usize {
        self.shape.k_padded
    }

    /// Strips of 16 rows.
    pub fn strips(&self) -> usize {
        self.shape.strips
    }

    /// Lines of a strip: half of the padded K.
    pub fn lines_per_strip(&self) -> usize {
        self.shape.lines_per_strip
    }

    /// Blocks of 512 columns in a strip; the last may be shorter.
    pub fn blocks_per_strip(&self) -> usize {
        self.shape.blocks_per_strip
    }

    /// Stored values.
    pub fn nnz(&self) -> usize {
        self.nnz
    }

    /// Stored values divided by `n * k`.
    pub fn density(&self) -> f64 {
        self.nnz as f64 / (self.shape.n as f64 * self.shape.k as f64)
    }

    /// Bytes of masks, values and offsets, padding included.
    pub fn packed_bytes(&self) -> usize {
        size_of_val(&*self.masks) + size_of_val(&*self.values) + size_of_val(&*self.offsets)
    }

    /// The same weight with what a kernel streams in the program's own memory, see [`Storage::in_memory`].
    ///
    /// # Errors
    /// If memory is refused.
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(Self {
            masks: self.masks.in_memory()?,
            values: self.values.in_memory()?,
            ..self.clone()
        })
    }

    /// One u32 for each line, strip after strip.
    pub fn masks(&self) -> &[u32] {
        &self.masks
    }

    /// The values of all strips, with the padding between them and the slack at the end.
    pub fn values(&self) -> &[u16] {
        &self.values
    }

    /// Index into the values where block `b` of strip `s` starts, at `s * blocks_per_strip + b`.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets[..self.shape.offset_count()]
    }

    /// Bytes of masks and values that a pass over strip `s` reads.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip_bytes(&self, s: usize) -> usize {
        let start = self.strip_start(s);
        let end = if s + 1 < self.strips() {
            self.strip_start(s + 1)
        } else {
            self.values.len() - SLACK_ELEMS
        };
        self.lines_per_strip() * size_of::<u32>() + (end - start) * size_of::<u16>()
    }

    /// Expands strip `s` to its `k_padded * 16` elements in line order, by walking the bits.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [u16]) {
        let expected = self.shape.strip_elems();
        assert_eq!(lines.len(), expected, "a strip has {expected} elements");
        let masks = &self.masks[s * self.lines_per_strip()..][..self.lines_per_strip()];
        let mut values = &self.values[self.strip_start(s)..];
        lines.fill(0);
        for (line, &mask) in lines.chunks_exact_mut(LINE_ELEMS_BF16).zip(masks) {
            let (of_line, rest) = values.split_at(mask.count_ones() as usize);
            let mut mask = mask;
            for &bits in of_line {
                line[mask.trailing_zeros() as usize] = bits;
                mask &= mask - 1;
            }
            values = rest;
        }
    }

    /// Expands all rows, row-major `[n, k]`.
    pub fn decode(&self) -> Vec<u16> {
        let k = self.k();
        let mut rows = vec![0; self.n() * k];
        rows.par_chunks_mut(STRIP_ROWS * k)
            .enumerate()
            .for_each_init(
                || vec![0; self.shape.strip_elems()],
                |lines, (s, rows)| {
                    self.decode_strip(s, lines);
                    strip::scatter_strip::<2, _>(lines, rows, k);
                },
            );
        rows
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.shape
    }

    /// The offsets with their padding, as they are written to a file.
    pub(crate) fn padded_offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Index of the first value of strip `s`.
    fn strip_start(&self, s: usize) -> usize {
        self.offsets[s * self.shape.blocks_per_strip] as usize
    }
}
