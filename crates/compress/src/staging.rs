//! An output folder that comes into being whole or not at all, and what is kept to go on after a stop.
//!
//! What is being written is in a hidden folder beside the output, `.NAME.partial`. It holds `out`, which becomes the output; files
//! that are needed until then; a record of what is done; and a lock, which the system takes away with the process.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::CompressError;
use crate::state::State;

const LOCK: &str = "lock";
const OUT: &str = "out";
/// More than the digits of any process id.
const PID_BYTES: u64 = 20;

/// Says whether [`crate::compress`] may write to a folder: it does not exist, or is empty, no other process writes it, and `resume`
/// is set if something unfinished is there.
///
/// # Errors
/// [`CompressError::OutputExists`], [`CompressError::Busy`], [`CompressError::Unfinished`], or [`CompressError::CannotMake`] if a
/// file is in its way or that cannot be found out.
pub fn check_output(target: &Path, resume: bool) -> Result<(), CompressError> {
    let root = root(&resolve(target)?);
    // A process that only looks shares the lock with others that look.
    if let Ok(lock) = File::open(root.join(LOCK))
        && matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    {
        return Err(busy(root, lock));
    }
    check_unfinished(&root, resume)
}

/// The folder of what is being written. It disappears with this value unless [`Staging::publish`] made it the output or
/// [`Staging::keep`] said that it stays.
pub(crate) struct Staging {
    target: PathBuf,
    root: PathBuf,
    /// The uppermost folder made for it, if its parents were not there.
    made_parent: Option<PathBuf>,
    keep: bool,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Staging {
    /// Makes the folder, or takes over what an earlier process left of it.
    ///
    /// # Errors
    /// [`CompressError::OutputExists`] if there is something else at `target` than an empty folder; [`CompressError::Busy`] if
    /// another process writes it; [`CompressError::Unfinished`] if there is something to go on from and `resume` is not set; or
    /// [`CompressError::CannotMake`].
    pub(crate) fn new(target: &Path, resume: bool) -> Result<Self, CompressError> {
        let target = resolve(target)?;
        let root = root(&target);
        let made_parent = root
            .ancestors()
            .skip(1)
            .take_while(|dir| !dir.exists())
            .last()
            .map(Path::to_owned);
        let cannot_make = |error| CompressError::CannotMake {
            dir: target.clone(),
            error,
        };
        fs::create_dir_all(&root).map_err(cannot_make)?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join(LOCK))
            .map_err(cannot_make)?;
        // A file system that knows no locks does without.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(busy(root, lock));
        }
        // Only for the message of the process that comes second.
        let pid = std::process::id();
        let _ = lock
            .set_len(0)
            .and_then(|()| lock.write_all(pid.to_string().as_bytes()));
        check_unfinished(&root, resume)?;
        // Only now it is ours to remove.
        let staging = Staging {
            target,
            root,
            made_parent,
            keep: false,
            _lock: lock,
        };
        fs::create_dir_all(staging.out()).map_err(|error| CompressError::CannotMake {
            dir: staging.target.clone(),
            error,
        })?;
        Ok(staging)
    }

    /// The folder of what is not part of the output.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that becomes the output.
    pub(crate) fn out(&self) -> PathBuf {
        self.root.join(OUT)
    }

    /// The output folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Leaves everything where it is, to go on from later.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.root.clone()
    }

    /// Gives the output its name.
    ///
    /// # Errors
    /// [`CompressError::OutputExists`] if another process was faster, or [`CompressError::Io`].
    pub(crate) fn publish(mut self) -> Result<PathBuf, CompressError> {
        fs::rename(self.out(), &self.target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => CompressError::OutputExists {
                path: self.target.clone(),
            },
            _ => CompressError::io(&self.target, error),
        })?;
        self.made_parent = None;
        Ok(self.target.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // A failure here cannot be reported, and the error that led here matters more.
        let _ = fs::remove_dir_all(&self.root);
        if let Some(parent) = &self.made_parent {
            let _ = remove_empty(parent, self.target.parent());
        }
    }
}

/// The hidden folder beside an output folder.
fn root(target: &Path) -> PathBuf {
    let parent = target.parent().unwrap_or(Path::new("/"));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    parent.join(format!(".{name}.partial"))
}

/// The error of a process that finds the folder locked, with the one that has it if that can be read.
fn busy(partial: PathBuf, lock: File) -> CompressError {
    let mut text = String::new();
    // A process that was just started has not written it yet.
    let _ = lock.take(PID_BYTES).read_to_string(&mut text);
    CompressError::Busy {
        partial,
        pid: text.trim().parse().ok(),
    }
}

/// Refuses to begin anew where there is something to go on from.
fn check_unfinished(root: &Path, resume: bool) -> Result<(), CompressError> {
    if !resume && State::units_in(root) > 0 {
        return Err(CompressError::Unfinished {
            partial: root.to_owned(),
        });
    }
    Ok(())
}

/// Removes the folders from `leaf` up to `top`, as far as they are empty.
fn remove_empty(top: &Path, leaf: Option<&Path>) -> io::Result<()> {
    let chain = leaf.into_iter().flat_map(Path::ancestors);
    for dir in chain.take_while(|dir| dir.starts_with(top)) {
        fs::remove_dir(dir)?;
    }
    Ok(())
}

