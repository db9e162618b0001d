//! From the element types of checkpoints to those of the kernels: matrices become bf16, vectors f32.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use sparamx_format::container::{Dtype, TensorView};
use sparamx_format::{STRIP_ROWS, Weight};

use crate::ModelError;

/// Elements that one thread converts at a time: enough to make handing them out cheap, few enough to share out a small
/// matrix.
const CHUNK: usize = 1 << 16;

/// A matrix in bf16, row-major.
pub struct RawRows<'a> {
    /// Number of rows.
    pub n: usize,
    /// Elements in a row.
    pub k: usize,
    /// `n * k` values as bits, all finite.
    pub bits: Cow<'a, [u16]>,
    /// How many bf16 cannot hold, and were rounded to the nearest (ties to even).
    pub inexact: usize,
}

/// The rows of a packed or quantized weight. `path` and `name` are for messages.
///
/// # Errors
/// [`ModelError::NotFinite`] if a level times its scale is more than bf16 can hold; [`ModelError::Format`] if memory is refused.
pub(crate) fn expand(
    weight: &Weight,
    path: &Path,
    name: &str,
) -> Result<RawRows<'static>, ModelError> {
    let (n, k) = (weight.n(), weight.k());
    let rounded = match weight.bits() {
        Some(bits) => (bits, 0),
        None => round_strips(weight),
    };
    finite_rows(path, name, n, k, rounded)
}

/// Rows from their bits and how many were rounded. `path` and `name` are for messages.
///
/// # Errors
/// [`ModelError::NotFinite`].
pub(crate) fn finite_rows(
    path: &Path,
    name: &str,
    n: usize,
    k: usize,
    (bits, inexact): (Vec<u16>, usize),
) -> Result<RawRows<'static>, ModelError> {
    if let Some(element) = first_not_finite(&bits) {
        return Err(ModelError::NotFinite {
            path: path.to_owned(),
            tensor: name.to_owned(),
            element,
            value: bf16::from_bits(bits[element]).to_f32(),
        });
    }
    let bits = Cow::Owned(bits);
    Ok(RawRows {
        n,
        k,
        bits,
        inexact,
    })
}

/// The rows of a weight in bf16, and how many elements changed.
fn round_strips(weight: &Weight) -> (Vec<u16>, usize) {
    let (n, k) = (weight.n(), weight.k());
    let mut bits = vec![0u16; n * k];
    let inexact = bits
        .par_chunks_mut(STRIP_ROWS * k)
        .enumerate()
        .map(|(s, bits)| {
            let mut inexact = 0;
            for (bits, value) in bits.iter_mut().zip(weight.strip_to_f32(s)) {
                let rounded = bf16::from_f32(value);
                *bits = rounded.to_bits();
                inexact += usize::from(rounded.to_f32() != value);
            }
            inexact
        })
        .sum();
    (bits, inexact)
}

/// Index of the first infinity or NaN.
fn first_not_finite(bits: &[u16]) -> Option<usize> {
    const INFINITY: u16 = 0x7f80;
    let is_bad = |&bits: &u16| bits & INFINITY == INFINITY;
    // Without an early end, which would keep a chunk from becoming vector code.
    let any_bad = |chunk: &[u16]| chunk.iter().fold(false, |any, bits| any | is_bad(bits));
    let chunk = bits.par_chunks(CHUNK).position_first(any_bad)?;
    let first = bits[chunk * CHUNK..].iter().position(is_bad)?;
    Some(chunk * CHUNK + first)
}

/// An element type that weights may have.
#[derive(Clone, Copy)]
enum Element {
    F64,
    F32,
    F16,
    Bf16,
}

