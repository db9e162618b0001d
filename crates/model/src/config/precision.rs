//! The dtype of packed and quantized weights.

use std::fmt;

use sparamx_format::ElementKind;

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
    /// Of such elements; `group_elems` columns share a scale where there are groups.
    pub fn new(element: ElementKind, group_elems: usize) -> Self {
        match element {
            ElementKind::Bf16 => Precision::Bf16,
            ElementKind::Int8 => Precision::Int8,
            ElementKind::Int4 => Precision::Int4 { group_elems },
        }
    }

    /// What the elements are.
    pub fn element(self) -> ElementKind {
        match self {
            Precision::Bf16 => ElementKind::Bf16,
            Precision::Int8 => ElementKind::Int8,
            Precision::Int4 { .. } => ElementKind::Int4,
        }
    }

    /// Columns that share a scale, where there is not one a row.
    pub fn group_elems(self) -> Option<usize> {
        match self {
            Precision::Int4 { group_elems } => Some(group_elems),
            Precision::Bf16 | Precision::Int8 => None,
        }
    }

    /// The name in `quantization_config.weights` and on the command line.
    pub fn name(self) -> &'static str {
        self.element().name()
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
