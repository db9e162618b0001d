//! 64-byte aligned arrays, owned or windows of a file map.

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{Mmap, MmapMut};

use crate::FormatError;
use crate::shape::LINE_BYTES;

/// Arrays from this size on get their own map, so that huge pages can be asked for: two huge pages of x86-64.
const OWN_MAP_BYTES: usize = 4 << 20;

/// An immutable, 64-byte aligned array of plain values; a clone shares the memory.
///
/// The memory is the program's own or a window of a mapped file. `Deref` gives the slice.
pub struct Storage<T> {
    region: Arc<Region>,
    /// Byte range inside the region; its start is 64-byte aligned in memory.
    window: Range<usize>,
    elements: PhantomData<T>,
}

/// A run of bytes that keeps its address for as long as it lives.
pub(crate) enum Region {
    Heap(Vec<u8>),
    OwnMap(MmapMut),
    File(Mmap),
}

impl Region {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Region::Heap(bytes) => bytes,
            Region::OwnMap(map) => map,
            Region::File(map) => map,
        }
    }

    /// A copy of `bytes` from an aligned start, and that start.
    pub fn copy_of(bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        let (mut region, start) = Self::zeroed(bytes.len())?;
        let owned = region.owned_bytes().expect("zeroed memory is owned");
        owned[start..start + bytes.len()].copy_from_slice(bytes);
        Ok((region, start))
    }

    /// The bytes for writing, unless they belong to a file.
    fn owned_bytes(&mut self) -> Option<&mut [u8]> {
        match self {
            Region::Heap(bytes) => Some(bytes),
            Region::OwnMap(map) => Some(map),
            Region::File(_) => None,
        }
    }

    /// `bytes` zero bytes from an aligned start, and that start.
    fn zeroed(bytes: usize) -> Result<(Self, usize), FormatError> {
        if bytes < OWN_MAP_BYTES {
            let heap = vec![0u8; bytes + LINE_BYTES - 1];
            let start = heap.as_ptr().addr().wrapping_neg() % LINE_BYTES;
            return Ok((Region::Heap(heap), start));
        }
        let map = MmapMut::map_anon(bytes).map_err(|_| FormatError::OutOfMemory { bytes })?;
        // Only advice: without huge pages the array is slower to read, not wrong.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok((Region::OwnMap(map), 0))
    }
}

impl<T: Pod> Storage<T> {
    /// `len` zeros; huge pages are asked for when the array is large.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if the system refuses the memory.
    pub fn zeroed(len: usize) -> Result<Self, FormatError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|&bytes| bytes <= isize::MAX as usize - LINE_BYTES)
            .ok_or(FormatError::OutOfMemory { bytes: usize::MAX })?;
        let (region, start) = Region::zeroed(bytes)?;
        Ok(Self {
            region: Arc::new(region),
            window: start..start + bytes,
            elements: PhantomData,
        })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Storage::zeroed`].
    pub fn from_slice(values: &[T]) -> Result<Self, FormatError> {
        Self::copy_of_bytes(bytemuck::cast_slice(values))
    }

    /// A copy of the elements whose bytes are `bytes`, at any alignment. Bytes after the last whole element are left out.
    ///
    /// # Errors
    /// As [`Storage::zeroed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::copy_of_bytes(&bytes[..bytes.len() / size_of::<T>() * size_of::<T>()])
    }

    /// A copy of the elements whose bytes are `bytes`, a whole number of elements at any alignment.
    pub(crate) fn copy_of_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let (region, start) = Region::copy_of(bytes)?;
        Ok(Self {
            region: Arc::new(region),
            window: start..start + bytes.len(),
            elements: PhantomData,
        })
    }

    /// The same values in the program's own memory, which is faster to read than a file map: a copy if they belong to a file.
    ///
    /// # Errors
    /// As [`Storage::zeroed`].
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        match *self.region {
            Region::Heap(_) | Region::OwnMap(_) => Ok(self.clone()),
            Region::File(_) => Self::from_slice(self),
        }
    }

    /// A window of `region` without a copy, or `None` if the bytes are not inside it, do not start on a
    /// 64-byte boundary of memory, or are not a whole number of elements.
    pub(crate) fn window(region: &Arc<Region>, window: Range<usize>) -> Option<Self> {
        let bytes = region.bytes().get(window.clone())?;
        if bytes.as_ptr().addr() % LINE_BYTES != 0 || bytes.len() % size_of::<T>() != 0 {
            return None;
        }
        Some(Self {
            region: Arc::clone(region),
            window,
            elements: PhantomData,
        })
    }

    /// The values for writing, or `None` if the memory is shared with a clone or belongs to a file.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        let bytes = Arc::get_mut(&mut self.region)?.owned_bytes()?;
        Some(bytemuck::cast_slice_mut(&mut bytes[self.window.clone()]))
    }

    /// The values of storage that was made a moment ago and that nobody else holds yet.
    pub(crate) fn unique(&mut self) -> &mut [T] {
        self.as_mut_slice()
            .expect("storage that was just made is owned and has no clone")
    }
}

impl<T: Pod> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.region.bytes()[self.window.clone()])
    }
}

impl<T> Clone for Storage<T> {
    fn clone(&self) -> Self {
        Self {
            region: Arc::clone(&self.region),
            window: self.window.clone(),
            elements: PhantomData,
        }
    }
}

impl<T: Pod> std::fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match &*self.region {
            Region::Heap(_) | Region::OwnMap(_) => "owned",
            Region::File(_) => "mapped",
        };
        write!(f, "Storage({} elements, {place})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_aligned_and_zero() {
        for len in [0, 1, 15, 16, 17, 4096, OWN_MAP_BYTES / 4 + 1] {
            if cfg!(miri) && len * 4 >= OWN_MAP_BYTES {
                continue;
            }
            let storage = Storage::<u32>::zeroed(len).unwrap();
            assert_eq!(storage.len(), len);
            assert_eq!(storage.as_ptr().addr() % LINE_BYTES, 0);
            assert!(storage.iter().all(|&v| v == 0));
        }
    }

    #[test]
    fn a_clone_shares_and_stops_writing() {
        let mut storage = Storage::from_slice(&[1u16, 2, 3]).unwrap();
        storage.as_mut_slice().unwrap()[1] = 7;
        let clone = storage.clone();
        assert_eq!(&*clone, &[1, 7, 3]);
        assert_eq!(clone.as_ptr(), storage.as_ptr());
        assert!(storage.as_mut_slice().is_none());
    }

    #[test]
    fn out_of_memory() {
        for len in [usize::MAX, usize::MAX / 8, isize::MAX as usize / 8] {
            let error = Storage::<u64>::zeroed(len).unwrap_err();
            assert!(matches!(error, FormatError::OutOfMemory { .. }), "{error}");
        }
    }

    #[test]
    fn a_window_must_be_inside_aligned_and_whole() {
        let (region, start) = Region::zeroed(256).unwrap();
        let region = Arc::new(region);
        let at = |from: usize, to: usize| Storage::<u64>::window(&region, start + from..start + to);
        assert_eq!(at(64, 192).unwrap().len(), 16);
        assert!(at(8, 64).is_none(), "not aligned");
        assert!(at(0, 63).is_none(), "not whole elements");
        assert!(at(0, 1 << 20).is_none(), "outside");
        assert!(at(128, 64).is_none(), "backwards");
    }
}
