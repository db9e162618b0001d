//! What an element says of itself.

use std::fmt::Debug;
use std::ops::Range;

use bytemuck::Pod;
use safetensors::Dtype;

use crate::shape::{Geometry, LINE_BYTES, STRIP_ROWS};
use crate::{ElementKind, FormatError, Scales};

/// An element of weights, and how it is stored: bf16, int8 or int4.
pub trait Element: Copy + Debug + Send + Sync + 'static {
    /// An element by itself: the bits of a bf16, or a level.
    type Value: Pod + Debug + Default + PartialEq + Send + Sync;
    /// The columns of one row that lie side by side in a line: an array of values.
    type Columns: Pod;
    /// A line of values, zeros included: [`LINE_BYTES`] bytes.
    type Line: Pod;
    /// The mask of a line, one bit an element.
    type Mask: Mask;
    /// What stored values are an array of: a value, or two levels.
    type Unit: Pod + Debug + Default + PartialEq + Send + Sync;
    /// What values are multiplied by: [`Scales`], or nothing.
    type Scales: WeightScales<Value = Self::Value>;

    /// Which element it is.
    const KIND: ElementKind;
    /// The element type of stored values in a file.
    const UNIT_DTYPE: Dtype;
    /// Values in a unit.
    const PER_UNIT: usize;
    /// Most columns of a weight.
    const MOST_K: usize;

    /// Whether dense weights have every value that packed ones have.
    const DENSE_HOLDS_ALL: bool = true;
    /// Columns of a line.
    const COLUMNS: usize = size_of::<Self::Columns>() / size_of::<Self::Value>();
    /// Elements of a line.
    const LINE_ELEMS: usize = Self::COLUMNS * STRIP_ROWS;
    /// Units of zeros after the values of the last strip, 64 bytes of them. Values of a strip start at a multiple of it.
    const LINE_UNITS: usize = LINE_BYTES / size_of::<Self::Unit>();
    /// Values to which those of each strip are padded.
    const VALUES_ALIGN: usize = Self::LINE_UNITS * Self::PER_UNIT;

    /// Whether a weight may have the value; packed and dense ones can differ.
    fn holds(value: Self::Value, sparse: bool) -> bool;

    /// The error for a value of the rows that no weight has.
    fn refused(value: Self::Value, row: usize, col: usize, sparse: bool) -> FormatError;

    /// The value as a number, without a scale.
    fn to_f32(value: Self::Value) -> f32;

    /// Checks that weights of this element may have scales of that kind.
    ///
    /// # Errors
    /// [`FormatError::ScaleKind`]
    fn check_scales(scales: &Self::Scales, sparse: bool) -> Result<(), FormatError>;

    /// Stores a value that is not 0 as number `at` of `units`, which are zero from there on.
    fn put(units: &mut [Self::Unit], at: usize, value: Self::Value);

    /// Stores those of `values` that are not 0 as values `at` and after; how many there are then.
    fn put_non_zero(units: &mut [Self::Unit], at: usize, values: &[Self::Value]) -> usize;

    /// Stored value `at`.
    fn get(units: &[Self::Unit], at: usize) -> Self::Value;

    /// Checks the stored values `used` of a strip, and what shares the last unit with them.
    ///
    /// # Errors
    /// If a value is one that is never stored, or the padding in the last unit is not zero.
    fn check_stored(units: &[Self::Unit], used: Range<usize>) -> Result<(), FormatError>;

    /// Checks what every dense strip must be, its padding aside; `first` is the index of its first unit.
    ///
    /// # Errors
    /// If a unit holds what no weight does.
    fn check_dense(strip: &[Self::Unit], first: usize) -> Result<(), FormatError>;

    /// The unit of a dense strip that holds element `e` of line `l`.
    fn dense_unit(l: usize, e: usize) -> usize;

    /// Element `e` of line `l` of a dense strip.
    fn dense_value(strip: &[Self::Unit], l: usize, e: usize) -> Self::Value;

    /// Lets `fill` write the values of a dense strip, line after line, and stores them; what it did not write is what was there.
    /// `scratch` is memory to be used again.
    fn store_lines<R>(
        strip: &mut [Self::Unit],
        scratch: &mut Vec<Self::Value>,
        fill: impl FnOnce(&mut [Self::Value]) -> R,
    ) -> R;

    /// The values of a dense strip, line after line.
    fn load_lines<'a>(
        strip: &'a [Self::Unit],
        scratch: &'a mut Vec<Self::Value>,
    ) -> &'a [Self::Value];
}

