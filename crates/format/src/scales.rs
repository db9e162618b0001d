//! What a level of a quantized weight is worth.

use crate::error::check_length;
use crate::shape::{Geometry, STRIP_ROWS};
use crate::{Field, FormatError, Storage};

/// Sizes that a group of columns may have.
pub const GROUP_ELEMS: [usize; 3] = [32, 64, 128];

/// Scales of quantized weights: an element is its level times its scale.
///
/// A clone shares the memory. Constructors of weights check that the arrays belong to the weight's shape, that
/// every scale is finite and not -0, and that padding is +0.
#[derive(Clone, Debug)]
pub enum Scales {
    /// One f32 scale a row: `[strips * 16]`, rows from N on 0.
    Row(Storage<f32>),
    /// One bf16 scale for every row and group of columns.
    Group {
        /// Columns of a group: 32, 64 or 128. The last group of a row may be shorter.
        elems: usize,
        /// Groups of a row: the padded K divided by `elems`, rounded up.
        groups: usize,
        /// Bits of the scales, `[strips][groups][16]`; rows from N on and groups that start at K or later are 0.
        values: Storage<u16>,
    },
}

impl Scales {
    /// One scale a row, from a scale for each of the `n` rows.
    ///
    /// # Errors
    /// If there are not `n` scales, one of them is NaN, infinite or -0, or memory is refused.
    pub fn row(scales: &[f32], n: usize) -> Result<Self, FormatError> {
        check_length(Field::Scales, n, scales.len())?;
        check_values(scales.iter().copied())?;
        let mut values = Storage::zeroed(n.next_multiple_of(STRIP_ROWS))?;
        values.unique()[..n].copy_from_slice(scales);
        Ok(Scales::Row(values))
    }

    /// A scale for every `elems` columns of a row of an `[n, k]` weight, from row-major `[n, ceil(k / elems)]`.
    /// Scales are rounded to bf16, to nearest and ties to even; see [`bf16_scale`] for what remains of one.
    ///
    /// # Errors
    /// If `elems` is not one of [`GROUP_ELEMS`], the shape is empty or too large, the number of scales is another,
    /// a rounded scale is NaN, infinite or -0, or memory is refused.
    pub fn group(scales: &[f32], n: usize, k: usize, elems: usize) -> Result<Self, FormatError> {
        let shape = Geometry::for_levels(n, k)?;
        check_group(elems)?;
        let (used, groups) = (k.div_ceil(elems), shape.k_padded.div_ceil(elems));
        check_length(Field::Scales, n * used, scales.len())?;
        check_values(scales.iter().map(|&scale| bf16_scale(scale)))?;
        let mut values = Storage::zeroed(shape.strips * groups * STRIP_ROWS)?;
        let out: &mut [u16] = values.unique();
        for (row, scales) in scales.chunks_exact(used).enumerate() {
            let strip = &mut out[row / STRIP_ROWS * groups * STRIP_ROWS..];
            for (g, &scale) in scales.iter().enumerate() {
                strip[g * STRIP_ROWS + row % STRIP_ROWS] =
                    (bf16_scale(scale).to_bits() >> 16) as u16;
            }
        }
        Ok(Scales::Group {
            elems,
            groups,
            values,
        })
    }

    /// Columns that share a scale: all of `k_padded` when there is one scale a row.
    pub fn group_elems(&self, k_padded: usize) -> usize {
        match self {
            Scales::Row(_) => k_padded,
            Scales::Group { elems, .. } => *elems,
        }
    }

    /// Scales of a row.
    pub fn groups(&self) -> usize {
        match self {
            Scales::Row(_) => 1,
            Scales::Group { groups, .. } => *groups,
        }
    }

    /// The scales of the 16 rows of strip `s` in group `g`.
    ///
    /// # Panics
    /// If there is no strip `s` or no group `g`.
    #[inline]
    pub fn strip(&self, s: usize, g: usize) -> [f32; STRIP_ROWS] {
        let groups = self.groups();
        assert!(g < groups, "group {g} of {groups}");
        let start = (s * groups + g) * STRIP_ROWS;
        match self {
            Scales::Row(values) => values[start..].first_chunk().copied(),
            Scales::Group { values, .. } => values[start..]
                .first_chunk::<STRIP_ROWS>()
                .map(|bits| bits.map(from_bits)),
        }
        .unwrap_or_else(|| panic!("no scales for strip {s}"))
    }

