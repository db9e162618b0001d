//! The `strip16` packed weight layout and its safetensors container.
//!
//! A weight is `[N, K]` (outputs, inputs). [`Sparse`] keeps one bit for every element and the elements that are not zero;
//! [`Dense`] keeps every element in the same order; [`Weight`] is either, of whatever [`Element`]. An element of an int8 or int4
//! weight is a level times one of the weight's [`Scales`]. The byte-exact specification is `docs/weight-format.md`.
//!
//! What other programs write is read by [`bitmask`] (compressed-tensors' `sparse-bitmask`), [`words`] (its packed levels) and
//! [`gguf`]; `docs/checkpoints.md` says what of it is understood.
#![deny(unsafe_code)]

pub mod bitmask;
pub mod container;
mod dense;
pub mod element;
mod error;
pub mod gguf;
mod kind;
pub mod lfs;
mod lines;
mod pack;
pub mod page;
mod quantizer;
mod scales;
mod scan;
mod shape;
mod short;
mod sparse;
mod storage;
mod validate;
mod weight;
pub mod words;

pub use dense::Dense;
pub use element::{Element, Elements};
pub use error::{Field, FormatError};
pub use kind::{ElementKind, UnknownName, WeightFormat};
pub use quantizer::Quantizer;
pub use scales::{GROUP_ELEMS, Scales, bf16_scale};
pub use shape::{BLOCK_K, LINE_BYTES, LINE_ELEMS_BF16, LINE_ELEMS_I8, SLACK_BYTES, STRIP_ROWS};
pub use short::{BothEnds, Short};
pub use sparse::{Sparse, SparseView};
pub use storage::Storage;
pub use weight::{DenseBf16, DenseI4, DenseI8, SparseBf16, SparseI4, SparseI8, Weight};

#[cfg(target_endian = "big")]
compile_error!("packed files are little endian and are used straight from the map");
