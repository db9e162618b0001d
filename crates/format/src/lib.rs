//! The `strip16` packed weight layout and its safetensors container.
//!
//! A weight is `[N, K]` (outputs, inputs). [`SparseBf16`], [`SparseI8`] and [`SparseI4`] keep one bit for every
//! element and the elements that are not zero; [`DenseBf16`], [`DenseI8`] and [`DenseI4`] keep every element in the
//! same order. An element of an int8 or int4 weight is a level times one of the weight's [`Scales`]. The byte-exact
//! specification is `docs/weight-format.md`.
//!
//! What other programs write is read by [`bitmask`] (compressed-tensors' `sparse-bitmask`), [`words`] (its packed levels) and
//! [`gguf`]; `docs/checkpoints.md` says what of it is understood.
#![deny(unsafe_code)]

mod bitmap;
mod bitmap_bf16;
mod bitmap_int;
pub mod bitmask;
pub mod container;
mod dense_bf16;
mod dense_i4;
mod dense_i8;
mod error;
mod finite;
pub mod gguf;
mod levels;
pub mod lfs;
mod scales;
mod shape;
mod short;
mod storage;
mod strip;
pub mod words;

pub use bitmap_bf16::SparseBf16;
pub use bitmap_int::{SparseI4, SparseI8};
pub use dense_bf16::DenseBf16;
pub use dense_i4::DenseI4;
pub use dense_i8::DenseI8;
pub use error::{Field, FormatError};
pub use scales::{GROUP_ELEMS, Scales, bf16_scale};
pub use shape::{BLOCK_K, LINE_BYTES, LINE_ELEMS_BF16, LINE_ELEMS_I8, SLACK_BYTES, STRIP_ROWS};
pub use short::{BothEnds, Short};
pub use storage::Storage;

#[cfg(target_endian = "big")]
compile_error!("packed files are little endian and are used straight from the map");
