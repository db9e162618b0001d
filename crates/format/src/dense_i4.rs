//! Dense int4 weights in the order of strip16 lines.

use rayon::prelude::*;

use crate::dense_bf16::check_rows;
use crate::error::check_length;
use crate::levels::{self, DENSE_I4_LEVELS};
use crate::shape::{Geometry, LINE_BYTES, LINE_ELEMS_I8, STRIP_ROWS};
use crate::{Field, FormatError, Scales, SparseI4, Storage, strip};

/// A dense `[N, K]` int4 weight in strip and line order.
///
/// A level of -8 to 7 is stored as its code, the level plus 8. Lines are those of [`crate::DenseI8`]; two of them
/// share 64 bytes: byte `i` of bytes `64t..64t + 64` of a strip holds the code of element `i` of line `2t` in its
/// low and of line `2t + 1` in its high nibble. N is padded to 16 and K to 64 with level 0, so code 8. An element
/// of W is its level times the scale of its group of columns. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct DenseI4 {
    shape: Geometry,
    lines: Storage<u8>,
    scales: Scales,
}

impl DenseI4 {
    /// Takes row-major `levels` `[n, k]`, -8 to 7; strips are filled in parallel.
    ///
    /// # Errors
    /// If the shape is empty or too large, `levels` has not `n * k` elements, a level is out of range, `scales` are
    /// not group scales of this shape or hold something other than finite numbers, or memory is refused.
    pub fn from_rows(
        levels: &[i8],
        n: usize,
        k: usize,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_rows(levels, &shape)?;
        scales.check(&shape)?;
        scales.must_be_groups()?;
        levels::check_range(levels, k, DENSE_I4_LEVELS)?;
        let mut lines = Storage::zeroed(shape.dense_elems() / 2)?;
        lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems() / 2)
            .zip(levels.par_chunks(STRIP_ROWS * k))
            .for_each_init(
                || vec![0i8; shape.strip_elems()],
                |strip, (lines, rows)| {
                    strip::gather_strip::<4, _>(rows, k, strip);
                    write_codes(strip, lines);
                },
            );
        Ok(Self {
            shape,
            lines,
            scales,
        })
    }

    /// Expands a packed weight, or gives nothing if it has a level of 8, for which there is no code. Strips are expanded in
    /// parallel.
    ///
    /// # Errors
    /// If memory is refused.
    pub fn from_sparse(sparse: &SparseI4) -> Result<Option<Self>, FormatError> {
        let shape = *sparse.geometry();
        let mut lines = Storage::zeroed(shape.dense_elems() / 2)?;
        let all_fit = lines
            .unique()
            .par_chunks_exact_mut(shape.strip_elems() / 2)
            .enumerate()
            .map_init(
                || vec![0i8; shape.strip_elems()],
                |strip, (s, lines)| {
                    sparse.decode_strip(s, strip);
                    write_codes(strip, lines);
                    strip.iter().all(|level| DENSE_I4_LEVELS.contains(level))
                },
            )
            .reduce(|| true, |a, b| a & b);
        let scales = sparse.scales().clone();
        Ok(all_fit.then_some(Self {
            shape,
            lines,
            scales,
        }))
    }

    /// Takes arrays from elsewhere, usually from a mapped file. Every code is a level, so only the padding is read.
    ///
    /// # Errors
    /// If the arrays are not exactly what [`DenseI4::from_rows`] would have made: wrong lengths, padding that is not
    /// level 0, or scales it would refuse.
    pub fn from_parts(
        n: usize,
        k: usize,
        lines: Storage<u8>,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_length(Field::Levels, shape.dense_elems() / 2, lines.len())?;
        scales.check(&shape)?;
        scales.must_be_groups()?;
        let weight = Self {
            shape,
            lines,
            scales,
        };
        let place = |l: usize, e: usize| l / 2 * LINE_BYTES + e;
        for s in 0..shape.strips {
            let strip = weight.strip(s);
            let level_at = |l: usize, e: usize| level(strip[place(l, e)] >> (4 * (l % 2)));
            if let Some((l, e)) = levels::first_padding(&shape, s, level_at) {
                return Err(FormatError::Padding {
                    field: Field::Levels,
                    index: s * strip.len() + place(l, e),
                });
            }
        }
        Ok(weight)
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

    /// Lines of a strip: a quarter of the padded K, a multiple of 16.
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

    /// What the levels are worth: group scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// All lines, strip after strip, 32 bytes a line.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// The lines of strip `s`, 8 times the padded K bytes.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip(&self, s: usize) -> &[u8] {
        let bytes = self.shape.strip_elems() / 2;
        &self.lines[s * bytes..][..bytes]
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
        let pairs = self.strip(i / STRIP_ROWS).chunks_exact(LINE_BYTES);
        for (columns, pair) in out.chunks_mut(8).zip(pairs) {
            for (c, element) in columns.iter_mut().enumerate() {
                let byte = pair[4 * j + c % 4];
                *element = f32::from(level(byte >> (4 * (c / 4))));
            }
        }
        self.scales.apply_to_row(i, self.k_padded(), out);
    }

    /// Expands strip `s` to its `k_padded * 16` levels in line order.
    ///
    /// # Panics
    /// If there is no strip `s` or `lines` has another length.
    pub fn decode_strip(&self, s: usize, lines: &mut [i8]) {
        let expected = self.shape.strip_elems();
        assert_eq!(lines.len(), expected, "a strip has {expected} elements");
        let pairs = self.strip(s).chunks_exact(LINE_BYTES);
        for (out, pair) in lines.chunks_exact_mut(2 * LINE_ELEMS_I8).zip(pairs) {
            let (even, odd) = out.split_at_mut(LINE_ELEMS_I8);
            for ((even, odd), &byte) in even.iter_mut().zip(odd).zip(pair) {
                (*even, *odd) = (level(byte), level(byte >> 4));
            }
        }
    }

    /// The levels of all rows, row-major `[n, k]`.
    pub fn to_rows(&self) -> Vec<i8> {
        let k = self.k();
        let mut rows = vec![0; self.n() * k];
        rows.par_chunks_mut(STRIP_ROWS * k)
            .enumerate()
            .for_each_init(
                || vec![0; self.shape.strip_elems()],
                |lines, (s, rows)| {
                    self.decode_strip(s, lines);
                    strip::scatter_strip::<4, _>(lines, rows, k);
                },
            );
        rows
    }
}

/// The level of the code in the low nibble of `byte`.
fn level(byte: u8) -> i8 {
    (byte & 15) as i8 - 8
}

/// Writes the codes of a strip's levels, two lines to 64 bytes.
fn write_codes(levels: &[i8], lines: &mut [u8]) {
    let code = |level: i8| (level + 8) as u8;
    let pairs = levels.chunks_exact(2 * LINE_ELEMS_I8);
    for (out, pair) in lines.chunks_exact_mut(LINE_BYTES).zip(pairs) {
        let (even, odd) = pair.split_at(LINE_ELEMS_I8);
        for ((byte, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
            *byte = code(even) | code(odd) << 4;
        }
    }
}
