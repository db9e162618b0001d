//! What can be wrong with a packed weight or its file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::short::Short;

/// One of the arrays of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The dense rows a weight is packed from.
    Rows,
    /// One bit for every element.
    Masks,
    /// The elements that are not zero.
    Values,
    /// Where the values of every (strip, block) start.
    Offsets,
    /// What the levels of a quantized weight are worth.
    Scales,
    /// The levels of a dense quantized weight.
    Levels,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::Rows => "rows",
            Field::Masks => "masks",
            Field::Values => "values",
            Field::Offsets => "offsets",
            Field::Scales => "scales",
            Field::Levels => "levels",
        })
    }
}

/// Everything this crate refuses.
#[derive(Debug)]
pub enum FormatError {
    /// A file could not be opened, mapped, written or renamed.
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not safetensors: the header is missing, too long, not JSON, or does not describe the file.
    Header {
        /// What is wrong with it.
        reason: String,
    },
    /// In place of the file there is the pointer that git-lfs left.
    LfsPointer,
    /// Memory for an array could not be had.
    OutOfMemory {
        /// Size of the array.
        bytes: usize,
    },
    /// A shape with no elements.
    EmptyShape {
        /// Output rows.
        n: usize,
        /// Input columns.
        k: usize,
    },
    /// A shape whose padded size does not fit the address space.
    ShapeTooLarge {
        /// Output rows.
        n: usize,
        /// Input columns.
        k: usize,
    },
    /// A quantized weight has more columns than sums of 32 bits can take.
    TooManyColumns {
        /// Its columns.
        found: usize,
        /// The most there may be.
        most: usize,
    },
    /// An array has not the number of elements its shape asks for.
    Length {
        /// The array.
        field: Field,
        /// Elements by the shape.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// An element is NaN or infinite.
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The bf16 bits.
        bits: u16,
    },
    /// A stored value is NaN, infinite, or a zero that should not have been stored.
    BadValue {
        /// Index into the values.
        index: usize,
        /// The bf16 bits.
        bits: u16,
    },
    /// A level that the format cannot hold.
    Level {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The level.
        level: i8,
        /// Lowest level of the format.
        lowest: i8,
        /// Highest level of the format.
        highest: i8,
    },
    /// A stored level is -128, or a zero that should not have been stored.
    BadLevel {
        /// Index into the values or levels.
        index: usize,
        /// The level.
        level: i8,
    },
    /// A scale is NaN, infinite or -0.
    BadScale {
        /// Index of the scale in the array that holds it.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// A group of columns that share a scale has a size that no kernel knows.
    GroupSize {
        /// Columns of a group.
        elems: usize,
    },
    /// Scales of the wrong kind for the weight's format.
    ScaleKind {
        /// The kind the format has, `row` or `group`.
        expected: &'static str,
    },
    /// An offset is not where the set bits of the masks before it put it.
    Offset {
        /// The strip.
        strip: usize,
        /// The block of 512 columns, or the number of blocks for the end of the strip.
        block: usize,
        /// Offset by the masks, in elements.
        expected: u64,
        /// Offset found.
        found: u64,
    },
    /// Padding that must be zero is not.
    Padding {
        /// The array.
        field: Field,
        /// Index of the first such element of the array.
        index: usize,
    },
    /// The file lacks a tensor.
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// The file does not record the logical shape of a packed weight.
    MissingShape {
        /// The key that the header's `__metadata__` lacks or whose text is not `[n, k]`.
        key: String,
    },
    /// An entry of the file that describes a packed weight is none this reader knows.
    Description {
        /// The key of the header's `__metadata__`.
        key: String,
        /// Its text, empty where there is none.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A packed weight has another format than the reader asks for.
    WeightFormat {
        /// Asked for.
        expected: &'static str,
        /// In the file.
        found: &'static str,
    },
    /// The logical shape in the file is not the one the model asks for.
    LogicalShape {
        /// Asked for, `[n, k]`.
        expected: [usize; 2],
        /// In the file, `[n, k]`.
        found: [usize; 2],
    },
    /// A tensor has the wrong element type.
    Dtype {
        /// What the layout asks for.
        expected: Dtype,
        /// What the file says.
        found: Dtype,
    },
    /// An element type has not the size of the type it is to be read as.
    ElementSize {
        /// What the file says.
        dtype: Dtype,
        /// Size of an element asked for.
        expected_bytes: usize,
    },
    /// A tensor has the wrong shape.
    Shape {
        /// By the layout and the logical shape.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A tensor in compressed-tensors' `sparse-bitmask` form contradicts itself.
    Bitmask {
        /// The part: `shape`, `compressed`, `bitmask` or `row_offsets`.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not GGUF, or not one that this reader takes.
    Gguf {
        /// The key or part of the file, empty for the file as a whole.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Data handed to the writer has not the size its shape and type ask for.
    DataSize {
        /// Bytes by shape and type; `None` when the product overflows.
        expected: Option<usize>,
        /// Bytes handed over.
        found: usize,
    },
    /// Two tensors handed to the writer have one name.
    DuplicateTensor,
    /// An error in one tensor.
    InTensor {
        /// Its name.
        tensor: String,
        /// The error.
        source: Box<FormatError>,
    },
    /// An error in one file.
    InFile {
        /// The file.
        path: PathBuf,
        /// The error.
        source: Box<FormatError>,
    },
}

impl FormatError {
    /// The error itself, without the tensor and the file that it is about.
    pub fn root(&self) -> &FormatError {
        match self {
            FormatError::InTensor { source, .. } | FormatError::InFile { source, .. } => {
                source.root()
            }
            error => error,
        }
    }

    /// Says which tensor the error is about.
    #[must_use]
    pub fn in_tensor(self, tensor: impl Into<String>) -> Self {
        FormatError::InTensor {
            tensor: tensor.into(),
            source: Box::new(self),
        }
    }

    /// Says which file the error is about.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        FormatError::InFile {
            path: path.to_path_buf(),
            source: Box::new(self),
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::EmptyShape { .. }
            | E::ShapeTooLarge { .. }
            | E::TooManyColumns { .. }
            | E::Length { .. }
            | E::NotFinite { .. }
            | E::BadValue { .. }
            | E::Level { .. }
            | E::BadLevel { .. }
            | E::BadScale { .. }
            | E::GroupSize { .. }
            | E::ScaleKind { .. }
            | E::Offset { .. }
            | E::Padding { .. } => self.fmt_weight(f),
            E::MissingShape { .. }
            | E::Description { .. }
            | E::WeightFormat { .. }
            | E::LogicalShape { .. }
            | E::Dtype { .. }
            | E::ElementSize { .. }
            | E::Shape { .. }
            | E::DataSize { .. } => self.fmt_tensor(f),
            _ => self.fmt_file(f),
        }
    }
}

impl FormatError {
    /// The message of an error in a file as a whole, or of where one is.
    fn fmt_file(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::Bitmask { part, reason } => write!(
                f,
                "sparse-bitmask part '{part}': {}; download it or save the model again",
                Short(reason)
            ),
            E::Gguf { at, reason } if at.is_empty() => {
                write!(f, "not a GGUF file that can be read: {}", Short(reason))
            }
            E::Gguf { at, reason } => {
                write!(
                    f,
                    "'{}' in the GGUF file: {}; download or convert it again",
                    Short(at),
                    Short(reason)
                )
            }
            E::Io {
                action,
                path,
                source,
            } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            E::Header { reason } => {
                write!(
                    f,
                    "not a valid safetensors file: {}; download or pack it again",
                    Short(reason)
                )
            }
            E::LfsPointer => write!(
                f,
                "a pointer of git-lfs in place of the file: run `git lfs pull` in its folder, or download it again"
            ),
            E::OutOfMemory { bytes } => write!(f, "no memory for an array of {bytes} bytes"),
            E::MissingTensor { tensor } => {
                write!(f, "tensor {} is missing from the file", Short(tensor))
            }
            E::DuplicateTensor => write!(f, "two tensors have this name"),
            E::InTensor { tensor, source } => write!(f, "tensor {}: {source}", Short(tensor)),
            E::InFile { path, source } => write!(f, "{}: {source}", path.display()),
            other => unreachable!("{other:?} is about a tensor or a weight"),
        }
    }

    /// The message of an error in the shape or the arrays of a weight.
    fn fmt_weight(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::EmptyShape { n, k } => write!(f, "shape [{n}, {k}] has no elements"),
            E::ShapeTooLarge { n, k } => {
                write!(f, "shape [{n}, {k}] does not fit the address space")
            }
            E::TooManyColumns { found, most } => write!(
                f,
                "{found} columns are too many for int8 or int4 weights, {most} are the most; use bf16"
            ),
            E::Length {
                field,
                expected,
                found,
            } => {
                write!(
                    f,
                    "{field} have {found} elements, the shape asks for {expected}"
                )
            }
            E::NotFinite { row, col, bits } => {
                let class = class(*bits);
                write!(f, "element at row {row}, column {col} is {class} ")?;
                write!(f, "(bf16 bits {bits:#06x}); weights must be finite")
            }
            E::BadValue { index, bits } => {
                let class = class(*bits);
                write!(
                    f,
                    "stored value {index} is {class} (bf16 bits {bits:#06x}); "
                )?;
                write!(
                    f,
                    "stored values are finite and not +0; pack the model again"
                )
            }
            E::Level { .. }
            | E::BadLevel { .. }
            | E::BadScale { .. }
            | E::GroupSize { .. }
            | E::ScaleKind { .. } => self.fmt_quantized(f),
            E::Offset {
                strip,
                block,
                expected,
                found,
            } => {
                write!(f, "offset of strip {strip}, block {block} is {found}, ")?;
                write!(f, "the masks put it at {expected}; pack the model again")
            }
            E::Padding { field, index } => {
                write!(f, "padding in {field} at element {index} is not zero; ")?;
                write!(f, "pack the model again")
            }
            other => unreachable!("{other:?} is not about the arrays of a weight"),
        }
    }

    /// The message of an error in the levels or scales of a weight.
    fn fmt_quantized(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::Level {
                row,
                col,
                level,
                lowest,
                highest,
            } => {
                write!(f, "level at row {row}, column {col} is {level}; ")?;
                write!(f, "levels of this format are {lowest} to {highest}")
            }
            E::BadLevel { index, level } => {
                write!(
                    f,
                    "stored level {index} is {level}; stored levels of a packed "
                )?;
                write!(
                    f,
                    "weight are not 0, and none is -128; pack the model again"
                )
            }
            E::BadScale { index, value } => {
                write!(
                    f,
                    "scale {index} is {value}; scales are finite and not -0; "
                )?;
                write!(f, "quantize the model again")
            }
            E::GroupSize { elems } => {
                write!(f, "groups of {elems} columns; a group has 32, 64 or 128")
            }
            E::ScaleKind { expected } => {
                write!(f, "weights of this format have {expected} scales")
            }
            other => unreachable!("{other:?} is not about levels or scales"),
        }
    }

