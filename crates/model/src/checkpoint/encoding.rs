//! The forms of tensors in files.

use std::fmt;

/// The form of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// All elements: a plain tensor, or a matrix of levels that this program wrote.
    Dense,
    /// Packed by this program.
    Strip16,
    /// A bitmask of compressed-tensors.
    SparseBitmask,
    /// Levels of compressed-tensors, a byte each.
    IntQuantized,
    /// Levels of compressed-tensors, several to a word.
    PackQuantized,
    /// A type of GGUF.
    Gguf,
}

impl Encoding {
    /// The name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Encoding::Dense => "dense",
            Encoding::Strip16 => "strip16",
            Encoding::SparseBitmask => "sparse-bitmask",
            Encoding::IntQuantized => "int-quantized",
            Encoding::PackQuantized => "pack-quantized",
            Encoding::Gguf => "gguf",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
