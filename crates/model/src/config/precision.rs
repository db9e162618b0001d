//! The dtype of packed and quantized weights.

use std::fmt;

/// The dtype of packed and quantized weights of a checkpoint. Tensors that are neither are F32, F16 or BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bf16 values.
    Bf16,
    /// int8 levels with a scale a row.
    Int8,
    /// int4 levels with a scale for each row and group of columns.
    Int4 {
        /// Columns of a group: 32, 64 or 128.
        group_elems: usize,
    },
}

impl Precision {
    /// The name in `quantization_config.weights` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 { .. } => "int4",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Precision::Int4 { group_elems } => write!(f, " in groups of {group_elems}"),
            _ => Ok(()),
        }
    }
}
