//! Weights as a bitmap and the values that are not zero.
//!
//! ```text
//! strip s   rows 16s .. 16s+15                              lines_per_strip = k_padded / P lines
//! line  l   16 P elements: element P j + p is W[16s + j, P l + p]
//! masks     [strips][lines_per_strip]                       bit i set: element i is not 0; u32 or u64
//! values    for every strip the elements that are not 0, in line and then element order, as `Element` stores them; zeros up to
//!           the next multiple of 64 bytes after each strip, and 64 zero bytes more at the very end
//! offsets   u64 [strips][blocks_per_strip]                  index into values, in elements, of the first of a block of 512
//!           columns; zeros up to a multiple of 8 entries
//! ```
//!
//! A line has P columns: 2 of bf16, 4 of int8 and int4. Every strip of masks and of values starts on a 64-byte boundary, and a
//! 64-byte load that starts at any value stays inside the tensor. Each weight has exactly one encoding: `validate.rs` refuses any
//! other.

use std::ops::Range;

use crate::element::{Bf16, Element, Quantized, WeightScales, check_scales, geometry};
use crate::lines::{self, check_rows};
use crate::pack::{Packed, pack};
use crate::shape::Geometry;
use crate::validate::Parts;
use crate::{FormatError, Scales, Storage};

/// A packed `[N, K]` weight of elements `E` in strip16 layout, version 1: a bit for every element, and every element that is not
/// zero. A clone shares the memory.
///
/// A value of this type has been packed by this crate or passed every check of `from_parts`.
#[derive(Clone, Debug)]
pub struct Sparse<E: Element> {
    shape: Geometry,
    nnz: usize,
    masks: Storage<E::Mask>,
    values: Storage<E::Unit>,
    offsets: Storage<u64>,
    scales: E::Scales,
}

/// What a kernel reads of packed strips.
#[derive(Clone, Copy, Debug)]
pub struct SparseView<'a, E: Element> {
    /// Equally many for each strip.
    pub masks: &'a [E::Mask],
    /// The values of all strips, and 64 bytes of slack.
    pub values: &'a [E::Unit],
    /// Where the values of strip `s` begin: element `s * starts_step`.
    pub starts: &'a [u64],
    /// Entries of `starts` for a strip.
    pub starts_step: usize,
}

impl<'a, E: Element> SparseView<'a, E> {
    /// The masks of strip `s`, which has `lines` lines, and the units of values from its first on.
    ///
    /// # Panics
    /// If there is no such strip.
    #[inline]
    pub fn strip(&self, s: usize, lines: usize) -> (&'a [E::Mask], &'a [E::Unit]) {
        let start = self.starts[s * self.starts_step] as usize / E::PER_UNIT;
        (&self.masks[s * lines..][..lines], &self.values[start..])
    }
}

impl Sparse<Bf16> {
    /// Packs row-major `rows` `[n, k]` of bf16 bits; strips are packed in parallel and the result is the same for any number of
    /// threads.
    ///
    /// # Errors
    /// If the shape is empty or too large, `rows` has not `n * k` elements, an element is NaN or infinite, or memory is refused.
    pub fn pack(rows: &[u16], n: usize, k: usize) -> Result<Self, FormatError> {
        Self::packed(rows, n, k, ())
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel: one pass over the bytes at
    /// about the speed of memory (`benches/rates.rs` measures it).
    ///
    /// # Errors
    /// If the arrays are not exactly what [`Sparse::pack`] would have made: wrong lengths, offsets that disagree with the
    /// masks, padding that is not zero, values that are zero, NaN or infinite.
    pub fn from_parts(
        n: usize,
        k: usize,
        masks: Storage<u32>,
        values: Storage<u16>,
        offsets: Storage<u64>,
    ) -> Result<Self, FormatError> {
        Self::checked(n, k, masks, values, offsets, ())
    }
}

impl<E: Quantized> Sparse<E> {
    /// Packs row-major `levels` `[n, k]`; strips are packed in parallel and the result is the same for any number of threads.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is one that `E` does not have, `scales` are
    /// of another kind than its weights have, or of another shape, or hold something other than finite numbers, or memory is
    /// refused.
    pub fn pack(levels: &[i8], n: usize, k: usize, scales: Scales) -> Result<Self, FormatError> {
        Self::packed(levels, n, k, scales)
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel: one pass over the bytes at
    /// about the speed of memory (`benches/rates.rs` measures it).
    ///
    /// # Errors
    /// If the arrays are not exactly what `pack` would have made: wrong lengths, offsets that disagree with the masks, padding
    /// that is not zero, levels or scales it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        masks: Storage<E::Mask>,
        values: Storage<E::Unit>,
        offsets: Storage<u64>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        Self::checked(n, k, masks, values, offsets, scales)
    }

