//! Where the tensors of a checkpoint are.

use std::path::Path;

use sparamx_format::WeightFormat;

use super::foreign::{Foreign, Vector};
use super::unneeded::LeftOut;
use crate::families::plan::TensorPlan;
use crate::{Config, ModelError};

/// Where a tensor is.
pub(crate) enum Stored {
    /// A plain tensor.
    Plain(At),
    /// A packed weight.
    Packed(At, WeightFormat),
    /// A matrix in another program's form.
    Foreign(Foreign),
    /// A norm or bias in another program's form.
    Vector(Vector),
}

/// A tensor, or the tensors of a packed weight, in the files.
pub(crate) struct At {
    /// Index of the file.
    pub file: usize,
    /// Its name there.
    pub name: String,
}

/// The tensors of files in one form, by the names that the model has for them.
pub(crate) trait Tensors {
    /// Whether there is such a tensor, in whatever form.
    fn has(&self, name: &str) -> bool;
    /// Takes the output head for the embedding, which the files do not have.
    fn head_is_embedding(&mut self);
    /// Where the tensors of the plan are. What else there is must be of no use.
    fn find(
        self,
        config: &Config,
        plan: &[TensorPlan],
        left_out: &mut LeftOut,
    ) -> Result<Vec<Stored>, ModelError>;
}

/// There is no such tensor.
pub(crate) fn missing(dir: &Path, name: &str) -> ModelError {
    ModelError::MissingTensor {
        dir: dir.to_owned(),
        tensor: name.to_owned(),
    }
}
