//! What differs between weights of bf16, int8 and int4 elements: everything else is written once, over this.
//!
//! A line is 16 rows times a few columns, a tile 16 lines; see `docs/weight-format.md`. With zeros present a line has 64
//! bytes, whatever its elements are stored as.

mod bf16;
mod codec;
mod int4;
mod int8;

pub use bf16::Bf16;
pub use codec::{Element, Elements, Mask, Quantized, WeightScales};
pub(crate) use codec::{check_scales, geometry};
pub use int4::Int4;
pub use int8::Int8;
