//! From the bytes of a header to its entries, every length checked against what is left of the file.

use std::ops::Range;

use crate::FormatError;

/// The first bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// More dimensions than ggml has.
const MAX_DIMS: u32 = 4;
/// Arrays inside arrays, deeper than any program writes them; a limit so that a damaged file cannot exhaust the stack.
const MAX_DEPTH: usize = 8;

/// A value as it was found: checked, not copied.
#[derive(Clone)]
pub(super) struct Entry {
    pub kind: u32,
    pub range: Range<usize>,
}

/// A tensor as the header describes it.
pub(super) struct Tensor<'a> {
    pub name: &'a str,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub kind: u32,
    /// From the start of the data.
    pub offset: u64,
}

/// Takes values from the front of a file.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Where the next value starts.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Checks magic and version, and takes the numbers of tensors and of entries.
    pub fn counts(&mut self) -> Result<(u64, u64), FormatError> {
        let found = self.bytes.len();
        if self.take(4, "magic").ok() != Some(&MAGIC[..]) {
            return Err(bad(
                "",
                format!("{found} bytes that do not start with GGUF"),
            ));
        }
        match self.u32("version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(bad("", "it is big endian; convert it to little endian"));
            }
            version => {
                let reason =
                    format!("version {version}, known are 2 and 3; convert the model again");
                return Err(bad("", reason));
            }
        }
        Ok((
            self.u64("number of tensors")?,
            self.u64("number of entries")?,
        ))
    }

    /// An entry of the metadata.
    pub fn entry(&mut self) -> Result<(&'a str, Entry), FormatError> {
        let key = self.text("key")?;
        let kind = self.u32(key)?;
        let start = self.position;
        self.skip(kind, key)?;
        let range = start..self.position;
        Ok((key, Entry { kind, range }))
    }

    /// The description of a tensor.
    pub fn tensor(&mut self) -> Result<Tensor<'a>, FormatError> {
        let name = self.text("tensor name")?;
        let dims = self.u32(name)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(bad(
                name,
                format!("{dims} dimensions, there are 1 to {MAX_DIMS}"),
            ));
        }
        let dims = (0..dims)
            .map(|_| self.u64(name))
            .collect::<Result<_, _>>()?;
        Ok(Tensor {
            name,
            dims,
            kind: self.u32(name)?,
            offset: self.u64(name)?,
        })
    }

    /// Goes past a value of a type, and checks it.
    pub fn skip(&mut self, kind: u32, key: &str) -> Result<(), FormatError> {
        self.skip_nested(kind, key, 0)
    }

    /// The same, inside so many arrays.
    fn skip_nested(&mut self, kind: u32, key: &str, depth: usize) -> Result<(), FormatError> {
        if let Some(bytes) = kind::bytes(kind) {
            self.take(bytes, key)?;
            return Ok(());
        }
        match kind {
            kind::TEXT => self.text(key).map(|_| ()),
            kind::ARRAY => {
                let element = self.u32(key)?;
                let len = self.u64(key)?;
                match kind::bytes(element) {
                    Some(bytes) => {
                        let bytes = usize::try_from(len)
                            .ok()
                            .and_then(|len| len.checked_mul(bytes));
                        self.take(bytes.unwrap_or(usize::MAX), key).map(|_| ())
                    }
                    None if depth == MAX_DEPTH => {
                        Err(bad(key, format!("arrays more than {MAX_DEPTH} deep")))
                    }
                    None => (0..len).try_for_each(|_| self.skip_nested(element, key, depth + 1)),
                }
            }
            other => Err(bad(key, format!("type {other} is none of GGUF"))),
        }
    }

    fn take(&mut self, bytes: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..bytes);
        let taken = taken.ok_or_else(|| {
            let (position, left) = (self.position, rest.len());
            bad(
                what,
                format!("it is cut off: {bytes} bytes at {position}, {left} are left"),
            )
        })?;
        self.position += bytes;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, FormatError> {
        let length = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| bad(what, "it is not UTF-8"))
    }
}

/// Types of metadata values.
pub(super) mod kind {
    pub const I8: u32 = 1;
    pub const I16: u32 = 3;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;

    /// Bytes of a value; none for a text, an array, and what is no type.
    pub fn bytes(kind: u32) -> Option<usize> {
        match kind {
            0 | I8 | BOOL => Some(1),
            2 | I16 => Some(2),
            4 | I32 | F32 => Some(4),
            10 | I64 | F64 => Some(8),
            _ => None,
        }
    }
}

/// The error for what is wrong at a key or part of the file.
pub(super) fn bad(at: impl Into<String>, reason: impl Into<String>) -> FormatError {
    // A name is input from elsewhere: a message is one line of bounded length.
    let at: String = at
        .into()
        .chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect();
    FormatError::Gguf {
        at,
        reason: reason.into(),
    }
}
