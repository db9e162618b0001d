//! Dense int8 weights in the order of strip16 lines.

use rayon::prelude::*;

use crate::bitmap_int::{SparseI4, SparseI8};
use crate::dense_bf16::check_rows;
use crate::error::check_length;
use crate::levels::{self, I8_LEVELS};
use crate::shape::{Geometry, LINE_ELEMS_I8, STRIP_ROWS};
use crate::{Field, FormatError, Scales, Storage, strip};

/// A dense `[N, K]` int8 weight in strip and line order: every element of [`SparseI8`]'s layout present.
///
/// Strip `s` is lines of 64 levels; element `4j + p` of line `l` is row `16s + j`, column `4l + p`. N is padded to
/// 16 and K to 64 with zeros. Levels are -127 to 127; an element of W is its level times its scale. A clone shares
/// the memory.
#[derive(Clone, Debug)]
pub struct DenseI8 {
    shape: Geometry,
    lines: Storage<i8>,
    scales: Scales,
}

impl DenseI8 {
    /// Takes row-major `levels` `[n, k]`, -127 to 127; strips are filled in parallel.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is -128, `scales` belong to
    /// another shape or hold something other than finite numbers, or memory is refused.
    pub fn from_rows(
        levels: &[i8],
        n: usize,
        k: usize,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_rows(levels, &shape)?;
        scales.check(&shape)?;
        levels::check_range(levels, k, I8_LEVELS)?;
        let mut lines = Storage::zeroed(shape.dense_elems())?;
        lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems())
            .zip(levels.par_chunks(STRIP_ROWS * k))
            .for_each(|(lines, rows)| strip::gather_strip::<4, _>(rows, k, lines));
        Ok(Self {
            shape,
            lines,
            scales,
        })
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel.
    ///
    /// # Errors
    /// If the arrays are not exactly what [`DenseI8::from_rows`] would have made: wrong lengths, padding that is not
    /// zero, levels of -128, or scales it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        lines: Storage<i8>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_length(Field::Levels, shape.dense_elems(), lines.len())?;
        let strip_elems = shape.strip_elems();
        let check = |(s, strip): (usize, &[i8])| {
            if let Some(i) = levels::first_lowest(strip) {
                let (index, level) = (s * strip_elems + i, strip[i]);
                return Err(FormatError::BadLevel { index, level });
            }
            match levels::first_padding(&shape, s, |l, e| strip[l * LINE_ELEMS_I8 + e]) {
                None => Ok(()),
                Some((l, e)) => Err(FormatError::Padding {
                    field: Field::Levels,
                    index: s * strip_elems + l * LINE_ELEMS_I8 + e,
                }),
            }
        };
        let strips = lines.par_chunks_exact(strip_elems).enumerate().map(check);
        strips
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<(), _>>()?;
        scales.check(&shape)?;
        Ok(Self {
            shape,
            lines,
            scales,
        })
    }

    /// Expands a packed weight; strips are expanded in parallel.
    ///
    /// # Errors
    /// If memory is refused.
    pub fn from_sparse(sparse: &SparseI8) -> Result<Self, FormatError> {
        let decode = |s, lines: &mut [i8]| sparse.decode_strip(s, lines);
        Self::expand(*sparse.geometry(), sparse.scales(), decode)
    }

    /// Expands a packed int4 weight to bytes, levels -8 to 8 with the group scales of the packed weight.
    ///
    /// # Errors
    /// If memory is refused.
    pub fn from_sparse_i4(sparse: &SparseI4) -> Result<Self, FormatError> {
        let decode = |s, lines: &mut [i8]| sparse.decode_strip(s, lines);
        Self::expand(*sparse.geometry(), sparse.scales(), decode)
    }

    fn expand(
        shape: Geometry,
        scales: &Scales,
        decode_strip: impl Fn(usize, &mut [i8]) + Sync,
    ) -> Result<Self, FormatError> {
        let mut lines = Storage::zeroed(shape.dense_elems())?;
        lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems())
            .enumerate()
            .for_each(|(s, lines)| decode_strip(s, lines));
        let scales = scales.clone();
        Ok(Self {
            shape,
            lines,
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

    /// K rounded up to 64.
    pub fn k_padded(&self) -> usize {
        self.shape.k_padded
    }

    /// Strips of 16 rows.
    pub fn strips(&self) -> usize {
        self.shape.strips
    }

    /// Lines of a strip: a quarter of the padded K.
    pub fn lines_per_strip(&self) -> usize {
        self.shape.lines_per_strip
    }

    /// The same weight with what a kernel streams in the program's own memory, see [`Storage::in_memory`].
    ///
    /// # Errors
    /// If memory is refused.
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(Self {
            lines: self.lines.in_memory()?,
            ..self.clone()
        })
    }

    /// What the levels are worth.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// All lines, strip after strip.
    pub fn lines(&self) -> &[i8] {
        &self.lines
    }

    /// The lines of strip `s`, 16 times the padded K levels.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip(&self, s: usize) -> &[i8] {
        &self.lines[s * self.shape.strip_elems()..][..self.shape.strip_elems()]
    }

    /// Bytes of lines and scales.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines()) + self.scales.bytes()
    }

    /// Row `i` of W, levels times scales.
    ///
    /// # Panics
    /// If there is no row `i` or `out` has not K elements.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let (n, k) = (self.n(), self.k());
        assert!(i < n, "row {i} of a weight of {n} rows");
        assert_eq!(out.len(), k, "row of {k} elements copied to {}", out.len());
        let j = i % STRIP_ROWS;
        let lines = self.strip(i / STRIP_ROWS).chunks_exact(LINE_ELEMS_I8);
        for (columns, line) in out.chunks_mut(4).zip(lines) {
            for (element, &level) in columns.iter_mut().zip(&line[4 * j..]) {
                *element = f32::from(level);
            }
        }
        self.scales.apply_to_row(i, self.k_padded(), out);
    }

    /// The levels of all rows, row-major `[n, k]`.
    pub fn to_rows(&self) -> Vec<i8> {
        let k = self.k();
        let mut rows = vec![0; self.n() * k];
        rows.par_chunks_mut(STRIP_ROWS * k)
            .enumerate()
            .for_each(|(s, rows)| strip::scatter_strip::<4, _>(self.strip(s), rows, k));
        rows
    }
}
