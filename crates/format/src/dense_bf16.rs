//! Dense bf16 weights in the order of strip16 lines.

use rayon::prelude::*;

use crate::bitmap_bf16::SparseBf16;
use crate::error::check_length;
use crate::shape::{Geometry, LINE_ELEMS_BF16, STRIP_ROWS};
use crate::{Field, FormatError, Storage, finite, strip};

/// A dense `[N, K]` bf16 weight in strip and line order: the layout of [`SparseBf16`] with every element present.
///
/// Strip `s` is lines of 32 elements; element `2j + p` of line `l` is row `16s + j`, column `2l + p`.
/// N is padded to 16 and K to 32 with zeros. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct DenseBf16 {
    shape: Geometry,
    lines: Storage<u16>,
}

impl DenseBf16 {
    /// Takes row-major `rows` `[n, k]` of bf16 bits; strips are filled in parallel.
    ///
    /// # Errors
    /// If the shape is empty or too large, `rows` has not `n * k` elements, an element is NaN or infinite, or
    /// memory is refused.
    pub fn from_rows(rows: &[u16], n: usize, k: usize) -> Result<Self, FormatError> {
        let shape = Geometry::new(n, k, LINE_ELEMS_BF16)?;
        check_rows(rows, &shape)?;
        let mut lines = Storage::zeroed(shape.dense_elems())?;
        let finite = lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems())
            .zip(rows.par_chunks(STRIP_ROWS * k))
            .map(|(lines, rows)| {
                strip::gather_strip::<2, _>(rows, k, lines);
                finite::all_finite(rows)
            })
            .reduce(|| true, |a, b| a & b);
        if !finite {
            return Err(not_finite(rows, k));
        }
        Ok(Self { shape, lines })
    }

    /// Expands a packed weight; strips are expanded in parallel.
    ///
    /// # Errors
    /// If memory is refused.
    pub fn from_sparse(sparse: &SparseBf16) -> Result<Self, FormatError> {
        let shape = *sparse.geometry();
        let mut lines = Storage::zeroed(shape.dense_elems())?;
        lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems())
            .enumerate()
            .for_each(|(s, lines)| sparse.decode_strip(s, lines));
        Ok(Self { shape, lines })
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

    /// All lines, strip after strip.
    pub fn lines(&self) -> &[u16] {
        &self.lines
    }

    /// The lines of strip `s`, 16 times the padded K elements.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip(&self, s: usize) -> &[u16] {
        &self.lines[s * self.shape.strip_elems()..][..self.shape.strip_elems()]
    }

    /// Bytes of the lines.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines())
    }

    /// Copies row `i` to `out`, as an embedding lookup does.
    ///
    /// # Panics
    /// If there is no row `i` or `out` has not K elements.
    pub fn row(&self, i: usize, out: &mut [u16]) {
        let (n, k) = (self.n(), self.k());
        assert!(i < n, "row {i} of a weight of {n} rows");
        assert_eq!(out.len(), k, "row of {k} elements copied to {}", out.len());
        let j = i % STRIP_ROWS;
        let lines = self.strip(i / STRIP_ROWS).chunks_exact(LINE_ELEMS_BF16);
        for (pair, line) in out.chunks_mut(2).zip(lines) {
            pair.copy_from_slice(&line[2 * j..][..pair.len()]);
        }
    }

    /// All rows, row-major `[n, k]`.
    pub fn to_rows(&self) -> Vec<u16> {
        let k = self.k();
        let mut rows = vec![0; self.n() * k];
        rows.par_chunks_mut(STRIP_ROWS * k)
            .enumerate()
            .for_each(|(s, rows)| strip::scatter_strip::<2, _>(self.strip(s), rows, k));
        rows
    }
}

/// Checks that `rows` has the logical size.
pub(crate) fn check_rows<T>(rows: &[T], shape: &Geometry) -> Result<(), FormatError> {
    check_length(Field::Rows, shape.n * shape.k, rows.len())
}

/// The error for the first NaN or infinity of `rows`, of which there is one.
pub(crate) fn not_finite(rows: &[u16], k: usize) -> FormatError {
    let (row, col) = strip::first_not_finite(rows, k).expect("a strip with a bad element was seen");
    FormatError::NotFinite {
        row,
        col,
        bits: rows[row * k + col],
    }
}
