//! Texts that a command line names.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The longest text that is read, in bytes: more than twice an unpacked part of C4, which people calibrate with. A limit so that what
/// has no end does not fill the memory.
const MAX_BYTES: u64 = 2 << 30;

/// Reads a file, or a pipe such as `<(zcat FILE)` of a shell.
///
/// # Errors
/// It cannot be read, is a device, or has no end in sight.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    if is_device(&fs::metadata(path).with_context(cannot)?) {
        bail!(
            "{}: a device; give a file of text or a pipe",
            path.display()
        );
    }
    let file = File::open(path).with_context(cannot)?;
    whole(file, path)
}

/// Reads all of `source`, which is in `path`.
///
/// # Errors
/// It cannot be read, or has no end in sight.
pub fn whole(source: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!(
            "{}: more than {} GiB of text; give a part of it",
            path.display(),
            MAX_BYTES >> 30
        );
    }
    Ok(bytes)
}

#[cfg(unix)]
fn is_device(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    kind.is_char_device() || kind.is_block_device()
}

#[cfg(not(unix))]
fn is_device(_: &fs::Metadata) -> bool {
    false
}