impl Element {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(Self::F64),
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The value of one element, little-endian; that of F64 rounded, as PyTorch does on its way to narrower types.
    fn value(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F64 => self.wide(bytes) as f32,
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// The value as it is in the file.
    fn wide(self, bytes: &[u8]) -> f64 {
        match self {
            Self::F64 => f64::from_le_bytes(bytes.try_into().expect("eight bytes")),
            _ => f64::from(self.value(bytes)),
        }
    }
}

/// A tensor and where it is from.
pub(crate) struct Source<'a, 'm> {
    /// For messages, as is the name.
    path: &'m Path,
    name: &'m str,
    element: Element,
    bytes: &'a [u8],
}

impl<'a, 'm> Source<'a, 'm> {
    /// # Errors
    /// [`ModelError::Dtype`].
    pub(crate) fn new(
        path: &'m Path,
        name: &'m str,
        view: &TensorView<'a>,
    ) -> Result<Self, ModelError> {
        let element = Element::of(view.dtype).ok_or_else(|| ModelError::Dtype {
            path: path.to_owned(),
            tensor: name.to_owned(),
            found: format!("{:?}", view.dtype),
        })?;
        Ok(Self {
            path,
            name,
            element,
            bytes: view.bytes,
        })
    }

    /// The values as f32.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`].
    pub(crate) fn vector(&self) -> Result<Vec<f32>, ModelError> {
        let values: Vec<f32> = self
            .bytes
            .chunks_exact(self.element.bytes())
            .map(|b| self.element.value(b))
            .collect();
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(self.not_finite(at)),
        }
    }

    /// The values as `n` rows of `k` in bf16, without a copy where they are that already.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`].
    pub(crate) fn rows(&self, n: usize, k: usize) -> Result<RawRows<'a>, ModelError> {
        let mapped = match self.element {
            // Not on a big-endian machine, and not from a file whose header is not padded.
            Element::Bf16 if cfg!(target_endian = "little") => {
                bytemuck::try_cast_slice::<u8, u16>(self.bytes).ok()
            }
            _ => None,
        };
        let (bits, inexact) = match mapped {
            Some(bits) => (Cow::Borrowed(bits), 0),
            None => {
                let (bits, inexact) = self.round(n * k);
                (Cow::Owned(bits), inexact)
            }
        };
        match first_not_finite(&bits) {
            None => Ok(RawRows {
                n,
                k,
                bits,
                inexact,
            }),
            Some(at) => Err(self.not_finite(at)),
        }
    }

    /// All values in bf16, and how many changed.
    fn round(&self, len: usize) -> (Vec<u16>, usize) {
        let size = self.element.bytes();
        let mut bits = vec![0u16; len];
        let chunks = bits
            .par_chunks_mut(CHUNK)
            .zip(self.bytes.par_chunks(CHUNK * size));
        let round = |(out, bytes): (&mut [u16], &[u8])| {
            let mut inexact = 0;
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(size)) {
                let value = self.element.value(bytes);
                let rounded = bf16::from_f32(value);
                *out = rounded.to_bits();
                let changed = match self.element {
                    Element::F64 => rounded.to_f64() != self.element.wide(bytes),
                    _ => rounded.to_f32() != value,
                };
                inexact += usize::from(changed);
            }
            inexact
        };
        let inexact = chunks.map(round).sum();
        (bits, inexact)
    }

    fn not_finite(&self, element: usize) -> ModelError {
        let size = self.element.bytes();
        ModelError::NotFinite {
            path: self.path.to_owned(),
            tensor: self.name.to_owned(),
            element,
            value: self.element.value(&self.bytes[element * size..][..size]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_element_that_is_not_finite_is_found() {
        let mut bits = vec![0x7f7f; 3 * CHUNK + 1];
        assert_eq!(first_not_finite(&bits), None);
        for at in [3 * CHUNK, 2 * CHUNK + 5, CHUNK, CHUNK - 1, 0] {
            bits[at] = if at % 2 == 0 { 0x7f80 } else { 0xffc0 };
            assert_eq!(first_not_finite(&bits), Some(at));
        }
    }
}
