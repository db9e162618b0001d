//! Files that are meant to be small, such as `config.json`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use sparamx_format::{FormatError, lfs};

use crate::ModelError;

/// The largest small file that is read, in bytes. The largest `tokenizer.json` in use, of vocabularies of 262,144 tokens, has 33 MB,
/// and to parse one takes some ten times its size of memory.
const MAX_BYTES: u64 = 128 << 20;

/// Reads a file that is meant to be small, without the mark that some editors put before UTF-8; nothing if there is none. What is no
/// regular file is not opened (a pipe would block, a device never end), and a pointer of git-lfs is not taken for the file.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::DanglingLink`], or [`ModelError::Format`] with [`FormatError::LfsPointer`].
pub fn read_small_file(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    if !is_there(path)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| ModelError::io(path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        let reason = format!(
            "more than {} MiB, too large for such a file",
            MAX_BYTES >> 20
        );
        return Err(ModelError::io(path, io::Error::other(reason)));
    }
    if lfs::is_pointer(&bytes) {
        return Err(FormatError::LfsPointer.in_file(path).into());
    }
    const MARK: &[u8] = "\u{feff}".as_bytes();
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(Some(bytes))
}

/// Whether there is such a file. "No such file" would mislead about a link to nothing and about what is no regular file, so these
/// are errors.
///
/// # Errors
/// [`ModelError::Io`] and [`ModelError::DanglingLink`].
pub(crate) fn is_there(path: &Path) -> Result<bool, ModelError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => Err(ModelError::io(path, io::Error::other("not a regular file"))),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => Err(ModelError::DanglingLink {
                path: path.to_owned(),
                target,
            }),
            Err(_) => Ok(false),
        },
        // A folder that is none has no files.
        Err(e) if e.kind() == ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(ModelError::io(path, e)),
    }
}
