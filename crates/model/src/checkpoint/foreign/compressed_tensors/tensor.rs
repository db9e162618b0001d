//! A tensor as the files have it: plain, or as a bitmask.

use std::borrow::Cow;
use std::path::Path;

use sparamx_format::bitmask::BitmaskTensor;
use sparamx_format::container::{Dtype, TensorFile, TensorView};

use crate::ModelError;

/// Parts of a bitmask.
pub(super) const PARTS: [&str; 4] = [".shape", ".compressed", ".bitmask", ".row_offsets"];

/// A tensor of a file.
pub(super) struct Part {
    pub(super) file: TensorFile,
    pub(super) name: String,
}

impl Part {
    pub(super) fn view(&self) -> TensorView<'_> {
        let tensor = self.file.tensor(&self.name);
        tensor.expect("it was there when the file was opened")
    }
}

/// A tensor, plain or as a bitmask.
pub(super) enum Tensor {
    Plain(usize, Part),
    Bitmask([Part; 3], Option<Part>),
}

impl Tensor {
    pub(super) fn bitmask(&self) -> Result<Option<BitmaskTensor<'_>>, ModelError> {
        let Tensor::Bitmask(parts, offsets) = self else {
            return Ok(None);
        };
        let [shape, compressed, bitmask] = parts.each_ref().map(Part::view);
        let offsets = offsets.as_ref().map(Part::view);
        BitmaskTensor::new(&shape, &compressed, &bitmask, offsets.as_ref())
            .map(Some)
            .map_err(|e| self.error(e))
    }

    /// Type and shape.
    pub(super) fn header(&self) -> Result<(Dtype, Vec<usize>), ModelError> {
        Ok(match (self.bitmask()?, self) {
            (Some(bitmask), _) => (bitmask.dtype(), bitmask.shape().to_vec()),
            (None, Tensor::Plain(_, part)) => {
                let view = part.view();
                (view.dtype, view.shape)
            }
            (None, Tensor::Bitmask(..)) => unreachable!("it has a bitmask"),
        })
    }

    /// The elements, little endian.
    pub(super) fn elements(&self) -> Result<Cow<'_, [u8]>, ModelError> {
        match (self.bitmask()?, self) {
            (Some(bitmask), _) => bitmask.expand().map(Cow::Owned).map_err(|e| self.error(e)),
            (None, Tensor::Plain(_, part)) => Ok(Cow::Borrowed(part.view().bytes)),
            (None, Tensor::Bitmask(..)) => unreachable!("it has a bitmask"),
        }
    }

    pub(super) fn parts(&self) -> Vec<&Part> {
        match self {
            Tensor::Plain(_, part) => vec![part],
            Tensor::Bitmask(parts, offsets) => parts.iter().chain(offsets).collect(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let parts = self.parts().into_iter();
        parts.map(|part| part.view().bytes.len() as u64).sum()
    }

    pub(super) fn release(&self) {
        self.parts()
            .iter()
            .for_each(|part| part.file.release(&part.name));
    }

    /// The tensor, or the bitmask's first part, for messages.
    pub(super) fn part(&self) -> &Part {
        match self {
            Tensor::Plain(_, part) | Tensor::Bitmask([part, ..], _) => part,
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.part().file.path()
    }

    /// The name for messages; that of a bitmask is the beginning of its parts' names.
    pub(super) fn name(&self) -> &str {
        let name = &self.part().name;
        match self {
            Tensor::Plain(..) => name,
            Tensor::Bitmask(..) => name.strip_suffix(PARTS[0]).unwrap_or(name),
        }
    }

    pub(super) fn error(&self, error: sparamx_format::FormatError) -> ModelError {
        error.in_tensor(self.name()).in_file(self.path()).into()
    }

    pub(super) fn wrong(&self, reason: String) -> ModelError {
        ModelError::BadTensor {
            path: self.path().to_owned(),
            tensor: self.name().to_owned(),
            reason,
        }
    }

    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<(), ModelError> {
        let (_, found) = self.header()?;
        if found == expected {
            return Ok(());
        }
        Err(ModelError::Shape {
            path: self.path().to_owned(),
            tensor: self.name().to_owned(),
            expected: expected.to_vec(),
            found,
        })
    }
}
