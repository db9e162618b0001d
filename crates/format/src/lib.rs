//! The `strip16` packed weight layout and its safetensors container.
//!
//! A weight is `[N, K]` (outputs, inputs). [`SparseBf16`] keeps one bit for every element and the bits of
//! the elements that are not zero; [`DenseBf16`] keeps every element in the same order. The byte-exact
//! specification is `docs/weight-format.md`.
#![deny(unsafe_code)]

mod bitmap_bf16;
pub mod container;
mod dense_bf16;
mod error;
mod finite;
mod shape;
mod storage;
mod strip;

pub use bitmap_bf16::SparseBf16;
pub use dense_bf16::DenseBf16;
pub use error::{Field, FormatError};
pub use shape::{BLOCK_K, LINE_BYTES, LINE_ELEMS_BF16, SLACK_BYTES, STRIP_ROWS};
pub use storage::Storage;

#[cfg(target_endian = "big")]
compile_error!("packed files are little endian and are used straight from the map");
