//! A weight in whatever form it is: the one list of all forms.

use crate::container::loose::Loose;
use crate::container::{TensorFile, TensorOut, packed_weight};
use crate::dense::Dense;
use crate::element::{Bf16, Element, Elements, Int4, Int8, WeightScales};
use crate::shape::STRIP_ROWS;
use crate::sparse::Sparse;
use crate::{FormatError, Scales, WeightFormat};

/// A dense weight of bf16 bits.
pub type DenseBf16 = Dense<Bf16>;
/// A packed weight of bf16 bits.
pub type SparseBf16 = Sparse<Bf16>;
/// A dense weight of levels of -127 to 127, a byte each, and the scales of rows or groups of columns.
pub type DenseI8 = Dense<Int8>;
/// A packed weight of levels of -127 to 127, a byte each, and the scales of rows.
pub type SparseI8 = Sparse<Int8>;
/// A dense weight of levels of -8 to 7, a nibble each, and the scales of groups of columns.
pub type DenseI4 = Dense<Int4>;
/// A packed weight of levels of -8 to -1 and 1 to 8, a nibble each, and the scales of groups of columns.
pub type SparseI4 = Sparse<Int4>;

/// A weight `[N, K]` in a form that kernels read.
#[derive(Clone, Debug)]
pub enum Weight {
    /// All elements, in strip order.
    DenseBf16(DenseBf16),
    /// Bitmap and non-zero values.
    SparseBf16(SparseBf16),
    /// All levels, a byte each, with the scales.
    DenseI8(DenseI8),
    /// Bitmap and non-zero levels, with the scales.
    SparseI8(SparseI8),
    /// All levels, half a byte each, with the scales.
    DenseI4(DenseI4),
    /// Bitmap and non-zero levels, half a byte each, with the scales.
    SparseI4(SparseI4),
}

/// The same expression over the weight inside, whatever its form: a closure cannot be generic over the element.
macro_rules! each {
    ($weight:expr, $w:ident => $e:expr) => {
        match $weight {
            Weight::DenseBf16($w) => $e,
            Weight::SparseBf16($w) => $e,
            Weight::DenseI8($w) => $e,
            Weight::SparseI8($w) => $e,
            Weight::DenseI4($w) => $e,
            Weight::SparseI4($w) => $e,
        }
    };
}

impl Weight {
    /// Packs bf16 bits, or puts them in strip order, row-major `[n, k]`.
    ///
    /// # Errors
    /// Those of [`SparseBf16::pack`] and [`DenseBf16::from_rows`].
    pub fn of_bits(bits: &[u16], n: usize, k: usize, sparse: bool) -> Result<Self, FormatError> {
        if sparse {
            SparseBf16::pack(bits, n, k).map(Weight::SparseBf16)
        } else {
            DenseBf16::from_rows(bits, n, k).map(Weight::DenseBf16)
        }
    }

    /// Row-major levels `[n, k]` in a format of int8 or int4.
    ///
    /// # Errors
    /// Those of [`SparseI8::pack`] and [`DenseI8::from_rows`].
    ///
    /// # Panics
    /// If the format is one of bf16.
    pub fn of_levels(
        format: WeightFormat,
        levels: &[i8],
        n: usize,
        k: usize,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        Ok(match format {
            WeightFormat::DenseI8 => DenseI8::from_rows(levels, n, k, scales)?.into(),
            WeightFormat::SparseI8 => SparseI8::pack(levels, n, k, scales)?.into(),
            WeightFormat::DenseI4 => DenseI4::from_rows(levels, n, k, scales)?.into(),
            WeightFormat::SparseI4 => SparseI4::pack(levels, n, k, scales)?.into(),
            WeightFormat::DenseBf16 | WeightFormat::SparseBf16 => {
                panic!("{format} weights have no levels")
            }
        })
    }

    /// The weight `name` `[n, k]` of a file, packed or plain bf16.
    ///
    /// # Errors
    /// [`FormatError`] if it is missing or damaged.
    pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Self, FormatError> {
        let packed = packed_weight(file, name)?;
        let format = packed.map_or(WeightFormat::DenseBf16, |packed| packed.format);
        Ok(match format {
            WeightFormat::DenseBf16 => DenseBf16::read(file, name, n, k)?.into(),
            WeightFormat::SparseBf16 => SparseBf16::read(file, name, n, k)?.into(),
            WeightFormat::DenseI8 => DenseI8::read(file, name, n, k)?.into(),
            WeightFormat::SparseI8 => SparseI8::read(file, name, n, k)?.into(),
            WeightFormat::DenseI4 => DenseI4::read(file, name, n, k)?.into(),
            WeightFormat::SparseI4 => SparseI4::read(file, name, n, k)?.into(),
        })
    }

