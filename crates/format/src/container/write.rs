//! Writes safetensors files whose tensors are aligned.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::header::{HEADER_LENGTH_BYTES, MAX_HEADER_BYTES, tensor_bytes};
use crate::FormatError;
use crate::shape::LINE_BYTES;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorOut<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
    metadata: Vec<(String, String)>,
}

impl<'a> TensorOut<'a> {
    /// Little endian `data` of `shape` elements, outermost size first.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, data: &'a [u8]) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape,
            data,
            metadata: Vec::new(),
        }
    }

    /// Adds an entry that [`write()`] puts into the header's `__metadata__` with the tensor.
    pub(crate) fn with_metadata(mut self, key: String, value: String) -> Self {
        self.metadata.push((key, value));
        self
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements, little endian.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// Writes `tensors` and `metadata` to a safetensors file at `path`.
///
/// safetensors allows no gap between tensors, so those whose size is a multiple of 64 bytes come first, in the
/// given order, and each of them starts on a 64-byte boundary of the file; the others follow, larger element types
/// first. The file is written under another name in the same folder, synced and renamed: after an error there is
/// no partial file, and whoever has the old file mapped keeps it.
///
/// # Errors
/// If two tensors share a name, if data disagrees with its shape, or if the system cannot write the file, for
/// example because the disk is full.
pub fn write(
    path: impl AsRef<Path>,
    tensors: &[TensorOut<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), FormatError> {
    let path = path.as_ref();
    let ordered = check_and_order(tensors).map_err(|e| e.in_file(path))?;
    let header = header(&ordered, metadata);
    if header.len() > HEADER_LENGTH_BYTES + MAX_HEADER_BYTES {
        let reason = format!("the header would have {} bytes", header.len());
        return Err(FormatError::Header { reason }.in_file(path));
    }
    write_atomically(path, |file| {
        file.write_all(&header)?;
        ordered
            .iter()
            .try_for_each(|tensor| file.write_all(tensor.data))
    })
    .map_err(|source| FormatError::Io {
        action: "write",
        path: path.to_path_buf(),
        source,
    })
}

/// The tensors in the order in which they are written.
fn check_and_order<'t, 'a>(
    tensors: &'t [TensorOut<'a>],
) -> Result<Vec<&'t TensorOut<'a>>, FormatError> {
    let mut names = HashSet::new();
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(FormatError::DuplicateTensor.in_tensor(&tensor.name));
        }
        let expected = tensor_bytes(tensor.dtype, &tensor.shape);
        let found = tensor.data.len();
        if expected != Some(found) {
            return Err(FormatError::DataSize { expected, found }.in_tensor(&tensor.name));
        }
    }
    let (mut ordered, mut odd): (Vec<_>, Vec<_>) = tensors
        .iter()
        .partition(|tensor| tensor.data.len().is_multiple_of(LINE_BYTES));
    odd.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    ordered.append(&mut odd);
    Ok(ordered)
}

/// The header and the length in front of it, padded with spaces to a multiple of 64 bytes.
fn header(tensors: &[&TensorOut<'_>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.extend(tensors.iter().flat_map(|tensor| tensor.metadata.clone()));
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_string(), json!(metadata));
    }
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.data.len();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let json = Value::Object(entries).to_string();
    let padded = (HEADER_LENGTH_BYTES + json.len()).next_multiple_of(LINE_BYTES);
    let length = (padded - HEADER_LENGTH_BYTES) as u64;
    let mut header = length.to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header.resize(padded, b' ');
    header
}

/// Makes the file at `path` hold what `content` writes, or leaves the folder as it was.
fn write_atomically(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Removed when dropped, unless it was given its final name.
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sparamx-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: what the umask allows, not only the owner.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    content(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    // The new name is on the disk only when the folder is.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    /// A disk that is full after 100 bytes.
    fn full_after_100_bytes(file: &mut dyn Write) -> io::Result<()> {
        file.write_all(&[1; 100])?;
        file.flush()?;
        Err(io::ErrorKind::StorageFull.into())
    }

    #[test]
    fn a_full_disk_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let error = write_atomically(&path, full_after_100_bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "old").unwrap();
        write_atomically(&path, full_after_100_bytes).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    #[cfg(unix)]
    fn the_file_is_readable_as_any_new_file() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomically(&ours, |file| file.write_all(b"x")).unwrap();
        std::fs::write(&plain, "x").unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().mode();
        assert_eq!(mode(ours), mode(plain));
    }
}
