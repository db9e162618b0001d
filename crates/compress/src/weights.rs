//! Weights as tensors, and back: what a program that has a model of its own needs to share packed files.

use bytemuck::Pod;
use sparamx_format::container::{self, Dtype, PackedFormat, TensorFile, TensorOut};
use sparamx_format::{
    DenseBf16, DenseI4, DenseI8, FormatError, GROUP_ELEMS, Scales, SparseBf16, SparseI4, SparseI8,
    Storage,
};
use sparamx_kernels::Weight;

/// Columns that k of int8 and int4 weights is padded to a multiple of.
const TILE_COLUMNS: usize = 64;

/// The tensors of weight `name` in a file. A dense bf16 weight is none of those that files have packed: it is written as its
/// rows, so nothing is given for it.
pub fn tensors<'a>(name: &str, weight: &'a Weight) -> Vec<TensorOut<'a>> {
    match weight {
        Weight::DenseBf16(_) => Vec::new(),
        Weight::SparseBf16(weight) => container::sparse_bf16_tensors(name, weight),
        Weight::DenseI8(weight) => container::dense_i8_tensors(name, weight),
        Weight::SparseI8(weight) => container::sparse_i8_tensors(name, weight),
        Weight::DenseI4(weight) => container::dense_i4_tensors(name, weight),
        Weight::SparseI4(weight) => container::sparse_i4_tensors(name, weight),
    }
}

/// The weight `name` `[n, k]` of a file, packed or plain bf16.
///
/// # Errors
/// [`FormatError`] if it is missing or damaged.
pub fn read(file: &TensorFile, name: &str, n: usize, k: usize) -> Result<Weight, FormatError> {
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

/// The weight `[n, k]` of the tensors that [`tensors`] gives for the empty name, copied. What they are follows from their
/// types and shapes.
///
/// # Errors
/// [`FormatError`] if one is missing, has another type or length, or fails the checks of a file.
pub fn from_tensors(n: usize, k: usize, tensors: &[TensorOut<'_>]) -> Result<Weight, FormatError> {
    let parts = Parts(tensors);
    let scales = || parts.scales(k);
    let offsets = || parts.array(".offsets", Dtype::U64);
    let masks = || parts.array(".mask", Dtype::U64);
    let packed = parts.get(".mask").is_ok();
    Ok(match parts.get(".values")?.dtype() {
        Dtype::I8 => {
            let values = parts.array(".values", Dtype::I8)?;
            match packed {
                true => {
                    let weight =
                        SparseI8::from_parts(n, k, masks()?, values, offsets()?, scales()?);
                    Weight::SparseI8(weight?)
                }
                false => Weight::DenseI8(DenseI8::from_parts(n, k, values, scales()?)?),
            }
        }
        Dtype::U8 => {
            let values = parts.array(".values", Dtype::U8)?;
            match packed {
                true => {
                    let weight =
                        SparseI4::from_parts(n, k, masks()?, values, offsets()?, scales()?);
                    Weight::SparseI4(weight?)
                }
                false => Weight::DenseI4(DenseI4::from_parts(n, k, values, scales()?)?),
            }
        }
        _ => {
            let masks = parts.array(".mask", Dtype::U32)?;
            let values = parts.array(".values", Dtype::BF16)?;
            Weight::SparseBf16(SparseBf16::from_parts(n, k, masks, values, offsets()?)?)
        }
    })
}

/// Tensors of one weight.
struct Parts<'a>(&'a [TensorOut<'a>]);

impl<'a> Parts<'a> {
    fn get(&self, name: &str) -> Result<&'a TensorOut<'a>, FormatError> {
        let found = self.0.iter().find(|tensor| tensor.name() == name);
        found.ok_or_else(|| FormatError::MissingTensor {
            tensor: name.to_owned(),
        })
    }

    fn array<T: Pod>(&self, name: &str, dtype: Dtype) -> Result<Storage<T>, FormatError> {
        let tensor = self.get(name)?;
        if tensor.dtype() != dtype {
            let (expected, found) = (dtype, tensor.dtype());
            return Err(FormatError::Dtype { expected, found }.in_tensor(name));
        }
        Storage::from_bytes(tensor.data())
    }

    fn scales(&self, k: usize) -> Result<Scales, FormatError> {
        let tensor = self.get(".scale")?;
        if tensor.dtype() == Dtype::F32 {
            return Ok(Scales::Row(self.array(".scale", Dtype::F32)?));
        }
        let values = self.array(".scale", Dtype::BF16)?;
        let groups = tensor.shape().get(1).copied().unwrap_or(0);
        // Where two sizes make equally many groups there is one, and the sizes mean the same.
        let groups_of = |elems: &usize| k.next_multiple_of(TILE_COLUMNS).div_ceil(*elems);
        let elems = GROUP_ELEMS
            .into_iter()
            .find(|elems| groups_of(elems) == groups);
        match elems {
            Some(elems) => Ok(Scales::Group {
                elems,
                groups,
                values,
            }),
            None => Err(FormatError::Shape {
                expected: GROUP_ELEMS.iter().map(groups_of).collect(),
                found: vec![groups],
            }
            .in_tensor(".scale")),
        }
    }
}
