//! Tensors as they are written: packed, quantized or plain, whatever is smallest.

use std::borrow::Cow;

use sparamx_format::container::{Dtype, TensorOut};
use sparamx_format::{ElementKind, FormatError, Scales, Weight, WeightFormat};
use sparamx_model::Precision;

use crate::layer::Solved;
use crate::quantize;

/// The smallest weight `[n, k]` of solved rows: packed, or dense where a bitmap does not pay.
///
/// # Errors
/// [`FormatError`] for a shape that is too large, and if memory is refused.
pub fn smallest(rows: Solved, n: usize, k: usize) -> Result<Weight, FormatError> {
    Compact::solved(rows, n, k)?.weight(n, k)
}

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
            Content::Compact(compact) => compact.weight.tensors(name),
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
            Content::Bf16(bits) => Weight::of_bits(bits, n, k, false),
            Content::Raw(..) => panic!("a vector is no weight"),
        }
    }
}

/// A matrix in fewer bytes than as bf16.
pub(crate) struct Compact {
    weight: Weight,
}

impl Compact {
    /// The smallest way to store `[n, k]` rows in this dtype, each value rounded to the nearest; none if bf16 it is to be and zeros
    /// are too few.
    pub(crate) fn nearest(
        rows: &[u16],
        n: usize,
        k: usize,
        precision: Precision,
    ) -> Result<Option<Self>, FormatError> {
        match precision {
            Precision::Bf16 => {
                let weight = Weight::of_bits(rows, n, k, true)?;
                let gains = weight.bytes() < size_of_val(rows);
                Ok(gains.then_some(Compact { weight }))
            }
            Precision::Int8 => {
                let quantized = quantize::int8(rows, k);
                let scales = Scales::row(&quantized.scales, n)?;
                Self::of_levels(ElementKind::Int8, &quantized.levels, n, k, scales).map(Some)
            }
            Precision::Int4 { group_elems } => {
                Self::nearest_int4(rows, n, k, group_elems).map(Some)
            }
        }
    }

    fn nearest_int4(rows: &[u16], n: usize, k: usize, group: usize) -> Result<Self, FormatError> {
        // Dense and packed weights have different levels, and which is smaller depends on zeros alone.
        let quantized = |codes, sparse| {
            let quantized = quantize::int4(rows, k, group, codes);
            let scales = Scales::group(&quantized.scales, n, k, group)?;
            let format = WeightFormat::new(ElementKind::Int4, sparse);
            Weight::of_levels(format, &quantized.levels, n, k, scales)
        };
        let dense = quantized(quantize::Int4::Dense, false)?;
        let zeros = rows.iter().filter(|&&bits| bits == 0).count();
        // A mask takes a quarter of what the levels take, so with fewer zeros there is no use in trying.
        if zeros * 4 < rows.len() {
            return Ok(Compact { weight: dense });
        }
        let sparse = quantized(quantize::Int4::Sparse, true)?;
        Ok(Self::smaller(sparse, dense))
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
            Solved::Int8 { levels, scales } => {
                let scales = Scales::row(&scales, n)?;
                Self::of_levels(ElementKind::Int8, &levels, n, k, scales)?
            }
            Solved::Int4 {
                levels,
                scales,
                group,
            } => {
                let scales = Scales::group(&scales, n, k, group)?;
                Self::of_levels(ElementKind::Int4, &levels, n, k, scales)?
            }
        }))
    }

    fn of_levels(
        element: ElementKind,
        levels: &[i8],
        n: usize,
        k: usize,
        scales: Scales,
    ) -> Result<Self, FormatError> {
        let weight = |sparse, scales| {
            Weight::of_levels(WeightFormat::new(element, sparse), levels, n, k, scales)
        };
        Ok(Self::smaller(
            weight(true, scales.clone())?,
            weight(false, scales)?,
        ))
    }

    fn smaller(sparse: Weight, dense: Weight) -> Self {
        let gains = sparse.bytes() < dense.bytes();
        let weight = if gains { sparse } else { dense };
        Compact { weight }
    }

    /// Elements that are not zero.
    pub(crate) fn nnz(&self) -> usize {
        self.weight.nnz()
    }

    /// Whether zeros are left out.
    pub(crate) fn is_sparse(&self) -> bool {
        self.weight.format().is_sparse()
    }
}