/// The output folder as an absolute path, if it may be made: it does not exist, or is empty.
fn resolve(target: &Path) -> Result<PathBuf, CompressError> {
    let exists = || CompressError::OutputExists {
        path: target.to_owned(),
    };
    let cannot_make = |error| CompressError::CannotMake {
        dir: target.to_owned(),
        error,
    };
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => target.canonicalize().map_err(cannot_make),
            Some(_) => Err(exists()),
        },
        // A file, or a link to nothing.
        Err(_) if fs::symlink_metadata(target).is_ok_and(|found| !found.is_dir()) => Err(exists()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !matches!(target.components().next_back(), Some(Component::Normal(_))) {
                return Err(exists());
            }
            std::path::absolute(target).map_err(cannot_make)
        }
        Err(error) => Err(cannot_make(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_testkit::names;

    fn root_dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn what_is_published_is_there_and_nothing_else() {
        let root = root_dir();
        for target in ["new", "deep/er/new"] {
            let target = root.path().join(target);
            let staging = Staging::new(&target, false).expect("a staging folder");
            fs::write(staging.out().join("file"), "text").expect("a file");
            assert!(!target.exists());
            staging.publish().expect("published");
            assert_eq!(names(&target), ["file"]);
        }
        let mut top = names(root.path());
        top.sort();
        assert_eq!(top, ["deep", "new"]);
    }

    #[test]
    fn an_empty_folder_is_used() {
        let root = root_dir();
        let target = root.path().join("empty");
        fs::create_dir(&target).expect("a folder");
        let staging = Staging::new(&target, false).expect("a staging folder");
        fs::write(staging.out().join("file"), "text").expect("a file");
        staging.publish().expect("published");
        assert_eq!(names(&target), ["file"]);
    }

    #[test]
    fn what_is_dropped_leaves_nothing() {
        let root = root_dir();
        for target in ["new", "deep/er/new"] {
            let staging = Staging::new(&root.path().join(target), false).expect("a staging folder");
            fs::write(staging.out().join("file"), "text").expect("a file");
            drop(staging);
            assert!(names(root.path()).is_empty(), "{target}");
        }
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let root = root_dir();
        let full = root.path().join("full");
        fs::create_dir(&full).expect("a folder");
        fs::write(full.join("file"), "text").expect("a file");
        let file = full.join("file");
        for (target, why) in [
            (&full, "not an empty directory"),
            (&file, "not an empty directory"),
            (&file.join("below"), "cannot be made"),
        ] {
            let error = Staging::new(target, false)
                .err()
                .expect("refused")
                .to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("another output directory"), "{error}");
        }
        assert_eq!(names(root.path()), ["full"]);
        assert_eq!(fs::read_to_string(&file).expect("a file"), "text");
    }

    #[test]
    fn the_faster_one_wins() {
        let root = root_dir();
        let target = root.path().join("new");
        let staging = Staging::new(&target, false).expect("a staging folder");
        fs::create_dir(&target).expect("a folder");
        fs::write(target.join("other"), "text").expect("a file");
        assert!(matches!(
            staging.publish(),
            Err(CompressError::OutputExists { .. })
        ));
        assert_eq!(names(root.path()), ["new"]);
        assert_eq!(names(&target), ["other"]);
    }

    #[test]
    fn only_one_process_writes() {
        let root = root_dir();
        let target = root.path().join("new");
        let first = Staging::new(&target, false).expect("a staging folder");
        for resume in [false, true] {
            let second = Staging::new(&target, resume).err().expect("refused");
            let looked = check_output(&target, resume).expect_err("refused");
            for error in [second, looked] {
                let pid = std::process::id();
                assert!(
                    matches!(error, CompressError::Busy { pid: Some(found), .. } if found == pid)
                );
                assert!(error.to_string().contains(&format!("(process {pid})")));
            }
        }
        // Nothing of the first one was touched.
        fs::write(first.out().join("file"), "text").expect("a file");
        first.publish().expect("published");
        assert_eq!(names(root.path()), ["new"]);
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let root = root_dir();
        let target = root.path().join("new");
        let staging = Staging::new(&target, false).expect("a staging folder");
        fs::write(staging.out().join("file"), "text").expect("a file");
        // Nothing is recorded as done: a stop has lost nothing, so nothing is refused.
        staging.keep();
        let staging = Staging::new(&target, false).expect("a staging folder");
        let mut state = State::open(staging.root(), &serde_json::json!({"a": "b"})).expect("new");
        state
            .set(staging.root(), 0, Default::default())
            .expect("written");
        staging.keep();
        assert!(matches!(
            Staging::new(&target, false).err(),
            Some(CompressError::Unfinished { .. })
        ));
        assert!(check_output(&target, false).is_err());
        check_output(&target, true).expect("free");
        let staging = Staging::new(&target, true).expect("a staging folder");
        assert_eq!(names(&staging.out()), ["file"]);
        drop(staging);
        assert!(names(root.path()).is_empty());
    }
}
