//! GGUF files, versions 2 and 3, little endian: metadata, and where the tensors are.
//!
//! Layout: `GGUF`, version (u32), number of tensors and of metadata entries (u64 each); the entries (key, type, value); for
//! every tensor its name, dimensions (innermost first), type and offset; then the data, at the next multiple of
//! `general.alignment`. Strings are a u64 length and UTF-8.

mod blocks;
mod reader;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use blocks::{Blocks, q4_0, q4_1, q6_k, q8_0};
pub use reader::MAGIC;

use crate::container::read::{map_file, release_pages};
use crate::storage::Region;
use crate::{FormatError, lfs};
use reader::{Entry, Reader, bad, kind};

/// Where tensors start unless `general.alignment` says otherwise.
const ALIGNMENT: usize = 32;

/// An open file. A clone shares the map.
///
/// As with [`crate::container::TensorFile`], the file must not be changed while it is open.
#[derive(Clone)]
pub struct GgufFile {
    path: PathBuf,
    region: Arc<Region>,
    /// Where the file's bytes are in the region; all other ranges count from its start.
    file: Range<usize>,
    metadata: HashMap<String, Entry>,
    tensors: Vec<GgufTensor>,
}

/// Element types of tensors that this reader knows the size of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    Bf16,
    /// Blocks of 32 levels of 8 bits with an f16 scale.
    Q8_0,
    /// Blocks of 32 levels of 4 bits with an f16 scale.
    Q4_0,
    /// Blocks of 32 levels of 4 bits with an f16 scale and an f16 minimum.
    Q4_1,
    /// Blocks of 256 levels of 6 bits with a scale for every 16.
    Q6K,
    /// Another one, by its number.
    Other(u32),
}

impl GgufType {
    fn of(id: u32) -> Self {
        match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => Self::Other(other),
        }
    }

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        /// Types by number, those that are gone left out.
        const NAMES: [(u32, &str); 26] = [
            (6, "Q5_0"),
            (7, "Q5_1"),
            (9, "Q8_1"),
            (10, "Q2_K"),
            (11, "Q3_K"),
            (12, "Q4_K"),
            (13, "Q5_K"),
            (15, "Q8_K"),
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (24, "I8"),
            (25, "I16"),
            (26, "I32"),
            (27, "I64"),
            (28, "F64"),
            (29, "IQ1_M"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (39, "MXFP4"),
            (40, "NVFP4"),
        ];
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q6K => "Q6_K",
            Self::Other(id) => NAMES
                .iter()
                .find(|(known, _)| *known == id)
                .map_or("unknown", |(_, name)| name),
        }
    }

    /// Elements and bytes of a block.
    fn block(self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Q8_0 => Some((blocks::ELEMS, blocks::Q8_0_BYTES)),
            Self::Q4_0 => Some((blocks::ELEMS, blocks::Q4_0_BYTES)),
            Self::Q4_1 => Some((blocks::ELEMS, blocks::Q4_1_BYTES)),
            Self::Q6K => Some((blocks::Q6_K_ELEMS, blocks::Q6_K_BYTES)),
            Self::Other(_) => None,
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first: the reverse of the file's order.
    pub shape: Vec<usize>,
    /// Element type.
    pub kind: GgufType,
    /// Where in the file; empty for a type of unknown size.
    range: Range<usize>,
}

/// A value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GgufValue<'a> {
    /// Any whole number.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Many values of one type.
    Array(GgufArray<'a>),
}

/// An array of the metadata, decoded as it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufArray<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

impl GgufFile {
    /// Maps `path` and checks its header: every entry is whole, every tensor of a known type lies inside the file.
    ///
    /// # Errors
    /// [`FormatError::Io`], or [`FormatError::Gguf`] with the key or tensor.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let map = map_file(path)?;
        let file = 0..map.len();
        Self::parse(path.to_path_buf(), Region::File(map), file).map_err(|e| e.in_file(path))
    }

    /// Parses a copy of a file's bytes.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (region, start) = Region::copy_of(bytes)?;
        Self::parse(
            PathBuf::from("(memory)"),
            region,
            start..start + bytes.len(),
        )
    }

    fn parse(path: PathBuf, region: Region, file: Range<usize>) -> Result<Self, FormatError> {
        let bytes = &region.bytes()[file.clone()];
        if lfs::is_pointer(bytes) {
            return Err(FormatError::LfsPointer);
        }
        let mut reader = Reader::new(bytes);
        let (tensor_count, entry_count) = reader.counts()?;
        // No room is made for what the counts promise: every entry has to be there.
        let mut metadata = HashMap::new();
        for _ in 0..entry_count {
            let (key, entry) = reader.entry()?;
            if metadata.contains_key(key) {
                return Err(bad(key, "the key is there twice"));
            }
            metadata.insert(key.to_owned(), entry);
        }
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let tensor = reader.tensor()?;
            if !names.insert(tensor.name) {
                return Err(bad(tensor.name, "the tensor is there twice"));
            }
            tensors.push(tensor);
        }
        let alignment = alignment(metadata.get("general.alignment"), bytes)?;
        let data = reader.position().next_multiple_of(alignment);
        let tensors = tensors
            .iter()
            .map(|tensor| place(tensor, data, alignment, bytes.len()))
            .collect::<Result<_, _>>()?;
        Ok(GgufFile {
            path,
            region: Arc::new(region),
            file,
            metadata,
            tensors,
        })
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The elements of a tensor of this file; none of a type whose size is not known.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.region.bytes()[self.file.clone()][tensor.range.clone()]
    }

    /// As [`crate::container::TensorFile::release`], for a tensor of this file.
    pub fn release(&self, tensor: &GgufTensor) {
        if let Region::File(map) = &*self.region {
            let start = self.file.start;
            release_pages(map, start + tensor.range.start..start + tensor.range.end);
        }
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<GgufValue<'_>> {
        let entry = self.metadata.get(key)?;
        Some(value(entry, &self.region.bytes()[self.file.clone()]))
    }

    /// Keys of the metadata, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.metadata.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }
}

