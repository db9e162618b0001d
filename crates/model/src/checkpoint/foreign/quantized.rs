//! Levels and scales as other programs write them.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;
use sparamx_format::{FormatError, GROUP_ELEMS, Scales, Weight, WeightFormat, bf16_scale};

/// A matrix of levels: an element is (level - zero point) times scale.
pub(crate) struct Quantized<'a> {
    pub n: usize,
    pub k: usize,
    /// Levels are -8 to 7.
    pub narrow: bool,
    /// Row-major `[n, k]`.
    pub levels: Cow<'a, [i8]>,
    /// Row-major `[n, groups]`, all finite.
    pub scales: Vec<f32>,
    /// Like the scales; `None` if all are 0.
    pub zeros: Option<Vec<i8>>,
    pub groups: Groups,
}

/// Which scale of its row a column has.
pub(crate) enum Groups {
    /// So many consecutive columns share one; divides k.
    Of(usize),
    /// By the column's entry, which is below the number of groups.
    Index(Vec<u32>),
}

impl Quantized<'_> {
    /// Scales of a row.
    fn per_row(&self) -> usize {
        self.scales.len() / self.n
    }

    /// All elements in bf16, and how many of them were rounded.
    pub(super) fn rows(&self) -> (Vec<u16>, usize) {
        let per_row = self.per_row();
        let mut bits = vec![0u16; self.n * self.k];
        let rows = bits
            .par_chunks_mut(self.k)
            .zip(self.levels.par_chunks(self.k))
            .enumerate();
        let row = |(i, (out, levels)): (usize, (&mut [u16], &[i8]))| {
            let first = i * per_row;
            let mut inexact = 0;
            for (column, (out, &level)) in out.iter_mut().zip(levels).enumerate() {
                let group = first
                    + match &self.groups {
                        Groups::Of(columns) => column / columns,
                        Groups::Index(groups) => groups[column] as usize,
                    };
                let zero = self.zeros.as_ref().map_or(0, |zeros| zeros[group]);
                let value = (f32::from(level) - f32::from(zero)) * self.scales[group];
                let rounded = bf16::from_f32(value);
                *out = rounded.to_bits();
                inexact += usize::from(rounded.to_f32() != value);
            }
            inexact
        };
        let inexact = rows.map(row).sum();
        (bits, inexact)
    }

    /// The form in which int8 and int4 kernels have the same values, or what is in the way. `stored` are the elements that a
    /// bitmask keeps, if there is one.
    pub(super) fn form(&self, stored: Option<usize>) -> Result<WeightFormat, &'static str> {
        if self.zeros.is_some() {
            return Err("zero points");
        }
        let Groups::Of(columns) = self.groups else {
            return Err("groups of columns by an index");
        };
        let one_per_row = self.per_row() == 1;
        if self.narrow || !one_per_row {
            if !one_per_row && group_elems(columns).is_none() {
                return Err("groups of other than 32, 64 or 128 columns");
            }
            if self.scales.iter().any(|&scale| bf16_scale(scale) != scale) {
                return Err("scales that bf16 cannot hold");
            }
        }
        if self.narrow {
            return Ok(WeightFormat::DenseI4);
        }
        if self.levels.par_iter().any(|&level| level == i8::MIN) {
            return Err("levels of -128");
        }
        match stored {
            Some(nnz) if one_per_row && gains(self.n, self.k, nnz, 8) => Ok(WeightFormat::SparseI8),
            _ => Ok(WeightFormat::DenseI8),
        }
    }

    /// The weight in the form that [`Quantized::form`] gave.
    pub(super) fn weight(&self, form: WeightFormat) -> Result<Weight, FormatError> {
        let scales = if self.narrow || self.per_row() > 1 {
            self.group_scales()?
        } else {
            Scales::row(&self.scales, self.n)?
        };
        Weight::of_levels(form, &self.levels, self.n, self.k, scales)
    }

    /// Each scale as often as it takes groups of a size that kernels have. One for a whole row fits any.
    fn group_scales(&self) -> Result<Scales, FormatError> {
        let [.., largest] = GROUP_ELEMS;
        let columns = match self.groups {
            Groups::Of(columns) => columns,
            Groups::Index(_) => unreachable!("not a form of kernels"),
        };
        let elems = match self.per_row() {
            1 => largest,
            _ => group_elems(columns).unwrap_or(largest),
        };
        let times = columns.div_ceil(elems);
        let scales: Vec<f32> = self
            .scales
            .iter()
            .flat_map(|&scale| std::iter::repeat_n(scale, times))
            .collect();
        Scales::group(&scales, self.n, self.k, elems)
    }
}

