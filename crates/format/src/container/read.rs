//! A mapped safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::header::{HEADER_LENGTH_BYTES, MAX_HEADER_BYTES};
use crate::storage::Region;
use crate::{FormatError, Storage, lfs};

/// A safetensors file whose header describes every byte of it. A clone shares the map.
///
/// The file must not be changed while it is open: a file cut short under the map ends the process with SIGBUS
/// where a missing page is touched, and other changes go unnoticed after validation. [`super::write()`] never
/// changes a file in place, it puts a new one under the name.
#[derive(Clone)]
pub struct TensorFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    region: Arc<Region>,
    /// Where the tensors' data starts in the region.
    data: usize,
    header: Metadata,
    index: HashMap<String, TensorInfo>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements, little endian.
    pub bytes: &'a [u8],
}

impl TensorFile {
    /// Maps `path` and checks its header against its length; no tensor is read.
    ///
    /// # Errors
    /// If the file cannot be read or mapped, or the header does not describe exactly this file: cut short, too
    /// long, no JSON, tensors that overlap, leave gaps or have another size than their shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let map = map_file(path)?;
        let file = 0..map.len();
        Self::parse(path.to_path_buf(), Region::File(map), file).map_err(|e| e.in_file(path))
    }

    /// Parses a copy of a file's bytes.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (region, start) = Region::copy_of(bytes)?;
        Self::parse(
            PathBuf::from("(memory)"),
            region,
            start..start + bytes.len(),
        )
    }

    /// Takes the bytes `file` of `region` for a file.
    fn parse(path: PathBuf, region: Region, file: Range<usize>) -> Result<Self, FormatError> {
        let start = file.start;
        let (data, header) = parse_header(&region.bytes()[file])?;
        let index = header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                region: Arc::new(region),
                data: start + data,
                header,
                index,
            }),
        })
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Names of the tensors in file order.
    pub fn names(&self) -> Vec<String> {
        self.inner.header.offset_keys()
    }

    /// Entry `key` of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.inner.header.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// Keys of the header's `__metadata__`, sorted.
    pub fn metadata_keys(&self) -> Vec<&str> {
        let metadata = self.inner.header.metadata().iter().flatten();
        let mut keys: Vec<&str> = metadata.map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        keys
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let info = self.inner.index.get(name)?;
        Some(TensorView {
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: &self.inner.region.bytes()[self.inner.window(info)],
        })
    }

    /// Gives the memory of tensor `name`'s pages back to the system, if the file is mapped: pages that were read count as
    /// memory of the process until then. The tensor can be read again, from the file. Nothing happens for a name that the
    /// file does not have.
    pub fn release(&self, name: &str) {
        if let (Region::File(map), Some(info)) = (&*self.inner.region, self.inner.index.get(name)) {
            release_pages(map, self.inner.window(info));
        }
    }

    /// The elements of tensor `name`: a window of the map where the tensor is 64-byte aligned, else a copy.
    ///
    /// # Errors
    /// If there is no such tensor or its elements have another size than `T`.
    pub fn storage<T: Pod>(&self, name: &str) -> Result<Storage<T>, FormatError> {
        let info = self.inner.index.get(name).ok_or_else(|| {
            let tensor = name.to_string();
            FormatError::MissingTensor { tensor }.in_file(self.path())
        })?;
        if info.dtype.bitsize() != 8 * size_of::<T>() {
            let error = FormatError::ElementSize {
                dtype: info.dtype,
                expected_bytes: size_of::<T>(),
            };
            return Err(error.in_tensor(name).in_file(self.path()));
        }
        let window = self.inner.window(info);
        match Storage::window(&self.inner.region, window.clone()) {
            Some(storage) => Ok(storage),
            None => Storage::copy_of_bytes(&self.inner.region.bytes()[window]),
        }
    }
}

impl Inner {
    /// Byte range of a tensor in the region. The header was checked against the length of the file.
    fn window(&self, info: &TensorInfo) -> Range<usize> {
        self.data + info.data_offsets.0..self.data + info.data_offsets.1
    }
}

/// Maps a regular file.
///
/// # Errors
/// [`FormatError::Io`].
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Mmap, FormatError> {
    let map = || {
        // A pipe would block on open and a directory opens but cannot be mapped.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is private to this crate and read-only, and every byte pattern is a valid u8. What is left
        // is that nobody changes the file while it is mapped, which no program can enforce: `TensorFile` says so.
        unsafe { Mmap::map(&file) }
    };
    map().map_err(|source| FormatError::Io {
        action: "open",
        path: path.to_path_buf(),
        source,
    })
}

/// Takes the pages of a window of a map out of memory.
#[allow(unsafe_code)]
pub(crate) fn release_pages(map: &Mmap, window: Range<usize>) {
    assert!(
        window.end <= map.len(),
        "{window:?} of a map of {} bytes",
        map.len()
    );
    // Only advice: a system that does not take it keeps the pages.
    #[cfg(unix)]
    // SAFETY: `Mmap::map` maps a file read-only and shared, so that no page differs from the file: one that is taken out
    // of memory comes back with the same bytes when it is touched. The window is inside the map: asserted above.
    let _ = unsafe {
        map.unchecked_advise_range(
            memmap2::UncheckedAdvice::DontNeed,
            window.start,
            window.len(),
        )
    };
    #[cfg(not(unix))]
    let _ = (map, window);
}

/// Where the data starts in the file, and its parsed header, which describes the file to its last byte.
fn parse_header(file: &[u8]) -> Result<(usize, Metadata), FormatError> {
    let error = |reason: String| FormatError::Header { reason };
    let found = file.len();
    if lfs::is_pointer(file) {
        return Err(FormatError::LfsPointer);
    }
    let Some((length, rest)) = file.split_first_chunk::<HEADER_LENGTH_BYTES>() else {
        return Err(error(format!("{found} bytes are too few for a header")));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER_BYTES)
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| {
            error(format!(
                "a header of {length} bytes in a file of {found} bytes"
            ))
        })?;
    // `Metadata` checks that the tensors follow one another from 0 and have the sizes of their shapes.
    // `SafeTensors::read_metadata` does more but adds up lengths from the file unchecked (0.8.0).
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| error(e.to_string()))?;
    let (data, described) = (HEADER_LENGTH_BYTES + header.len(), metadata.data_len());
    if described != found - data {
        return Err(error(format!(
            "the header describes {described} bytes of data, the file has {}",
            found - data
        )));
    }
    Ok((data, metadata))
}