    /// The message of an error in what a file or a caller says about a tensor.
    fn fmt_tensor(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FormatError as E;
        match self {
            E::MissingShape { key } => {
                write!(f, "the header's __metadata__ has no entry {key} ")?;
                write!(f, "of the form [n, k]; pack the model again")
            }
            E::Description {
                key,
                found,
                expected,
            } => {
                write!(f, "the header's __metadata__ says {found:?} for {key}, ")?;
                write!(f, "expected {expected}; pack the model again")
            }
            E::WeightFormat { expected, found } => {
                write!(f, "the file holds {found}, not {expected}; ")?;
                write!(f, "config.json belongs to other weights")
            }
            E::LogicalShape { expected, found } => {
                write!(f, "packed as {found:?}, but the model asks for ")?;
                write!(f, "{expected:?}; config.json belongs to other weights")
            }
            E::Dtype { expected, found } => {
                write!(f, "element type is {found}, expected {expected}")
            }
            E::ElementSize {
                dtype,
                expected_bytes,
            } => {
                write!(
                    f,
                    "element type {dtype} cannot be read as elements of {expected_bytes} bytes"
                )
            }
            E::Shape { expected, found } => write!(f, "shape is {found:?}, expected {expected:?}"),
            E::DataSize {
                expected: Some(expected),
                found,
            } => {
                write!(
                    f,
                    "data has {found} bytes, shape and element type ask for {expected}"
                )
            }
            E::DataSize {
                expected: None,
                found,
            } => {
                write!(
                    f,
                    "data has {found} bytes, but the size of the shape overflows"
                )
            }
            other => unreachable!("{other:?} is not about a tensor"),
        }
    }
}

