//! The weight, whatever holds its levels.

use rayon::prelude::*;

use super::validate::validate;
use super::{Bitmap, Form, for_each_compressed_tile};
use crate::bitmap::split_strips;
use crate::dense_bf16::check_rows;
use crate::levels;
use crate::shape::{Geometry, LINE_BYTES, SLACK_BYTES, STRIP_ROWS};
use crate::{FormatError, Scales, Storage};

/// A sparse `[N, K]` weight of quantized levels in strip16 layout: a bit for every element, and every level that is not 0
/// as the form `F` holds it. [`SparseI8`](crate::SparseI8) and [`SparseI4`](crate::SparseI4) are the two there are.
///
/// An element of W is its level times its scale. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct SparseInt<F: Form> {
    bitmap: Bitmap,
    values: Storage<F::Byte>,
    scales: Scales,
}

impl<F: Form> SparseInt<F> {
    /// Levels to which the values of each strip are padded.
    const VALUES_ALIGN: usize = F::PER_BYTE * LINE_BYTES;

    /// Packs row-major `levels` `[n, k]`, of the form's range; strips are packed in parallel and the result is the same
    /// for any number of threads.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is out of range, `scales` are of
    /// another kind than the form's or another shape or hold something other than finite numbers, or memory is refused.
    pub fn pack(levels: &[i8], n: usize, k: usize, scales: Scales) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_rows(levels, &shape)?;
        scales.check(&shape)?;
        F::check_scales(&scales)?;
        levels::check_range(levels, k, F::LEVELS)?;
        let (bitmap, counts) = Bitmap::of(levels, shape, Self::VALUES_ALIGN)?;
        let padded = |count: usize| count.next_multiple_of(Self::VALUES_ALIGN) / F::PER_BYTE;
        let strips: usize = counts.iter().map(|&count| padded(count)).sum();
        let mut values = Storage::zeroed(strips + SLACK_BYTES)?;
        let lengths = counts
            .iter()
            .map(|&count| (count.div_ceil(F::PER_BYTE), padded(count)));
        split_strips(values.unique(), lengths)
            .into_par_iter()
            .zip(levels.par_chunks(STRIP_ROWS * k))
            .for_each(|(values, rows)| {
                let mut at = 0;
                for_each_compressed_tile(rows, k, |kept| {
                    F::write(kept, at, values);
                    at += kept.len();
                });
            });
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
    /// If the arrays are not exactly what [`SparseInt::pack`] would have made: wrong lengths, offsets that disagree with
    /// the masks, padding that is not zero, levels or scales it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        masks: Storage<u64>,
        values: Storage<F::Byte>,
        offsets: Storage<u64>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        let nnz = validate::<F>(&shape, &masks, &values, &offsets)?;
        scales.check(&shape)?;
        F::check_scales(&scales)?;
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

    /// The levels of all strips as they are held, with the padding between strips and the slack at the end.
    pub fn values(&self) -> &[F::Byte] {
        &self.values
    }

    /// Bytes of masks and values that a pass over strip `s` reads.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip_bytes(&self, s: usize) -> usize {
        let end = F::PER_BYTE * (self.values.len() - SLACK_BYTES);
        let levels = self.bitmap.start_after(s, end) - self.bitmap.strip_start(s);
        size_of_val(self.bitmap.strip_masks(s)) + levels / F::PER_BYTE
    }

    /// Expands strip `s` to its `k_padded * 16` levels in line order, by walking the bits.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [i8]) {
        let mut at = self.bitmap.strip_start(s);
        self.bitmap.expand_strip(s, lines, || {
            at += 1;
            F::level(&self.values, at - 1)
        });
    }

    /// The levels of all rows, row-major `[n, k]`.
    pub fn decode(&self) -> Vec<i8> {
        self.bitmap.decode(|s, lines| self.decode_strip(s, lines))
    }
}