    /// The tensors of the weight in a file, called `name`. A dense bf16 weight is none of those that files have packed: it is
    /// written as its rows, so nothing is given for it.
    pub fn tensors(&self, name: &str) -> Vec<TensorOut<'_>> {
        match self {
            Weight::DenseBf16(_) => Vec::new(),
            Weight::SparseBf16(w) => w.tensors(name),
            Weight::DenseI8(w) => w.tensors(name),
            Weight::SparseI8(w) => w.tensors(name),
            Weight::DenseI4(w) => w.tensors(name),
            Weight::SparseI4(w) => w.tensors(name),
        }
    }

    /// The weight `[n, k]` of the tensors that [`Weight::tensors`] gives for the empty name, copied. What they are follows from
    /// their types and shapes.
    ///
    /// # Errors
    /// [`FormatError`] if one is missing, has another type or length, or fails the checks of a file.
    pub fn from_tensors(
        n: usize,
        k: usize,
        tensors: &[TensorOut<'_>],
    ) -> Result<Self, FormatError> {
        let tensors = Loose(tensors);
        Ok(match (tensors.values_dtype()?, tensors.is_sparse()) {
            (Int8::UNIT_DTYPE, true) => tensors.sparse::<Int8>(n, k)?.into(),
            (Int8::UNIT_DTYPE, false) => tensors.dense::<Int8>(n, k)?.into(),
            (Int4::UNIT_DTYPE, true) => tensors.sparse::<Int4>(n, k)?.into(),
            (Int4::UNIT_DTYPE, false) => tensors.dense::<Int4>(n, k)?.into(),
            _ => tensors.sparse_bf16(n, k)?.into(),
        })
    }

    /// Which form it is.
    pub fn format(&self) -> WeightFormat {
        match self {
            Weight::DenseBf16(_) => WeightFormat::DenseBf16,
            Weight::SparseBf16(_) => WeightFormat::SparseBf16,
            Weight::DenseI8(_) => WeightFormat::DenseI8,
            Weight::SparseI8(_) => WeightFormat::SparseI8,
            Weight::DenseI4(_) => WeightFormat::DenseI4,
            Weight::SparseI4(_) => WeightFormat::SparseI4,
        }
    }

    /// The same weight with every element there. int4 levels that dense int4 weights cannot have become bytes; a dense weight is
    /// given as it is.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if the system refuses the memory.
    pub fn expand(&self) -> Result<Self, FormatError> {
        let all = "dense weights have every value of packed ones";
        Ok(match self {
            Weight::SparseBf16(w) => DenseBf16::from_sparse(w)?.expect(all).into(),
            Weight::SparseI8(w) => DenseI8::from_sparse(w)?.expect(all).into(),
            Weight::SparseI4(w) => match DenseI4::from_sparse(w)? {
                Some(dense) => dense.into(),
                None => DenseI8::from_sparse(w)?.expect(all).into(),
            },
            dense => dense.clone(),
        })
    }

    /// Output features.
    pub fn n(&self) -> usize {
        each!(self, w => w.n())
    }

    /// Input features.
    pub fn k(&self) -> usize {
        each!(self, w => w.k())
    }

    /// Input features, rounded up to the layout's step.
    pub fn k_padded(&self) -> usize {
        each!(self, w => w.k_padded())
    }

    /// Groups of 16 output features.
    pub fn strips(&self) -> usize {
        each!(self, w => w.strips())
    }

    /// Elements that are not zero: of a dense weight they are counted.
    pub fn nnz(&self) -> usize {
        each!(self, w => w.nnz())
    }

    /// Bytes that a multiplication reads.
    pub fn bytes(&self) -> usize {
        each!(self, w => w.bytes())
    }

    /// Bytes of the strips before strip `s`, or of all.
    ///
    /// # Panics
    /// If there are no `s` strips.
    pub fn bytes_before(&self, s: usize) -> usize {
        if s == self.strips() {
            return self.bytes();
        }
        each!(self, w => w.bytes_before(s))
    }

    /// The same weight in the program's own memory, which is faster to read than a file map: a copy if it belongs to a file.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if the system refuses the memory.
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(each!(self, w => w.in_memory()?.into()))
    }

    /// What levels are worth; nothing if the elements are bf16.
    pub fn scales(&self) -> Option<&Scales> {
        each!(self, w => w.scale_set().get())
    }

    /// The elements, row-major `[n, k]`.
    pub fn decode(&self) -> Elements {
        each!(self, w => w.scale_set().elements(w.decode()))
    }

    /// Bits of the elements, row-major `[n, k]`; nothing if they are levels.
    pub fn bits(&self) -> Option<Vec<u16>> {
        match self {
            Weight::DenseBf16(w) => Some(w.decode()),
            Weight::SparseBf16(w) => Some(w.decode()),
            _ => None,
        }
    }

    /// The elements of the rows of strip `s`, row-major: of 16 rows, fewer of the last strip.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn decode_strip(&self, s: usize) -> Elements {
        each!(self, w => w.scale_set().elements(w.strip_rows(s)))
    }

    /// As [`Weight::decode_strip`], levels times scales.
    ///
    /// # Panics
    /// If there is no strip `s`.
    pub fn strip_to_f32(&self, s: usize) -> Vec<f32> {
        let (levels, scales) = match self.decode_strip(s) {
            Elements::Bf16(bits) => return bits.into_iter().map(Bf16::to_f32).collect(),
            Elements::Levels(levels, scales) => (levels, scales),
        };
        let mut rows: Vec<f32> = levels.into_iter().map(f32::from).collect();
        for (j, row) in rows.chunks_exact_mut(self.k()).enumerate() {
            scales.apply_to_row(s * STRIP_ROWS + j, self.k_padded(), row);
        }
        rows
    }
}

/// From each form to the weight; `impl` cannot be generic over the variants.
macro_rules! from {
    ($($form:ident)*) => {
        $(impl From<$form> for Weight {
            fn from(weight: $form) -> Self {
                Weight::$form(weight)
            }
        })*
    };
}
from!(DenseBf16 SparseBf16 DenseI8 SparseI8 DenseI4 SparseI4);
