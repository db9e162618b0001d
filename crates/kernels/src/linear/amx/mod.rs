//! AMX: tiles of 16 rows by 64 bytes; one file for each kind of weight.

pub(crate) mod bf16;
mod block;
pub(crate) mod int;
pub(crate) mod int4;
pub(crate) mod int8;
