//! The cache on disk. Nothing is written outside it: directories are entered one by one, and none may be a link that leads out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;

use crate::client::GLANCE;
use crate::error::Fault;
use crate::id::HubId;
use crate::names;

/// What the cache has of one model.
pub struct Repo<'a> {
    cache: &'a Path,
    id: &'a HubId,
    folder: PathBuf,
}

/// Held by the one process that writes a blob; none where the file system knows no locks.
pub struct Lock {
    _file: Option<File>,
}

impl<'a> Repo<'a> {
    pub fn new(cache: &'a Path, id: &'a HubId) -> Repo<'a> {
        Repo {
            cache,
            id,
            folder: cache.join(id.folder()),
        }
    }

    /// The commit that the revision stands for, as far as the cache knows.
    pub fn commit(&self) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("refs").join(&self.id.revision));
        let named = text
            .ok()
            .and_then(|text| names::commit(text.trim()).map(str::to_owned));
        // No reference is kept for a commit.
        named.or_else(|| self.id.is_commit().then(|| self.id.revision.to_lowercase()))
    }

    /// The directory of the files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether this is a file, and one that lies in the cache.
    pub fn has(&self, path: &Path) -> bool {
        let Ok(real) = path.canonicalize() else {
            return false;
        };
        // The folder of the model may be a link to another disk: to read from there is as the user wants it.
        let roots = [self.cache, &self.folder].map(Path::canonicalize);
        real.is_file() && roots.iter().flatten().any(|root| real.starts_with(root))
    }

    /// The directory of the blobs, to write to.
    pub fn blobs(&self) -> io::Result<PathBuf> {
        self.directory(&[&self.id.folder(), "blobs"])
    }

    /// Makes a directory in the cache, or finds it there.
    fn directory(&self, parts: &[&str]) -> io::Result<PathBuf> {
        fs::create_dir_all(self.cache)?;
        let root = self.cache.canonicalize()?;
        let mut path = root.clone();
        for part in parts.iter().flat_map(|part| part.split('/')) {
            let next = path.join(part);
            match fs::create_dir(&next) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => path = next.canonicalize()?,
            }
            if !path.starts_with(&root) {
                let text = format!("{} is a link that leads out of it", next.display());
                return Err(io::Error::other(text));
            }
        }
        Ok(path)
    }

    /// Waits until no other process writes this blob, as `huggingface_hub` does; `waiting` is called again and again meanwhile.
    pub fn lock(
        &self,
        etag: &str,
        waiting: &mut dyn FnMut() -> Result<(), Fault>,
    ) -> Result<Lock, Fault> {
        let path = self
            .directory(&[".locks", &self.id.folder()])?
            .join(format!("{etag}.lock"));
        unlink_odd(&path)?;
        loop {
            let mut options = OpenOptions::new();
            let file = match options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
            {
                // The file of another user, who shares this cache.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    File::open(&path).map_err(|_| error)?
                }
                file => file?,
            };
            match file.try_lock() {
                // Some remove the file when they are done; what is locked then is not what the next one finds.
                Ok(()) if is_at(&file, &path) => return Ok(Lock { _file: Some(file) }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    waiting()?;
                    thread::sleep(GLANCE);
                }
                Err(TryLockError::Error(_)) => return Ok(Lock { _file: None }),
            }
        }
    }

    /// Lets the file of that name in the snapshot be this blob.
    pub fn point(&self, commit: &str, name: &str, etag: &str) -> io::Result<()> {
        let directory = self.directory(&[&self.id.folder(), "snapshots", commit])?;
        let new = directory.join(format!(".{}.{name}", process::id()));
        let _ = fs::remove_file(&new);
        if link(&Path::new("../../blobs").join(etag), &new).is_err() {
            // A file system without links.
            fs::copy(self.blobs()?.join(etag), &new)?;
        }
        fs::rename(new, directory.join(name))
    }

    /// Lets the revision stand for this commit from now on.
    pub fn refer(&self, commit: &str) -> io::Result<()> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let (parent, name) = self
            .id
            .revision
            .rsplit_once('/')
            .unwrap_or(("", &self.id.revision));
        let parent = format!("refs/{parent}");
        let directory = self.directory(&[&self.id.folder(), parent.trim_end_matches('/')])?;
        let new = directory.join(format!(".{}.{name}", process::id()));
        let _ = fs::remove_file(&new);
        fs::write(&new, commit)?;
        fs::rename(new, directory.join(name))
    }
}

/// Opens the file whose bytes are still to arrive.
pub fn partial(path: &Path) -> io::Result<File> {
    unlink_odd(path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .truncate(false)
        .create(true)
        .open(path)
}

/// Removes what is no regular file, a link above all, so that it is not written through.
fn unlink_odd(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if !data.is_file() => fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
