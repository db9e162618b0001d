//! Which weights there are: what an element is, and whether zeros are left out.

use std::fmt;
use std::str::FromStr;

/// What an element of a weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementKind {
    /// A bf16 value.
    Bf16,
    /// A level of 8 bits; a scale for each row.
    Int8,
    /// A level of 4 bits; a scale for each row and group of columns.
    Int4,
}

impl ElementKind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Int8, Self::Int4];

    /// `bf16`, `int8` or `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of an element that is stored, without scales.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bf16 => 16,
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// The element type as safetensors names it; `I4` for int4, for which it has no name.
    pub const fn dtype_name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Int8 => "I8",
            Self::Int4 => "I4",
        }
    }
}

impl fmt::Display for ElementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ElementKind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or(UnknownName("bf16, int8 or int4"))
    }
}

/// The forms of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// All elements, bf16.
    DenseBf16,
    /// A bitmap and the elements that are not zero, bf16.
    SparseBf16,
    /// All levels, a byte each, with the scales.
    DenseI8,
    /// A bitmap and the levels that are not zero, a byte each, with the scales.
    SparseI8,
    /// All levels, half a byte each, with the scales.
    DenseI4,
    /// A bitmap and the levels that are not zero, half a byte each, with the scales.
    SparseI4,
}

impl WeightFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [
        Self::DenseBf16,
        Self::SparseBf16,
        Self::DenseI8,
        Self::SparseI8,
        Self::DenseI4,
        Self::SparseI4,
    ];

    /// The format of such elements, with or without zeros.
    pub const fn new(element: ElementKind, sparse: bool) -> Self {
        match (element, sparse) {
            (ElementKind::Bf16, false) => Self::DenseBf16,
            (ElementKind::Bf16, true) => Self::SparseBf16,
            (ElementKind::Int8, false) => Self::DenseI8,
            (ElementKind::Int8, true) => Self::SparseI8,
            (ElementKind::Int4, false) => Self::DenseI4,
            (ElementKind::Int4, true) => Self::SparseI4,
        }
    }

    /// What the elements are.
    pub const fn element(self) -> ElementKind {
        match self {
            Self::DenseBf16 | Self::SparseBf16 => ElementKind::Bf16,
            Self::DenseI8 | Self::SparseI8 => ElementKind::Int8,
            Self::DenseI4 | Self::SparseI4 => ElementKind::Int4,
        }
    }

    /// Whether zeros are left out.
    pub const fn is_sparse(self) -> bool {
        matches!(self, Self::SparseBf16 | Self::SparseI8 | Self::SparseI4)
    }

    /// `dense bf16`, `sparse bf16` and so on.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DenseBf16 => "dense bf16",
            Self::SparseBf16 => "sparse bf16",
            Self::DenseI8 => "dense int8",
            Self::SparseI8 => "sparse int8",
            Self::DenseI4 => "dense int4",
            Self::SparseI4 => "sparse int4",
        }
    }

    /// The name in messages about files, where a sparse weight is called packed.
    pub const fn name_in_files(self) -> &'static str {
        match self {
            Self::SparseBf16 => "packed bf16",
            Self::SparseI8 => "packed int8",
            Self::SparseI4 => "packed int4",
            dense => dense.name(),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or(UnknownName(
            "dense or sparse, and bf16, int8 or int4 after it,",
        ))
    }
}

/// A name that stands for nothing; holds what would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName(&'static str);

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is needed", self.0)
    }
}

impl std::error::Error for UnknownName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for kind in ElementKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for format in WeightFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(
                WeightFormat::new(format.element(), format.is_sparse()),
                format
            );
        }
        let error = "fp8".parse::<ElementKind>().unwrap_err();
        assert_eq!(error.to_string(), "bf16, int8 or int4 is needed");
        assert!("packed int8".parse::<WeightFormat>().is_err());
    }
}