/// The sizes of a weight `[n, k]`.
///
/// # Errors
/// If there are no elements, or more than the address space or sums can take.
pub(crate) fn geometry<E: Element>(n: usize, k: usize) -> Result<Geometry, FormatError> {
    Geometry::new(n, k, E::LINE_ELEMS, E::MOST_K)
}

/// Checks scales against the shape of a weight and against its element.
///
/// # Errors
/// If they are of another kind than such weights have, of another shape, or hold something other than finite numbers.
pub(crate) fn check_scales<E: Element>(
    scales: &E::Scales,
    shape: &Geometry,
    sparse: bool,
) -> Result<(), FormatError> {
    if let Some(scales) = scales.get() {
        scales.check(shape)?;
    }
    E::check_scales(scales, sparse)
}

/// An element that is a level times a scale.
pub trait Quantized: Element<Value = i8, Scales = Scales> {}

/// The mask of a line, one bit an element.
pub trait Mask: Pod + Into<u64> + Sync + Send {
    /// The element type of masks in a file.
    const DTYPE: Dtype;

    /// The low bits of `bits`.
    fn from_low(bits: u64) -> Self;

    /// Set bits.
    fn ones(self) -> usize;
}

impl Mask for u32 {
    const DTYPE: Dtype = Dtype::U32;

    #[inline(always)]
    fn from_low(bits: u64) -> Self {
        bits as u32
    }

    #[inline(always)]
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

impl Mask for u64 {
    const DTYPE: Dtype = Dtype::U64;

    #[inline(always)]
    fn from_low(bits: u64) -> Self {
        bits
    }

    #[inline(always)]
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

/// What the values of a weight are multiplied by.
pub trait WeightScales: Clone + Debug + Send + Sync {
    /// A value that they multiply.
    type Value;

    /// The scales, if there are any.
    fn get(&self) -> Option<&Scales>;

    /// Values, and what they are worth.
    fn elements(&self, values: Vec<Self::Value>) -> Elements;

    /// Bytes of the scales.
    fn bytes(&self) -> usize {
        self.get().map_or(0, Scales::bytes)
    }
}

/// bf16 values are what they are.
impl WeightScales for () {
    type Value = u16;

    fn get(&self) -> Option<&Scales> {
        None
    }

    fn elements(&self, values: Vec<u16>) -> Elements {
        Elements::Bf16(values)
    }
}

impl WeightScales for Scales {
    type Value = i8;

    fn get(&self) -> Option<&Scales> {
        Some(self)
    }

    fn elements(&self, values: Vec<i8>) -> Elements {
        Elements::Levels(values, self.clone())
    }
}

/// The elements of some rows, row-major.
#[derive(Clone, Debug)]
pub enum Elements {
    /// Bits of bf16 values.
    Bf16(Vec<u16>),
    /// Levels, and what they are worth.
    Levels(Vec<i8>, Scales),
}

/// Copies those of `values` that are not zero to `out` from `at` on, where only zeros are; where the next goes.
#[inline(always)]
pub(super) fn move_to_front<T: Copy + Default + PartialEq>(
    values: &[T],
    out: &mut [T],
    mut at: usize,
) -> usize {
    for &value in values {
        // No branch on the value: a zero is written to where the next value will go. Behind the last place nothing but zeros is
        // left.
        let Some(to) = out.get_mut(at) else {
            return at;
        };
        *to = value;
        at += usize::from(value != T::default());
    }
    at
}
