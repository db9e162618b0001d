//! Weights in the forms of other programs, read as if they were dense, or as int8 and int4 weights where these say the same.

pub(crate) mod compressed_tensors;
pub(crate) mod gguf;
mod quantized;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::bf16;
use sparamx_format::container::{Dtype, TensorView};
use sparamx_format::{Weight, WeightFormat};

use crate::ModelError;
use crate::checkpoint::convert::{RawRows, Source, finite_rows};
use crate::checkpoint::encoding::Encoding;
use crate::families::plan::TensorPlan;

use quantized::gains;
pub(crate) use quantized::{Groups, Quantized};

/// A matrix in a foreign form.
pub(crate) struct Foreign {
    pub source: Box<dyn Decode + Send + Sync>,
    /// The file that messages name.
    pub path: PathBuf,
    /// Form in which linear layers may have it, other than dense bf16; found out when it is needed first.
    pub form: OnceLock<Result<WeightFormat, &'static str>>,
    /// What it is called.
    pub encoding: Encoding,
    /// Element type in the file.
    pub dtype: String,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A norm or a bias in a foreign form, decoded: there are few and they are small.
pub(crate) struct Vector {
    pub path: PathBuf,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub elements: Vec<u8>,
    pub encoding: Encoding,
    /// Bytes in the file.
    pub bytes: u64,
}

impl Vector {
    pub(crate) fn view(&self) -> TensorView<'_> {
        TensorView {
            dtype: self.dtype,
            shape: self.shape.clone(),
            bytes: &self.elements,
        }
    }
}

/// What a matrix is once it has been taken out of its form.
pub(crate) enum Decoded<'a> {
    /// Floats, row-major and little endian.
    Float { dtype: Dtype, bytes: Cow<'a, [u8]> },
    /// Levels and scales.
    Levels(Quantized<'a>),
}

/// A form.
pub(crate) trait Decode {
    /// Takes the `[n, k]` matrix out of it and checks all of it but the values of floats.
    fn decode(&self, n: usize, k: usize) -> Result<Decoded<'_>, ModelError>;
    /// The type of floats; nothing for levels.
    fn floats(&self) -> Option<Dtype>;
    /// Elements that are stored, in a form that leaves zeros out.
    fn stored_elements(&self) -> Option<usize>;
    /// Gives the memory of what was read of the file back to the system; it can be read again.
    fn release(&self);
}

/// Why a matrix of floats is dense.
const FLOATS: &str = "floats without a bitmask";
const GAINS_NOTHING: &str = "too few zeros for a bitmask to gain";
const ROUNDED: &str = "floats other than bf16";
const DAMAGED: &str = "a damaged tensor";

impl Foreign {
    /// As bf16.
    pub(crate) fn rows(&self, tensor: &TensorPlan) -> Result<RawRows<'_>, ModelError> {
        let (n, k) = size(tensor);
        let rows = match self.source.decode(n, k)? {
            Decoded::Float { dtype, bytes } => return self.float_rows(tensor, dtype, bytes),
            Decoded::Levels(levels) => levels.rows(),
        };
        finite_rows(&self.path, &tensor.name, n, k, rows)
    }

    fn float_rows<'a>(
        &'a self,
        tensor: &TensorPlan,
        dtype: Dtype,
        bytes: Cow<'a, [u8]>,
    ) -> Result<RawRows<'a>, ModelError> {
        let (n, k) = size(tensor);
        match bytes {
            Cow::Borrowed(bytes) => float_rows(&self.path, tensor, dtype, bytes),
            Cow::Owned(bytes) => {
                let rows = float_rows(&self.path, tensor, dtype, &bytes)?;
                let RawRows { bits, inexact, .. } = rows;
                let bits = Cow::Owned(bits.into_owned());
                Ok(RawRows {
                    n,
                    k,
                    bits,
                    inexact,
                })
            }
        }
    }

    /// In the form of [`Foreign::form`].
    pub(crate) fn weight(&self, tensor: &TensorPlan) -> Result<Option<Weight>, ModelError> {
        let Some(form) = self.form(tensor) else {
            return Ok(None);
        };
        let (n, k) = size(tensor);
        let weight = match self.source.decode(n, k)? {
            Decoded::Levels(levels) => levels.weight(form),
            Decoded::Float { dtype, bytes } => {
                let rows = self.float_rows(tensor, dtype, bytes)?;
                // As in what sparamx packs itself, a negative zero is a zero.
                let zero = bf16::NEG_ZERO.to_bits();
                let bits: Vec<u16> = rows
                    .bits
                    .iter()
                    .map(|&b| if b == zero { 0 } else { b })
                    .collect();
                Weight::of_bits(&bits, n, k, true)
            }
        };
        weight
            .map(Some)
            .map_err(|e| e.in_tensor(&tensor.name).in_file(&self.path).into())
    }

    /// The form in which a linear layer has the matrix, if it is not dense bf16.
    pub(crate) fn form(&self, tensor: &TensorPlan) -> Option<WeightFormat> {
        self.form_or_why(tensor).ok()
    }

    /// What keeps levels from being used as they are.
    pub(crate) fn why_not_levels(&self, tensor: &TensorPlan) -> Option<&'static str> {
        let plain = [FLOATS, GAINS_NOTHING, ROUNDED, DAMAGED];
        self.form_or_why(tensor)
            .err()
            .filter(|why| !plain.contains(why))
    }

    fn form_or_why(&self, tensor: &TensorPlan) -> Result<WeightFormat, &'static str> {
        if !tensor.role.may_be_packed() {
            return Err(FLOATS);
        }
        *self.form.get_or_init(|| {
            let (n, k) = size(tensor);
            let stored = self.source.stored_elements();
            match (self.source.floats(), stored) {
                (Some(_), None) => Err(FLOATS),
                (Some(dtype), Some(_)) if dtype != Dtype::BF16 => Err(ROUNDED),
                (Some(_), Some(nnz)) if gains(n, k, nnz, 16) => Ok(WeightFormat::SparseBf16),
                (Some(_), Some(_)) => Err(GAINS_NOTHING),
                (None, stored) => match self.source.decode(n, k) {
                    Ok(Decoded::Levels(levels)) => levels.form(stored),
                    Ok(Decoded::Float { .. }) => Err(FLOATS),
                    Err(_) => Err(DAMAGED),
                },
            }
        })
    }
}

fn size(tensor: &TensorPlan) -> (usize, usize) {
    match tensor.shape[..] {
        [n, k] => (n, k),
        _ => unreachable!("{} is no matrix", tensor.name),
    }
}

fn float_rows<'a>(
    path: &Path,
    tensor: &TensorPlan,
    dtype: Dtype,
    bytes: &'a [u8],
) -> Result<RawRows<'a>, ModelError> {
    let (n, k) = size(tensor);
    let shape = vec![n, k];
    let view = TensorView {
        dtype,
        shape,
        bytes,
    };
    Source::new(path, &tensor.name, &view)?.rows(n, k)
}
