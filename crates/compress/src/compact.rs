//! Tensors as they are written: packed, quantized or plain, whatever is smallest.

use std::borrow::Cow;

use sparamx_format::container::{Dtype, TensorOut};
use sparamx_format::{
    DenseBf16, DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8,
};
use sparamx_kernels::Weight;
use sparamx_model::Precision;

use crate::layer::Solved;
use crate::{quantize, weights};

/// What is written for a tensor.
pub(crate) enum Content<'a> {
    /// A matrix in fewer bytes than as bf16.
    Compact(Compact),
    /// A matrix as bf16, row-major.
    Bf16(Cow<'a, [u16]>),
    /// A norm or a bias as it is.
    Raw(Dtype, &'a [u8]),
}

impl Content<'_> {
    /// The tensors to write.
    pub(crate) fn tensors(&self, name: &str, shape: &[usize]) -> Vec<TensorOut<'_>> {
        let plain = |dtype, bytes| vec![TensorOut::new(name, dtype, shape.to_vec(), bytes)];
        match self {
            Content::Compact(compact) => weights::tensors(name, &compact.weight),
            Content::Bf16(bits) => plain(Dtype::BF16, bytemuck::cast_slice(bits)),
            Content::Raw(dtype, bytes) => plain(*dtype, bytes),
        }
    }

    /// The matrix `[n, k]` in the form in which a model that is loaded multiplies with it.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`].
    ///
    /// # Panics
    /// If it is no matrix.
    pub(crate) fn weight(&self, n: usize, k: usize) -> Result<Weight, FormatError> {
        match self {
            Content::Compact(compact) => Ok(compact.weight.clone()),
            Content::Bf16(bits) => DenseBf16::from_rows(bits, n, k).map(Weight::DenseBf16),
            Content::Raw(..) => panic!("a vector is no weight"),
        }
    }
}

/// A matrix in fewer bytes than as bf16.
pub(crate) struct Compact {
    weight: Weight,
    /// Elements that are not zero.
    pub(crate) nnz: usize,
}

impl Compact {
    /// The smallest way to store `[n, k]` rows in these numbers, each rounded to the nearest; none if bf16 it is to be and zeros
    /// are too few.
    pub(crate) fn nearest(
        rows: &[u16],
        n: usize,
        k: usize,
        precision: Precision,
    ) -> Result<Option<Self>, FormatError> {
        match precision {
            Precision::Bf16 => {
                let packed = SparseBf16::pack(rows, n, k)?;
                let gains = packed.packed_bytes() < size_of_val(rows);
                let nnz = packed.nnz();
                let weight = Weight::SparseBf16(packed);
                Ok(gains.then_some(Compact { weight, nnz }))
            }
            Precision::Int8 => {
                let quantized = quantize::int8(rows, k);
                Self::int8(&quantized.levels, &quantized.scales, n, k).map(Some)
            }
            Precision::Int4 { group_elems } => {
                Self::nearest_int4(rows, n, k, group_elems).map(Some)
            }
        }
    }

    fn nearest_int4(rows: &[u16], n: usize, k: usize, group: usize) -> Result<Self, FormatError> {
        // Dense and packed weights have different levels, and which is smaller depends on zeros alone.
        let quantized = quantize::int4(rows, k, group, quantize::Int4::Dense);
        let scales = Scales::group(&quantized.scales, n, k, group)?;
        let dense = DenseI4::from_rows(&quantized.levels, n, k, scales)?;
        let nnz = count(&quantized.levels);
        let zeros = rows.iter().filter(|&&bits| bits == 0).count();
        // A mask takes a quarter of what the levels take, so with fewer zeros there is no use in trying.
        if zeros * 4 < rows.len() {
            let weight = Weight::DenseI4(dense);
            return Ok(Compact { weight, nnz });
        }
        let quantized = quantize::int4(rows, k, group, quantize::Int4::Sparse);
        let scales = Scales::group(&quantized.scales, n, k, group)?;
        let sparse = SparseI4::pack(&quantized.levels, n, k, scales)?;
        Ok(Self::smaller_int4(sparse, dense, nnz))
    }

    /// The smallest way to store a solved layer `[n, k]`.
    pub(crate) fn solved(
        rows: Solved,
        n: usize,
        k: usize,
    ) -> Result<Content<'static>, FormatError> {
        Ok(Content::Compact(match rows {
            Solved::Bf16(bits) => match Self::nearest(&bits, n, k, Precision::Bf16)? {
                Some(compact) => compact,
                None => return Ok(Content::Bf16(Cow::Owned(bits))),
            },
            Solved::Int8 { levels, scales } => Self::int8(&levels, &scales, n, k)?,
            Solved::Int4 {
                levels,
                scales,
                group,
            } => {
                let scales = Scales::group(&scales, n, k, group)?;
                let sparse = SparseI4::pack(&levels, n, k, scales.clone())?;
                let dense = DenseI4::from_rows(&levels, n, k, scales)?;
                Self::smaller_int4(sparse, dense, count(&levels))
            }
        }))
    }

    fn int8(levels: &[i8], scales: &[f32], n: usize, k: usize) -> Result<Self, FormatError> {
        let scales = Scales::row(scales, n)?;
        let sparse = SparseI8::pack(levels, n, k, scales.clone())?;
        let dense = DenseI8::from_rows(levels, n, k, scales)?;
        let nnz = sparse.nnz();
        let weight = if sparse.packed_bytes() < dense.bytes() {
            Weight::SparseI8(sparse)
        } else {
            Weight::DenseI8(dense)
        };
        Ok(Compact { weight, nnz })
    }

    /// `nnz` is that of the dense weight.
    fn smaller_int4(sparse: SparseI4, dense: DenseI4, nnz: usize) -> Self {
        if sparse.packed_bytes() < dense.bytes() {
            let nnz = sparse.nnz();
            let weight = Weight::SparseI4(sparse);
            Compact { weight, nnz }
        } else {
            let weight = Weight::DenseI4(dense);
            Compact { weight, nnz }
        }
    }

    /// Whether zeros are left out.
    pub(crate) fn is_sparse(&self) -> bool {
        self.weight.format().is_sparse()
    }
}

/// The smallest weight `[n, k]` of solved rows: packed, or dense where a bitmap does not pay.
///
/// # Errors
/// [`FormatError`] for a shape that is too large, and if memory is refused.
pub fn smallest(rows: Solved, n: usize, k: usize) -> Result<Weight, FormatError> {
    Compact::solved(rows, n, k)?.weight(n, k)
}

/// Levels that are not 0.
fn count(levels: &[i8]) -> usize {
    levels.iter().filter(|&&level| level != 0).count()
}