/// Checks that `field` has as many elements as its shape asks for.
pub(crate) fn check_length(field: Field, expected: usize, found: usize) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Length {
        field,
        expected,
        found,
    })
}

/// The word for bf16 bits that are refused.
fn class(bits: u16) -> &'static str {
    match (bits & 0x7f80 == 0x7f80, bits & 0x007f) {
        (true, 0) => "infinite",
        (true, _) => "nan",
        (false, _) => "zero",
    }
}

// The messages contain those of the errors inside; a source beside that would be printed twice in a chain.
impl std::error::Error for FormatError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each variant with the message it must have.
    fn every_variant() -> Vec<(FormatError, &'static str)> {
        use FormatError as E;
        let (n, k, index, bits) = (2, 3, 7, 0x7f80);
        let text = || "x".to_string();
        vec![
            (
                E::Io {
                    action: "open",
                    path: "f".into(),
                    source: io::ErrorKind::NotFound.into(),
                },
                "cannot open f: entity not found",
            ),
            (
                E::Header { reason: text() },
                "not a valid safetensors file: x; download or pack it again",
            ),
            (
                E::OutOfMemory { bytes: 9 },
                "no memory for an array of 9 bytes",
            ),
            (E::EmptyShape { n, k: 0 }, "shape [2, 0] has no elements"),
            (
                E::ShapeTooLarge { n, k },
                "shape [2, 3] does not fit the address space",
            ),
            (
                E::TooManyColumns { found: 2, most: 1 },
                "2 columns are too many for int8 or int4 weights, 1 are the most; use bf16",
            ),
            (
                E::Length {
                    field: Field::Masks,
                    expected: 4,
                    found: 5,
                },
                "masks have 5 elements, the shape asks for 4",
            ),
            (
                E::NotFinite {
                    row: 1,
                    col: 2,
                    bits,
                },
                "element at row 1, column 2 is infinite (bf16 bits 0x7f80); weights must be finite",
            ),
            (
                E::BadValue { index, bits: 0 },
                "stored value 7 is zero (bf16 bits 0x0000); stored values are finite and not +0; pack the model again",
            ),
            (
                E::Offset {
                    strip: 1,
                    block: 2,
                    expected: 32,
                    found: 33,
                },
                "offset of strip 1, block 2 is 33, the masks put it at 32; pack the model again",
            ),
            (
                E::Level {
                    row: 1,
                    col: 2,
                    level: -128,
                    lowest: -127,
                    highest: 127,
                },
                "level at row 1, column 2 is -128; levels of this format are -127 to 127",
            ),
            (
                E::BadLevel { index, level: 0 },
                "stored level 7 is 0; stored levels of a packed weight are not 0, and none is -128; pack the model again",
            ),
            (
                E::BadScale { index, value: -0.0 },
                "scale 7 is -0; scales are finite and not -0; quantize the model again",
            ),
            (
                E::GroupSize { elems: 48 },
                "groups of 48 columns; a group has 32, 64 or 128",
            ),
            (
                E::ScaleKind { expected: "group" },
                "weights of this format have group scales",
            ),
            (
                E::Padding {
                    field: Field::Values,
                    index,
                },
                "padding in values at element 7 is not zero; pack the model again",
            ),
            (
                E::MissingTensor { tensor: text() },
                "tensor x is missing from the file",
            ),
            (
                E::MissingShape { key: text() },
                "the header's __metadata__ has no entry x of the form [n, k]; pack the model again",
            ),
            (
                E::Description {
                    key: "w.format".to_string(),
                    found: text(),
                    expected: "int8 or int4",
                },
                "the header's __metadata__ says \"x\" for w.format, expected int8 or int4; pack the model again",
            ),
            (
                E::WeightFormat {
                    expected: "dense int4",
                    found: "packed int8",
                },
                "the file holds packed int8, not dense int4; config.json belongs to other weights",
            ),
            (
                E::LogicalShape {
                    expected: [n, k],
                    found: [k, n],
                },
                "packed as [3, 2], but the model asks for [2, 3]; config.json belongs to other weights",
            ),
            (
                E::Dtype {
                    expected: Dtype::U32,
                    found: Dtype::F32,
                },
                "element type is F32, expected U32",
            ),
            (
                E::ElementSize {
                    dtype: Dtype::F32,
                    expected_bytes: 2,
                },
                "element type F32 cannot be read as elements of 2 bytes",
            ),
            (
                E::Shape {
                    expected: vec![n],
                    found: vec![],
                },
                "shape is [], expected [2]",
            ),
            (
                E::Bitmask {
                    part: "bitmask",
                    reason: text(),
                },
                "sparse-bitmask part 'bitmask': x; download it or save the model again",
            ),
            (
                E::Gguf {
                    at: String::new(),
                    reason: text(),
                },
                "not a GGUF file that can be read: x",
            ),
            (
                E::Gguf {
                    at: "general.alignment".to_string(),
                    reason: text(),
                },
                "'general.alignment' in the GGUF file: x; download or convert it again",
            ),
            (
                E::DataSize {
                    expected: Some(4),
                    found: 5,
                },
                "data has 5 bytes, shape and element type ask for 4",
            ),
            (
                E::DataSize {
                    expected: None,
                    found: 5,
                },
                "data has 5 bytes, but the size of the shape overflows",
            ),
            (
                E::DuplicateTensor.in_tensor("w").in_file(Path::new("f")),
                "f: tensor w: two tensors have this name",
            ),
        ]
    }

    #[test]
    fn messages_say_what_where_and_what_to_do() {
        for (error, message) in every_variant() {
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn bits_are_named() {
        assert_eq!(
            [0xff80, 0xffff, 0x7f81].map(class),
            ["infinite", "nan", "nan"]
        );
    }
}
