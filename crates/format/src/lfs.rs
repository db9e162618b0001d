//! Pointers of git-lfs: the short texts that a clone without git-lfs has in place of large files.

/// How every pointer begins.
const VERSION: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a file with these bytes is a pointer, and not what its name says.
pub fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(VERSION)
}