    /// Bytes of the scales, padding included.
    pub fn bytes(&self) -> usize {
        match self {
            Scales::Row(values) => size_of_val(&**values),
            Scales::Group { values, .. } => size_of_val(&**values),
        }
    }

    /// Multiplies the levels that `out` holds by the scales of row `i`.
    pub(crate) fn apply_to_row(&self, i: usize, k_padded: usize, out: &mut [f32]) {
        let (s, j) = (i / STRIP_ROWS, i % STRIP_ROWS);
        for (g, group) in out.chunks_mut(self.group_elems(k_padded)).enumerate() {
            let scale = self.strip(s, g)[j];
            group.iter_mut().for_each(|element| *element *= scale);
        }
    }

    /// # Errors
    /// [`FormatError::ScaleKind`] if these are not row scales.
    pub(crate) fn must_be_rows(&self) -> Result<(), FormatError> {
        match self {
            Scales::Row(_) => Ok(()),
            Scales::Group { .. } => Err(FormatError::ScaleKind { expected: "row" }),
        }
    }

    /// # Errors
    /// [`FormatError::ScaleKind`] if these are not group scales.
    pub(crate) fn must_be_groups(&self) -> Result<(), FormatError> {
        match self {
            Scales::Row(_) => Err(FormatError::ScaleKind { expected: "group" }),
            Scales::Group { .. } => Ok(()),
        }
    }

    /// Checks the scales against the shape of a weight; see [`Scales`] for what must hold.
    ///
    /// # Errors
    /// What [`Scales::row`] and [`Scales::group`] refuse, and padding that is not 0.
    pub(crate) fn check(&self, shape: &Geometry) -> Result<(), FormatError> {
        match self {
            Scales::Row(values) => {
                check_length(Field::Scales, shape.strips * STRIP_ROWS, values.len())?;
                check_values(values.iter().copied())?;
                check_padding(values.iter().map(|&scale| scale == 0.0), shape, 1, 1)
            }
            Scales::Group {
                elems,
                groups,
                values,
            } => {
                check_group(*elems)?;
                let expected = shape.k_padded.div_ceil(*elems);
                check_length(Field::Scales, expected, *groups)?;
                check_length(
                    Field::Scales,
                    shape.strips * groups * STRIP_ROWS,
                    values.len(),
                )?;
                check_values(values.iter().map(|&bits| from_bits(bits)))?;
                let used = shape.k.div_ceil(*elems);
                check_padding(values.iter().map(|&bits| bits == 0), shape, *groups, used)
            }
        }
    }
}

/// What is left of a scale that is stored as bf16: rounded to nearest, ties to even, `-0` as `+0`.
///
/// Levels of a group are to be computed from this.
pub fn bf16_scale(scale: f32) -> f32 {
    if scale.is_nan() {
        return scale;
    }
    let bits = scale.to_bits();
    let even = (bits >> 16) & 1;
    let rounded = f32::from_bits(bits.wrapping_add(0x7fff + even) & 0xffff_0000);
    // Adding +0 changes -0, and nothing else.
    rounded + 0.0
}

fn from_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn check_group(elems: usize) -> Result<(), FormatError> {
    if GROUP_ELEMS.contains(&elems) {
        return Ok(());
    }
    Err(FormatError::GroupSize { elems })
}

/// Every scale is finite and not -0.
fn check_values(mut scales: impl Iterator<Item = f32>) -> Result<(), FormatError> {
    let bad = |scale: f32| !scale.is_finite() || scale.to_bits() == (-0.0f32).to_bits();
    // `position` counts from where the iterator stands, which is the start.
    let mut found = 0.0;
    match scales.position(|scale| {
        found = scale;
        bad(scale)
    }) {
        None => Ok(()),
        Some(index) => Err(FormatError::BadScale {
            index,
            value: found,
        }),
    }
}

/// Scales of rows from N on, and of groups from `used` of `groups` on, are zero.
fn check_padding(
    zero: impl Iterator<Item = bool>,
    shape: &Geometry,
    groups: usize,
    used: usize,
) -> Result<(), FormatError> {
    for (index, zero) in zero.enumerate() {
        let row = index / (groups * STRIP_ROWS) * STRIP_ROWS + index % STRIP_ROWS;
        let group = index / STRIP_ROWS % groups;
        if !zero && (row >= shape.n || group >= used) {
            let field = Field::Scales;
            return Err(FormatError::Padding { field, index });
        }
    }
    Ok(())
}
