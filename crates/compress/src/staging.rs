//! An output folder that comes into being whole or not at all.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::CompressError;

/// Says whether [`crate::compress`] may write to a folder: it does not exist, or is empty.
///
/// # Errors
/// [`CompressError::OutputExists`], or [`CompressError::CannotMake`] if a file is in its way or that cannot be found out.
pub fn check_output(target: &Path) -> Result<(), CompressError> {
    resolve(target).map(|_| ())
}

/// A temporary folder beside the output folder. It disappears with this value unless [`Staging::publish`] gave it its name.
pub(crate) struct Staging {
    target: PathBuf,
    dir: PathBuf,
    /// The uppermost folder made for it, if its parents were not there.
    made_parent: Option<PathBuf>,
    published: bool,
}

impl Staging {
    /// Makes the temporary folder.
    ///
    /// # Errors
    /// [`CompressError::OutputExists`] if there is something else at `target` than an empty folder, or
    /// [`CompressError::CannotMake`].
    pub(crate) fn new(target: &Path) -> Result<Self, CompressError> {
        let target = resolve(target)?;
        let parent = target.parent().unwrap_or(Path::new("/"));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let dir = parent.join(format!(".{name}.partial-{}", std::process::id()));
        let made_parent = parent
            .ancestors()
            .take_while(|dir| !dir.exists())
            .last()
            .map(Path::to_owned);
        let staging = Staging {
            target,
            dir,
            made_parent,
            published: false,
        };
        match fs::create_dir_all(&staging.dir) {
            Ok(()) => Ok(staging),
            Err(error) => Err(CompressError::CannotMake {
                dir: staging.target.clone(),
                error,
            }),
        }
    }

    /// The temporary folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The output folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the temporary folder the output folder.
    ///
    /// # Errors
    /// [`CompressError::OutputExists`] if somebody was faster, or [`CompressError::Io`].
    pub(crate) fn publish(mut self) -> Result<PathBuf, CompressError> {
        fs::rename(&self.dir, &self.target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => CompressError::OutputExists {
                path: self.target.clone(),
            },
            _ => CompressError::io(&self.target, error),
        })?;
        self.published = true;
        Ok(self.target.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // There is nobody to tell if this fails, and the error that led here matters more.
        let _ = fs::remove_dir_all(&self.dir);
        if let Some(parent) = &self.made_parent {
            let _ = remove_empty(parent, self.target.parent());
        }
    }
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

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    #[test]
    fn what_is_published_is_there_and_nothing_else() {
        let root = root();
        for target in ["new", "deep/er/new"] {
            let target = root.path().join(target);
            let staging = Staging::new(&target).expect("a staging folder");
            fs::write(staging.dir().join("file"), "text").expect("a file");
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
        let root = root();
        let target = root.path().join("empty");
        fs::create_dir(&target).expect("a folder");
        let staging = Staging::new(&target).expect("a staging folder");
        fs::write(staging.dir().join("file"), "text").expect("a file");
        staging.publish().expect("published");
        assert_eq!(names(&target), ["file"]);
    }

    #[test]
    fn what_is_dropped_leaves_nothing() {
        let root = root();
        for target in ["new", "deep/er/new"] {
            let staging = Staging::new(&root.path().join(target)).expect("a staging folder");
            fs::write(staging.dir().join("file"), "text").expect("a file");
            drop(staging);
            assert!(names(root.path()).is_empty(), "{target}");
        }
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let root = root();
        let full = root.path().join("full");
        fs::create_dir(&full).expect("a folder");
        fs::write(full.join("file"), "text").expect("a file");
        let file = full.join("file");
        for (target, why) in [
            (&full, "not an empty directory"),
            (&file, "not an empty directory"),
            (&file.join("below"), "cannot be made"),
        ] {
            let error = Staging::new(target).err().expect("refused").to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("another output directory"), "{error}");
        }
        assert_eq!(names(root.path()), ["full"]);
        assert_eq!(fs::read_to_string(&file).expect("a file"), "text");
    }

    #[test]
    fn the_faster_one_wins() {
        let root = root();
        let target = root.path().join("new");
        let staging = Staging::new(&target).expect("a staging folder");
        fs::create_dir(&target).expect("a folder");
        fs::write(target.join("other"), "text").expect("a file");
        assert!(matches!(
            staging.publish(),
            Err(CompressError::OutputExists { .. })
        ));
        assert_eq!(names(root.path()), ["new"]);
        assert_eq!(names(&target), ["other"]);
    }
}
