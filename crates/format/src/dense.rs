//! Weights with all of their elements, in the order of strip16 lines.

use rayon::prelude::*;

use crate::element::{Bf16, Element, Quantized, WeightScales, check_scales, geometry};
use crate::error::check_length;
use crate::lines::{self, check_rows};
use crate::shape::{Geometry, STRIP_ROWS};
use crate::sparse::Sparse;
use crate::{Field, FormatError, Scales, Storage, scan};

/// A dense `[N, K]` weight of elements `E` in strip and line order: the layout of [`Sparse`] with every element present.
///
/// Element `P j + p` of line `l` of strip `s` is row `16s + j`, column `P l + p`, with P columns to a line. N is padded to 16
/// and K to whole tiles with zeros. An element of a quantized weight is its level times its scale. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct Dense<E: Element> {
    shape: Geometry,
    lines: Storage<E::Unit>,
    scales: E::Scales,
}

impl Dense<Bf16> {
    /// Takes row-major `rows` `[n, k]` of bf16 bits; strips are filled in parallel.
    ///
    /// # Errors
    /// If the shape is empty or too large, `rows` has not `n * k` elements, an element is NaN or infinite, or memory is refused.
    pub fn from_rows(rows: &[u16], n: usize, k: usize) -> Result<Self, FormatError> {
        Self::of_rows(rows, n, k, ())
    }
}

impl<E: Quantized> Dense<E> {
    /// Takes row-major `levels` `[n, k]`; strips are filled in parallel.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is one that `E` does not have, `scales` are
    /// of another kind than its weights have, or of another shape, or hold something other than finite numbers, or memory is
    /// refused.
    pub fn from_rows(
        levels: &[i8],
        n: usize,
        k: usize,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        Self::of_rows(levels, n, k, scales)
    }

    /// Takes arrays from elsewhere, usually from a mapped file, and checks all of them in parallel.
    ///
    /// # Errors
    /// If the arrays are not exactly what `from_rows` would have made: wrong lengths, padding that is not zero, levels or scales
    /// it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        lines: Storage<E::Unit>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = geometry::<E>(n, k)?;
        check_length(
            Field::Levels,
            shape.dense_elems() / E::PER_UNIT,
            lines.len(),
        )?;
        let weight = Self {
            shape,
            lines,
            scales,
        };
        let checked: Vec<Result<(), FormatError>> = (0..shape.strips)
            .into_par_iter()
            .map(|s| weight.check_strip(s))
            .collect();
        checked.into_iter().collect::<Result<(), FormatError>>()?;
        check_scales::<E>(&weight.scales, &shape, false)?;
        Ok(weight)
    }

    /// Checks levels and padding of strip `s`.
    fn check_strip(&self, s: usize) -> Result<(), FormatError> {
        let (shape, strip) = (&self.shape, self.strip(s));
        let first_unit = s * strip.len();
        E::check_dense(strip, first_unit)?;
        let rows = shape.rows_in_strip(s);
        // Only the last strip can have padding rows; elsewhere a look at the last tile is enough.
        let first = if rows < STRIP_ROWS {
            0
        } else {
            shape.k / E::COLUMNS
        };
        let outside = |l: usize, e: usize| {
            e / E::COLUMNS >= rows || E::COLUMNS * l + e % E::COLUMNS >= shape.k
        };
        let padding = (first..shape.lines_per_strip)
            .flat_map(|l| (0..E::LINE_ELEMS).map(move |e| (l, e)))
            .find(|&(l, e)| outside(l, e) && E::dense_value(strip, l, e) != 0);
        match padding {
            None => Ok(()),
            Some((l, e)) => Err(FormatError::Padding {
                field: Field::Levels,
                index: first_unit + E::dense_unit(l, e),
            }),
        }
    }

    /// What the levels are worth.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }
}

impl<E: Element> Dense<E> {
    fn of_rows(
        rows: &[E::Value],
        n: usize,
        k: usize,
        scales: E::Scales,
    ) -> Result<Self, FormatError> {
        let shape = geometry::<E>(n, k)?;
        check_rows(rows, &shape)?;
        check_scales::<E>(&scales, &shape, false)?;
        let rows_of = |s: usize| {
            let end = rows.len().min((s + 1) * STRIP_ROWS * k);
            &rows[s * STRIP_ROWS * k..end]
        };
        let filled = Self::filled(shape, scales, |s, lines| {
            lines::gather_strip::<E>(rows_of(s), k, lines);
            scan::all(rows_of(s), |value| E::holds(value, false))
        })?;
        filled.ok_or_else(|| lines::refused::<E>(rows, k, false))
    }