fn alignment(entry: Option<&Entry>, file: &[u8]) -> Result<usize, FormatError> {
    match entry.map(|entry| value(entry, file)) {
        None => Ok(ALIGNMENT),
        Some(GgufValue::Int(n @ 1..=65536)) if (n as usize).is_power_of_two() => Ok(n as usize),
        Some(_) => Err(bad(
            "general.alignment",
            "it is no power of two up to 65536",
        )),
    }
}

/// Where a tensor is, checked against the length of the file.
fn place(
    found: &reader::Tensor<'_>,
    data: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<GgufTensor, FormatError> {
    let wrong = |reason: String| bad(found.name, reason);
    let Some((shape, elements)) = shape(&found.dims) else {
        return Err(wrong(format!("{:?} is no shape of a tensor", found.dims)));
    };
    let kind = GgufType::of(found.kind);
    let Some((block, block_bytes)) = kind.block() else {
        let (name, range) = (found.name.to_owned(), 0..0);
        return Ok(GgufTensor {
            name,
            shape,
            kind,
            range,
        });
    };
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(block) {
        return Err(wrong(format!(
            "{columns} columns are not whole blocks of {block} of type {}",
            kind.name()
        )));
    }
    let range = usize::try_from(found.offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(alignment))
        .and_then(|offset| {
            let start = data.checked_add(offset)?;
            let end = start.checked_add((elements / block).checked_mul(block_bytes)?)?;
            (end <= file_bytes).then_some(start..end)
        });
    let range = range.ok_or_else(|| {
        wrong(format!(
            "{elements} elements of type {} at offset {} of the data do not fit a file of {file_bytes} bytes, or do not \
             start at a multiple of {alignment}",
            kind.name(),
            found.offset
        ))
    })?;
    let name = found.name.to_owned();
    Ok(GgufTensor {
        name,
        shape,
        kind,
        range,
    })
}

/// The shape of a tensor, the slowest dimension first, and its elements; none if a dimension is 0 or the product too large.
fn shape(dims: &[u64]) -> Option<(Vec<usize>, usize)> {
    let sizes = dims.iter().rev();
    let shape: Option<Vec<usize>> = sizes
        .map(|&size| usize::try_from(size).ok().filter(|&size| size > 0))
        .collect();
    let shape = shape?;
    let product = |all: usize, &size: &usize| all.checked_mul(size);
    let elements = shape.iter().try_fold(1, product)?;
    Some((shape, elements))
}

/// The value of an entry that was checked when the file was opened.
fn value<'a>(entry: &Entry, file: &'a [u8]) -> GgufValue<'a> {
    let bytes = &file[entry.range.clone()];
    match entry.kind {
        kind::ARRAY => array(bytes),
        kind::TEXT => GgufValue::Text(text(&bytes[8..])),
        kind => scalar(kind, bytes),
    }
}

/// An array that starts with the type and the number of its values.
fn array(bytes: &[u8]) -> GgufValue<'_> {
    let kind = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let len = u64::from_le_bytes(bytes[4..12].try_into().expect("eight bytes")) as usize;
    let bytes = &bytes[12..];
    GgufValue::Array(GgufArray { kind, len, bytes })
}

/// A value of fixed size.
fn scalar(kind: u32, bytes: &[u8]) -> GgufValue<'_> {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    // The sign bit of the narrow number goes to the top and comes back down.
    let unused = 64 - 8 * bytes.len() as u32;
    let signed = ((unsigned << unused) as i64) >> unused;
    match kind {
        kind::F32 => GgufValue::Float(f64::from(f32::from_bits(unsigned as u32))),
        kind::F64 => GgufValue::Float(f64::from_bits(unsigned)),
        kind::BOOL => GgufValue::Bool(unsigned != 0),
        kind::I8 | kind::I16 | kind::I32 | kind::I64 => GgufValue::Int(i128::from(signed)),
        _ => GgufValue::Int(i128::from(unsigned)),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("checked when the file was opened")
}

impl<'a> GgufArray<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values.
    pub fn values(self) -> impl Iterator<Item = GgufValue<'a>> {
        let mut rest = self.bytes;
        (0..self.len).map(move |_| {
            let mut reader = Reader::new(rest);
            let skipped = reader.skip(self.kind, "");
            skipped.expect("checked when the file was opened");
            let (value, after) = rest.split_at(reader.position());
            rest = after;
            match self.kind {
                kind::ARRAY => array(value),
                kind::TEXT => GgufValue::Text(text(&value[8..])),
                kind => scalar(kind, value),
            }
        })
    }

    /// The texts of an array of texts.
    pub fn texts(self) -> Option<impl Iterator<Item = &'a str>> {
        let text = |value| match value {
            GgufValue::Text(text) => text,
            _ => "",
        };
        (self.kind == kind::TEXT).then(|| self.values().map(text))
    }
}

#[cfg(test)]
mod tests;
