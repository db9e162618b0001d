//! int8: a level is a byte.

use rayon::prelude::*;

use super::{Bitmap, for_each_compressed_tile, validate};
use crate::bitmap::split_strips;
use crate::dense_bf16::check_rows;
use crate::levels::{self, I8_LEVELS};
use crate::shape::{Geometry, LINE_BYTES, SLACK_BYTES, STRIP_ROWS};
use crate::{FormatError, Scales, Storage};

/// Levels to which the values of each strip are padded.
const VALUES_ALIGN: usize = LINE_BYTES;
/// Zero levels after the values of the last strip.
const SLACK_ELEMS: usize = SLACK_BYTES;

/// A sparse `[N, K]` int8 weight in strip16 layout: a bit for every element, a byte for every level that is not 0.
///
/// Levels are -127 to 127; an element of W is its level times the scale of its row. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct SparseI8 {
    bitmap: Bitmap,
    values: Storage<i8>,
    scales: Scales,
}

impl SparseI8 {
    /// Packs row-major `levels` `[n, k]`, -127 to 127; strips are packed in parallel and the result is the same for
    /// any number of threads.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is -128, `scales` are not row
    /// scales of this shape or hold something other than finite numbers, or memory is refused.
    pub fn pack(levels: &[i8], n: usize, k: usize, scales: Scales) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_rows(levels, &shape)?;
        scales.check(&shape)?;
        scales.must_be_rows()?;
        levels::check_range(levels, k, I8_LEVELS)?;
        let (bitmap, counts) = Bitmap::of(levels, shape, VALUES_ALIGN)?;
        let padded = |count: usize| count.next_multiple_of(VALUES_ALIGN);
        let strips: usize = counts.iter().map(|&count| padded(count)).sum();
        let mut values = Storage::zeroed(strips + SLACK_ELEMS)?;
        let lengths = counts.iter().map(|&count| (count, padded(count)));
        split_strips(values.unique(), lengths)
            .into_par_iter()
            .zip(levels.par_chunks(STRIP_ROWS * k))
            .for_each(|(values, rows)| write_values(rows, k, values));
        Ok(Self {
            bitmap,
            values,
            scales,
        })
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel at about the speed
    /// of memory (`benches/rates.rs` measures it).
    ///
    /// # Errors
    /// If the arrays are not exactly what [`SparseI8::pack`] would have made: wrong lengths, offsets that
    /// disagree with the masks, padding that is not zero, levels that are 0 or -128, or scales it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        masks: Storage<u64>,
        values: Storage<i8>,
        offsets: Storage<u64>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        let nnz = validate::validate_i8(&shape, &masks, &values, &offsets)?;
        scales.check(&shape)?;
        scales.must_be_rows()?;
        let bitmap = Bitmap {
            shape,
            nnz,
            masks,
            offsets,
        };
        Ok(Self {
            bitmap,
            values,
            scales,
        })
    }

    /// Output rows N.
    pub fn n(&self) -> usize {
        self.bitmap.shape.n
    }

    /// Input columns K.
    pub fn k(&self) -> usize {
        self.bitmap.shape.k
    }

    /// K rounded up to 64.
    pub fn k_padded(&self) -> usize {
        self.bitmap.shape.k_padded
    }

    /// Strips of 16 rows.
    pub fn strips(&self) -> usize {
        self.bitmap.shape.strips
    }

    /// Lines of a strip: a quarter of the padded K.
    pub fn lines_per_strip(&self) -> usize {
        self.bitmap.shape.lines_per_strip
    }

    /// Blocks of 512 columns in a strip; the last may be shorter.
    pub fn blocks_per_strip(&self) -> usize {
        self.bitmap.shape.blocks_per_strip
    }

    /// Stored levels.
    pub fn nnz(&self) -> usize {
        self.bitmap.nnz
    }

    /// Stored levels divided by `n * k`.
    pub fn density(&self) -> f64 {
        self.nnz() as f64 / (self.n() as f64 * self.k() as f64)
    }

    /// Bytes of masks, values, offsets and scales, padding included.
    pub fn packed_bytes(&self) -> usize {
        size_of_val(&*self.bitmap.masks)
            + size_of_val(&*self.values)
            + size_of_val(&*self.bitmap.offsets)
            + self.scales.bytes()
    }

    /// The same weight with what a kernel streams in the program's own memory, see [`Storage::in_memory`].
    ///
    /// # Errors
    /// If memory is refused.
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(Self {
            bitmap: self.bitmap.in_memory()?,
            values: self.values.in_memory()?,
            ..self.clone()
        })
    }

    /// What the levels are worth.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// One u64 for each line, strip after strip.
    pub fn masks(&self) -> &[u64] {
        &self.bitmap.masks
    }

    /// Index into the values, in levels, where block `b` of strip `s` starts, at `s * blocks_per_strip + b`.
    pub fn offsets(&self) -> &[u64] {
        &self.bitmap.offsets[..self.bitmap.shape.offset_count()]
    }

    /// The offsets with their padding, as they are written to a file.
    pub(crate) fn padded_offsets(&self) -> &[u64] {
        &self.bitmap.offsets
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.bitmap.shape
    }

    /// The levels of all strips, with the padding between them and the slack at the end.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// Bytes of masks and values that a pass over strip `s` reads.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip_bytes(&self, s: usize) -> usize {
        let start = self.bitmap.strip_start(s);
        let end = self.bitmap.start_after(s, self.values.len() - SLACK_ELEMS);
        size_of_val(self.bitmap.strip_masks(s)) + end - start
    }

    /// Expands strip `s` to its `k_padded * 16` levels in line order, by walking the bits.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [i8]) {
        let mut values = self.values[self.bitmap.strip_start(s)..].iter();
        let next = || *values.next().expect("a value for every bit");
        self.bitmap.expand_strip(s, lines, next);
    }

    /// The levels of all rows, row-major `[n, k]`.
    pub fn decode(&self) -> Vec<i8> {
        self.bitmap.decode(|s, lines| self.decode_strip(s, lines))
    }
}

/// Copies the levels of the strip that holds `rows` that are not zero, in line order.
fn write_values(rows: &[i8], k: usize, values: &mut [i8]) {
    let mut rest = values;
    for_each_compressed_tile(rows, k, |kept| {
        let (out, after) = std::mem::take(&mut rest).split_at_mut(kept.len());
        out.copy_from_slice(kept);
        rest = after;
    });
}