/// The largest group of kernels that so many columns are a multiple of.
fn group_elems(columns: usize) -> Option<usize> {
    GROUP_ELEMS
        .into_iter()
        .rev()
        .find(|&elems| columns.is_multiple_of(elems))
}

/// Whether a bitmap and `nnz` elements of so many bits take less than all elements.
pub(super) fn gains(n: usize, k: usize, nnz: usize, bits: usize) -> bool {
    n * k + nnz * bits < n * k * bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(narrow: bool, columns: usize, scales: Vec<f32>) -> Quantized<'static> {
        let (n, k) = (2, 256);
        let levels = (0..n * k).map(|i| (i * 7 % 16) as i8 - 8).collect();
        Quantized {
            n,
            k,
            narrow,
            levels: Cow::Owned(levels),
            scales,
            zeros: None,
            groups: Groups::Of(columns),
        }
    }

    /// A weight in its form has the values that the rows have before they are rounded.
    #[track_caller]
    fn assert_kept(quantized: &Quantized, form: WeightFormat) {
        assert_eq!(quantized.form(None), Ok(form));
        let Groups::Of(columns) = quantized.groups else {
            panic!("an index")
        };
        let per_row = quantized.per_row();
        for i in 0..quantized.n {
            let weight = quantized.weight(form).unwrap();
            assert_eq!(weight.format(), form);
            let rows = weight.strip_to_f32(i / 16);
            let row = &rows[i % 16 * quantized.k..][..quantized.k];
            for (column, &value) in row.iter().enumerate() {
                let level = f32::from(quantized.levels[i * quantized.k + column]);
                let scale = quantized.scales[i * per_row + column / columns];
                assert_eq!(value, level * scale, "row {i}, column {column}");
            }
        }
    }

    fn scales(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i + 1) as f32 / 64.0).collect()
    }

    #[test]
    fn kernels_have_what_is_a_multiple_of_their_groups() {
        for (columns, per_row) in [(256, 1), (128, 2), (64, 4), (32, 8)] {
            assert_kept(
                &quantized(true, columns, scales(2 * per_row)),
                WeightFormat::DenseI4,
            );
            assert_kept(
                &quantized(false, columns, scales(2 * per_row)),
                WeightFormat::DenseI8,
            );
        }
        // A row scale of int8 is an f32.
        assert_kept(
            &quantized(false, 256, vec![0.1, 0.2]),
            WeightFormat::DenseI8,
        );
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let why = |quantized: Quantized| quantized.form(None).unwrap_err();
        assert!(why(quantized(true, 16, scales(32))).contains("32, 64 or 128"));
        assert!(why(quantized(true, 256, vec![0.1, 0.2])).contains("bf16"));
        assert!(why(quantized(false, 128, vec![0.1; 4])).contains("bf16"));
        let mut lowest = quantized(false, 256, scales(2));
        lowest.levels.to_mut()[9] = -128;
        assert!(why(lowest).contains("-128"));
        let mut zeros = quantized(true, 256, scales(2));
        zeros.zeros = Some(vec![1, 0]);
        assert!(why(zeros).contains("zero points"));
        let mut index = quantized(true, 256, scales(4));
        index.groups = Groups::Index(vec![0; 256]);
        assert!(why(index).contains("index"));
    }

    #[test]
    fn rows_follow_zero_points_and_index() {
        let mut matrix = quantized(false, 256, vec![0.5, 2.0, 1.0, 4.0]);
        matrix.zeros = Some(vec![1, 0, 0, -3]);
        matrix.groups = Groups::Index((0..256).map(|column| column % 2).collect());
        let (bits, inexact) = matrix.rows();
        let value = |i: usize| bf16::from_bits(bits[i]).to_f32();
        assert_eq!(inexact, 0);
        // Levels are -8, -1, 6 and so on.
        assert_eq!([0, 1, 2].map(value), [-4.5, -2.0, 2.5]);
        assert_eq!(value(257), 4.0 * (f32::from(matrix.levels[257]) + 3.0));
    }
}