    /// Expands a packed weight, or gives nothing if it has a value that dense weights do not have. Strips are expanded in
    /// parallel.
    ///
    /// # Errors
    /// If memory is refused.
    pub fn from_sparse<S>(sparse: &Sparse<S>) -> Result<Option<Self>, FormatError>
    where
        S: Element<Value = E::Value, Line = E::Line, Scales = E::Scales>,
    {
        let (shape, scales) = (*sparse.geometry(), sparse.scale_set().clone());
        Self::filled(shape, scales, |s, lines| {
            sparse.decode_strip(s, lines);
            E::DENSE_HOLDS_ALL || scan::all(lines, |value| E::holds(value, false))
        })
    }

    /// A weight whose strips are what `fill` makes of zeros, or nothing if it returns false for one.
    fn filled(
        shape: Geometry,
        scales: E::Scales,
        fill: impl Fn(usize, &mut [E::Value]) -> bool + Sync,
    ) -> Result<Option<Self>, FormatError> {
        let mut lines = Storage::<E::Unit>::zeroed(shape.dense_elems() / E::PER_UNIT)?;
        let all_held = lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems() / E::PER_UNIT)
            .enumerate()
            .map_init(Vec::new, |scratch, (s, strip)| {
                E::store_lines(strip, scratch, |lines| fill(s, lines))
            })
            .reduce(|| true, |a, b| a & b);
        Ok(all_held.then_some(Self {
            shape,
            lines,
            scales,
        }))
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

    /// Elements that are not zero.
    pub fn nnz(&self) -> usize {
        let zero = E::Value::default();
        let count = |strip: &[E::Unit], scratch: &mut Vec<E::Value>| {
            let values = E::load_lines(strip, scratch);
            values.iter().filter(|&&value| value != zero).count()
        };
        // The padding is zero, too.
        self.lines
            .par_chunks_exact(self.strip_units())
            .map_init(Vec::new, |scratch, strip| count(strip, scratch))
            .sum()
    }

    /// Bytes of lines and scales.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines()) + self.scales.bytes()
    }

    /// Bytes of lines and scales of the strips before strip `s`.
    pub fn bytes_before(&self, s: usize) -> usize {
        s * self.strip_bytes() + self.scales.bytes() / self.strips() * s
    }

    /// Bytes of the lines of a strip.
    pub fn strip_bytes(&self) -> usize {
        self.strip_units() * size_of::<E::Unit>()
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

    /// All lines, strip after strip, as they are stored.
    pub fn lines(&self) -> &[E::Unit] {
        &self.lines
    }

    /// The lines of strip `s`, as they are stored.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip(&self, s: usize) -> &[E::Unit] {
        &self.lines[s * self.strip_units()..][..self.strip_units()]
    }

    /// Copies row `i` to `out`, as an embedding lookup does: values times scales.
    ///
    /// # Panics
    /// If there is no row `i` or `out` has not K elements.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let (n, k) = (self.n(), self.k());
        assert!(i < n, "row {i} of a weight of {n} rows");
        assert_eq!(out.len(), k, "row of {k} elements copied to {}", out.len());
        let (strip, first) = (self.strip(i / STRIP_ROWS), E::COLUMNS * (i % STRIP_ROWS));
        for (l, columns) in out.chunks_mut(E::COLUMNS).enumerate() {
            for (p, element) in columns.iter_mut().enumerate() {
                *element = E::to_f32(E::dense_value(strip, l, first + p));
            }
        }
        if let Some(scales) = self.scales.get() {
            scales.apply_to_row(i, self.k_padded(), out);
        }
    }

    /// Expands strip `s` to its `k_padded * 16` elements in line order.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [E::Value]) {
        let expected = self.shape.strip_elems();
        assert_eq!(lines.len(), expected, "a strip has {expected} elements");
        lines.copy_from_slice(E::load_lines(self.strip(s), &mut Vec::new()));
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

    fn strip_units(&self) -> usize {
        self.shape.strip_elems() / E::PER_UNIT
    }
}
