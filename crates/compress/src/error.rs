//! What can stand in the way of packing a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use sparamx_format::FormatError;
use sparamx_model::ModelError;

/// Errors of this crate. Every message names the file or folder, and where there is one the way out.
#[derive(Debug)]
pub enum CompressError {
    /// The sparsity asked for is not at least 0 and below 1.
    Sparsity {
        /// What was asked for.
        found: f64,
    },
    /// A pattern that is not N of M.
    Pattern {
        /// Weights to keep in a group.
        keep: usize,
        /// Weights of a group.
        of: usize,
    },
    /// What is to be done with a layer needs moments of its inputs, and there are none.
    NeedsCalibration {
        /// What needs them.
        what: &'static str,
    },
    /// The inputs of a layer on the calibration data have no finite second moments.
    Calibration {
        /// Number of the input.
        input: usize,
    },
    /// The second moments are not positive definite however much is added to their diagonal.
    Singular,
    /// The checkpoint is packed already.
    AlreadyPacked {
        /// Its folder.
        dir: PathBuf,
    },
    /// The output folder exists and has something in it, or is a file.
    OutputExists {
        /// The path.
        path: PathBuf,
    },
    /// The output folder cannot be made.
    CannotMake {
        /// The folder.
        dir: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The disk has no room for the output.
    DiskFull {
        /// The folder that was to be written.
        dir: PathBuf,
    },
    /// The caller ended the work early.
    Interrupted,
    /// A file or folder cannot be read or written.
    Io {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// A file of the checkpoint is not JSON, or not an object.
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        error: String,
    },
    /// The checkpoint cannot be read.
    Model(ModelError),
    /// A tensor cannot be packed, or a container not be written.
    Format(FormatError),
}

impl CompressError {
    /// An error of the operating system about a path; a full disk becomes [`CompressError::DiskFull`] later, where the
    /// output folder is known.
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        CompressError::Io {
            path: path.to_owned(),
            error,
        }
    }

    /// The same error, with a full disk said in terms of the output folder.
    pub(crate) fn for_output(self, dir: &Path) -> Self {
        if self.is_disk_full() {
            CompressError::DiskFull {
                dir: dir.to_owned(),
            }
        } else {
            self
        }
    }

    fn is_disk_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match self {
            CompressError::Io { error, .. } | CompressError::CannotMake { error, .. } => {
                full(error)
            }
            CompressError::Format(error) => io_error(error).is_some_and(full),
            _ => false,
        }
    }
}

/// What the operating system said, whatever tensor and file it was about.
fn io_error(error: &FormatError) -> Option<&io::Error> {
    match error {
        FormatError::Io { source, .. } => Some(source),
        FormatError::InTensor { source, .. } | FormatError::InFile { source, .. } => {
            io_error(source)
        }
        _ => None,
    }
}

impl fmt::Display for CompressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompressError::Sparsity { found } => {
                write!(
                    f,
                    "sparsity {found}: the share of zeros must be at least 0 and below 1"
                )
            }
            CompressError::Pattern { keep, of } => write!(
                f,
                "pattern {keep}:{of}: must keep at least 1 and at most all of a group, whose size is a power of two up to 128"
            ),
            CompressError::NeedsCalibration { what } => {
                write!(f, "{what} needs calibration data; give a text, or prune by magnitude")
            }
            CompressError::Calibration { input } => write!(
                f,
                "input {input} of the layer is not finite on the calibration data; check the model with another text"
            ),
            CompressError::Singular => f.write_str(
                "the inputs of the layer on the calibration data are too large or too small to compute with; use another text, or prune by magnitude",
            ),
            CompressError::AlreadyPacked { dir } => write!(
                f,
                "{}: packed already; pack from the dense model it was made from, or run it as it is",
                dir.display()
            ),
            CompressError::OutputExists { path } => write!(
                f,
                "{}: exists and is not an empty directory; choose another output directory, or empty this one",
                path.display()
            ),
            CompressError::CannotMake { dir, error } => write!(
                f,
                "{}: cannot be made: {error}; choose another output directory",
                dir.display()
            ),
            CompressError::DiskFull { dir } => write!(
                f,
                "{}: the disk is full, nothing was written; make room or choose a directory on another disk",
                dir.display()
            ),
            CompressError::Interrupted => f.write_str("interrupted; nothing was written"),
            CompressError::Io { path, error } => write!(f, "{}: {error}", path.display()),
            CompressError::Json { path, error } => {
                write!(f, "{}: not a JSON object: {error}", path.display())
            }
            CompressError::Model(error) => error.fmt(f),
            CompressError::Format(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CompressError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CompressError::Io { error, .. } | CompressError::CannotMake { error, .. } => {
                Some(error)
            }
            CompressError::Model(error) => Some(error),
            CompressError::Format(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ModelError> for CompressError {
    fn from(error: ModelError) -> Self {
        CompressError::Model(error)
    }
}

impl From<FormatError> for CompressError {
    fn from(error: FormatError) -> Self {
        CompressError::Format(error)
    }
}
