//! Weights of tensors that are in no file.

use bytemuck::Pod;
use safetensors::Dtype;

use super::packed::{MASK, OFFSETS, SCALE, VALUES};
use super::write::TensorOut;
use crate::dense::Dense;
use crate::element::{Bf16, Element, Mask, Quantized};
use crate::sparse::Sparse;
use crate::{FormatError, GROUP_ELEMS, Scales, Storage};

/// Columns that k of int8 and int4 weights is padded to a multiple of.
const TILE_COLUMNS: usize = 64;

/// The tensors of one weight, called by their suffixes.
pub(crate) struct Loose<'a>(pub &'a [TensorOut<'a>]);

impl<'a> Loose<'a> {
    /// The element type of the values.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`]
    pub fn values_dtype(&self) -> Result<Dtype, FormatError> {
        self.get(VALUES).map(TensorOut::dtype)
    }

    /// Whether there is a bitmap.
    pub fn is_sparse(&self) -> bool {
        self.get(MASK).is_ok()
    }

    /// The packed bf16 weight.
    ///
    /// # Errors
    /// If a tensor is missing or has another type, or fails the checks of a file.
    pub fn sparse_bf16(&self, n: usize, k: usize) -> Result<Sparse<Bf16>, FormatError> {
        let masks = self.array(MASK, <Bf16 as Element>::Mask::DTYPE)?;
        let values = self.array(VALUES, Bf16::UNIT_DTYPE)?;
        Sparse::<Bf16>::from_parts(n, k, masks, values, self.array(OFFSETS, Dtype::U64)?)
    }

    /// The packed weight of levels.
    ///
    /// # Errors
    /// As [`Loose::sparse_bf16`].
    pub fn sparse<E: Quantized>(&self, n: usize, k: usize) -> Result<Sparse<E>, FormatError> {
        let values = self.array(VALUES, E::UNIT_DTYPE)?;
        let masks = self.array(MASK, E::Mask::DTYPE)?;
        let offsets = self.array(OFFSETS, Dtype::U64)?;
        Sparse::<E>::from_parts(n, k, masks, values, offsets, self.scales(k)?)
    }

    /// The dense weight of levels.
    ///
    /// # Errors
    /// As [`Loose::sparse_bf16`].
    pub fn dense<E: Quantized>(&self, n: usize, k: usize) -> Result<Dense<E>, FormatError> {
        let values = self.array(VALUES, E::UNIT_DTYPE)?;
        Dense::<E>::from_parts(n, k, values, self.scales(k)?)
    }

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
        let tensor = self.get(SCALE)?;
        if tensor.dtype() == Dtype::F32 {
            return Ok(Scales::Row(self.array(SCALE, Dtype::F32)?));
        }
        let values = self.array(SCALE, Dtype::BF16)?;
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
            .in_tensor(SCALE)),
        }
    }
}