    /// What the levels are worth.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }
}

impl<E: Element> Sparse<E> {
    fn packed(
        rows: &[E::Value],
        n: usize,
        k: usize,
        scales: E::Scales,
    ) -> Result<Self, FormatError> {
        let shape = geometry::<E>(n, k)?;
        check_rows(rows, &shape)?;
        check_scales::<E>(&scales, &shape, true)?;
        let Packed {
            nnz,
            masks,
            values,
            offsets,
        } = pack::<E>(rows, &shape)?;
        Ok(Self {
            shape,
            nnz,
            masks,
            values,
            offsets,
            scales,
        })
    }

    fn checked(
        n: usize,
        k: usize,
        masks: Storage<E::Mask>,
        values: Storage<E::Unit>,
        offsets: Storage<u64>,
        scales: E::Scales,
    ) -> Result<Self, FormatError> {
        let shape = geometry::<E>(n, k)?;
        let parts = Parts::<E> {
            shape: &shape,
            masks: &masks,
            values: &values,
            offsets: &offsets,
        };
        let nnz = parts.validate()?;
        check_scales::<E>(&scales, &shape, true)?;
        Ok(Self {
            shape,
            nnz,
            masks,
            values,
            offsets,
            scales,
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

    /// K rounded up to whole tiles: to 32 for bf16, to 64 for levels.
    pub fn k_padded(&self) -> usize {
        self.shape.k_padded
    }

    /// Strips of 16 rows.
    pub fn strips(&self) -> usize {
        self.shape.strips
    }

    /// Lines of a strip: half of the padded K for bf16, a quarter for levels.
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
        self.nnz as f64 / (self.n() as f64 * self.k() as f64)
    }

    /// Bytes of masks, values, offsets and scales, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.masks)
            + size_of_val(&*self.values)
            + size_of_val(&*self.offsets)
            + self.scales.bytes()
    }

    /// Bytes of masks, values and scales of the strips before strip `s`.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn bytes_before(&self, s: usize) -> usize {
        // Each strip has equally many masks and scales, and as many values as the offsets say.
        let masks = s * self.lines_per_strip() * size_of::<E::Mask>();
        let values = self.strip_values(s).start / E::PER_UNIT * size_of::<E::Unit>();
        masks + values + self.scales.bytes() / self.strips() * s
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

    /// One mask for each line, strip after strip.
    pub fn masks(&self) -> &[E::Mask] {
        &self.masks
    }

    /// The values of all strips as they are stored, with the padding between strips and the slack at the end.
    pub fn values(&self) -> &[E::Unit] {
        &self.values
    }

    /// Index into the values, in elements, where block `b` of strip `s` starts, at `s * blocks_per_strip + b`.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets[..self.shape.offset_count()]
    }

    /// What a kernel reads.
    pub fn view(&self) -> SparseView<'_, E> {
        SparseView {
            masks: self.masks(),
            values: self.values(),
            starts: self.offsets(),
            starts_step: self.blocks_per_strip(),
        }
    }

    /// Bytes of masks and values that a pass over strip `s` reads.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip_bytes(&self, s: usize) -> usize {
        let masks = self.lines_per_strip() * size_of::<E::Mask>();
        masks + self.strip_values(s).len() / E::PER_UNIT * size_of::<E::Unit>()
    }

    /// Expands strip `s` to its `k_padded * 16` elements in line order, by walking the bits.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [E::Value]) {
        let expected = self.shape.strip_elems();
        assert_eq!(lines.len(), expected, "a strip has {expected} elements");
        let masks = &self.masks[s * self.lines_per_strip()..][..self.lines_per_strip()];
        // Strips start with a whole unit.
        let values = &self.values[self.strip_values(s).start / E::PER_UNIT..];
        let mut next = 0;
        lines.fill(E::Value::default());
        for (line, &mask) in lines.chunks_exact_mut(E::LINE_ELEMS).zip(masks) {
            let mut rest: u64 = mask.into();
            while rest != 0 {
                line[rest.trailing_zeros() as usize] = E::get(values, next);
                next += 1;
                rest &= rest - 1;
            }
        }
    }

    /// The elements of all rows, row-major `[n, k]`: bf16 bits, or levels.
    pub fn decode(&self) -> Vec<E::Value> {
        lines::rows_of_strips::<E>(&self.shape, |s, lines| self.decode_strip(s, lines))
    }

    /// The rows of strip `s`, row-major.
    pub(crate) fn strip_rows(&self, s: usize) -> Vec<E::Value> {
        lines::rows_of_strip::<E>(&self.shape, s, |lines| self.decode_strip(s, lines))
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.shape
    }

    pub(crate) fn scale_set(&self) -> &E::Scales {
        &self.scales
    }

    /// The offsets with their padding, as they are written to a file.
    pub(crate) fn padded_offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Elements from the first value of strip `s` to the first of the next, or to the slack after the last strip.
    fn strip_values(&self, s: usize) -> Range<usize> {
        let start = |s: usize| self.offsets[s * self.blocks_per_strip()] as usize;
        let end = if s + 1 < self.strips() {
            start(s + 1)
        } else {
            (self.values.len() - E::LINE_UNITS) * E::PER_UNIT
        };
        start(s)..end
    }
}
