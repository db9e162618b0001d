//! Tensors as they are written: packed, quantized or plain, whatever is smallest.

use std::borrow::Cow;

use sparamx_format::container::{self, Dtype, PackedFormat, TensorFile, TensorOut};
use sparamx_format::{
    DenseBf16, DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8,
};
use sparamx_kernels::Weight;
use sparamx_model::Precision;

use crate::layer::Solved;
use crate::quantize;

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
            Content::Compact(compact) => compact.tensors(name),
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
            Content::Compact(compact) => Ok(compact.weight()),
            Content::Bf16(bits) => DenseBf16::from_rows(bits, n, k).map(Weight::DenseBf16),
            Content::Raw(..) => panic!("a vector is no weight"),
        }
    }
}

/// The weight `[n, k]` that [`Content`] wrote to a file.
///
/// # Errors
/// [`FormatError`] if it is damaged.
pub(crate) fn read(
    file: &TensorFile,
    name: &str,
    n: usize,
    k: usize,
) -> Result<Weight, FormatError> {
    let Some(packed) = container::packed_weight(file, name)? else {
        let bits = file.storage::<u16>(name)?;
        return DenseBf16::from_rows(&bits, n, k).map(Weight::DenseBf16);
    };
    Ok(match packed.format {
        PackedFormat::SparseBf16 => Weight::SparseBf16(container::sparse_bf16(file, name, n, k)?),
        PackedFormat::SparseI8 => Weight::SparseI8(container::sparse_i8(file, name, n, k)?),
        PackedFormat::DenseI8 => Weight::DenseI8(container::dense_i8(file, name, n, k)?),
        PackedFormat::SparseI4 => Weight::SparseI4(container::sparse_i4(file, name, n, k)?),
        PackedFormat::DenseI4 => Weight::DenseI4(container::dense_i4(file, name, n, k)?),
    })
}

/// A matrix in fewer bytes than as bf16. The dense ones come with the number of their levels that are not 0.
pub(crate) enum Compact {
    SparseBf16(SparseBf16),
    SparseI8(SparseI8),
    DenseI8(DenseI8, usize),
    SparseI4(SparseI4),
    DenseI4(DenseI4, usize),
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
                Ok(gains.then_some(Compact::SparseBf16(packed)))
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
            return Ok(Compact::DenseI4(dense, nnz));
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
        Ok(if sparse.packed_bytes() < dense.bytes() {
            Compact::SparseI8(sparse)
        } else {
            Compact::DenseI8(dense, sparse.nnz())
        })
    }

    fn smaller_int4(sparse: SparseI4, dense: DenseI4, nnz: usize) -> Self {
        if sparse.packed_bytes() < dense.bytes() {
            Compact::SparseI4(sparse)
        } else {
            Compact::DenseI4(dense, nnz)
        }
    }

    fn tensors<'a>(&'a self, name: &str) -> Vec<TensorOut<'a>> {
        match self {
            Compact::SparseBf16(weight) => container::sparse_bf16_tensors(name, weight),
            Compact::SparseI8(weight) => container::sparse_i8_tensors(name, weight),
            Compact::DenseI8(weight, _) => container::dense_i8_tensors(name, weight),
            Compact::SparseI4(weight) => container::sparse_i4_tensors(name, weight),
            Compact::DenseI4(weight, _) => container::dense_i4_tensors(name, weight),
        }
    }

    fn weight(&self) -> Weight {
        match self {
            Compact::SparseBf16(weight) => Weight::SparseBf16(weight.clone()),
            Compact::SparseI8(weight) => Weight::SparseI8(weight.clone()),
            Compact::DenseI8(weight, _) => Weight::DenseI8(weight.clone()),
            Compact::SparseI4(weight) => Weight::SparseI4(weight.clone()),
            Compact::DenseI4(weight, _) => Weight::DenseI4(weight.clone()),
        }
    }

    /// Whether zeros are left out.
    pub(crate) fn is_sparse(&self) -> bool {
        !matches!(self, Compact::DenseI8(..) | Compact::DenseI4(..))
    }

    /// Elements that are not zero.
    pub(crate) fn nnz(&self) -> usize {
        match self {
            Compact::SparseBf16(weight) => weight.nnz(),
            Compact::SparseI8(weight) => weight.nnz(),
            Compact::SparseI4(weight) => weight.nnz(),
            Compact::DenseI8(_, nnz) | Compact::DenseI4(_, nnz) => *nnz,
        }
    }
}

/// Levels that are not 0.
fn count(levels: &[i8]) -> usize {
    levels.iter().filter(|&&level| level != 0).count()
}
