//! What can stand in the way of packing a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use sparamx_format::FormatError;
use sparamx_model::ModelError;

/// Errors of this crate. Every message names the file or folder. How to go on after a stop is for the caller to say, who knows how
/// [`crate::Options::resume`] is set.
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
    /// A name in a list of tensors that no tensor has.
    UnknownName {
        /// The name.
        name: String,
        /// Names like it that there are.
        near: Vec<String>,
    },
    /// The output head is to be compressed, and it is the embedding, which stays dense.
    TiedHead,
    /// Sparsity by outliers is asked for with a fixed pattern.
    Allocation,
    /// A tensor cannot be compressed.
    Tensor {
        /// Its name.
        name: String,
        /// Why.
        error: Box<CompressError>,
    },
    /// Another process writes the same output.
    Busy {
        /// The folder of what is being written.
        partial: PathBuf,
        /// That process, if it is known.
        pid: Option<u32>,
    },
    /// An earlier process left something to go on from.
    Unfinished {
        /// The folder of what it has written.
        partial: PathBuf,
    },
    /// What an earlier process left was made of another input or with other options.
    Changed {
        /// The folder of what it has written.
        partial: PathBuf,
        /// The file or option.
        what: String,
        /// What it was.
        then: String,
        /// What it is.
        now: String,
    },
    /// The disk has no room for the output.
    DiskFull {
        /// The folder that was to be written.
        dir: PathBuf,
        /// What there is to go on from.
        kept: Option<Kept>,
    },
    /// The caller ended the work early.
    Interrupted {
        /// What there is to go on from.
        kept: Option<Kept>,
    },
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

/// What is left of a run that was stopped.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The folder of what is written.
    pub partial: PathBuf,
    /// Parts of the model in it.
    pub done: usize,
    /// Parts of the model.
    pub of: usize,
}

impl CompressError {
    /// The same error, about a tensor.
    pub(crate) fn in_tensor(self, name: &str) -> Self {
        CompressError::Tensor {
            name: name.to_owned(),
            error: Box::new(self),
        }
    }

    /// What a message begins with, where it is about a file or folder.
    fn place(&self) -> Option<&Path> {
        match self {
            Self::AlreadyPacked { dir }
            | Self::CannotMake { dir, .. }
            | Self::DiskFull { dir, .. } => Some(dir),
            Self::OutputExists { path } | Self::Io { path, .. } | Self::Json { path, .. } => {
                Some(path)
            }
            Self::Busy { partial, .. }
            | Self::Unfinished { partial }
            | Self::Changed { partial, .. } => Some(partial),
            _ => None,
        }
    }

    /// What is left, if the error is one after which the work can go on.
    pub(crate) fn kept(&mut self) -> Option<&mut Option<Kept>> {
        match self {
            CompressError::DiskFull { kept, .. } | CompressError::Interrupted { kept } => {
                Some(kept)
            }
            _ => None,
        }
    }

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
                kept: None,
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

const SINGULAR: &str = "the inputs of the layer on the calibration data are too large or too small to compute with; \
                        use another text, or prune by magnitude";
const PACKED: &str =
    "packed already; pack from the dense model it was made from, or run it as it is";
const EXISTS: &str =
    "exists and is not an empty directory; choose another output directory, or empty this one";
const TIED_HEAD: &str =
    "the output head of this model is its embedding (tie_word_embeddings), which stays dense";
const ALLOCATION: &str = "sparsity by outliers differs from layer to layer, a pattern N:M is the same in each; \
                          choose one of them";
const FULL: &str =
    "the disk is full, nothing was written; make room or choose a directory on another disk";

impl fmt::Display for CompressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place() {
            write!(f, "{}: ", place.display())?;
        }
        match self {
            Self::Sparsity { found } => write!(
                f,
                "sparsity {found}: the share of zeros must be at least 0 and below 1"
            ),
            Self::Pattern { keep, of } => write!(
                f,
                "pattern {keep}:{of}: must keep at least 1 and at most all of a group, whose size is a power of two up to 128"
            ),
            Self::NeedsCalibration { what } => write!(
                f,
                "{what} needs calibration data; give a text, or prune by magnitude"
            ),
            Self::Calibration { input } => write!(
                f,
                "input {input} of the layer is not finite on the calibration data; check the model with another text"
            ),
            Self::CannotMake { error, .. } => {
                write!(
                    f,
                    "cannot be made: {error}; choose another output directory"
                )
            }
            Self::UnknownName { name, near } => unknown(f, name, near),
            Self::Tensor { name, error } => write!(f, "{name}: {error}"),
            Self::Busy { pid, .. } => {
                let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
                write!(
                    f,
                    "another process{pid} is writing there; wait for it, or choose another output directory"
                )
            }
            Self::Changed {
                what, then, now, ..
            } => write!(
                f,
                "cannot go on, {what} was {then} and is {now}; repeat the command as it was, or remove the directory"
            ),
            Self::DiskFull {
                kept: Some(kept), ..
            } => write!(f, "the disk is full after {kept}; make room"),
            Self::Interrupted { kept: Some(kept) } => write!(f, "interrupted after {kept}"),
            Self::Io { error, .. } => error.fmt(f),
            Self::Json { error, .. } => write!(f, "not a JSON object: {error}"),
            Self::Model(error) => error.fmt(f),
            Self::Format(error) => error.fmt(f),
            Self::Singular => f.write_str(SINGULAR),
            Self::AlreadyPacked { .. } => f.write_str(PACKED),
            Self::OutputExists { .. } => f.write_str(EXISTS),
            Self::TiedHead => f.write_str(TIED_HEAD),
            Self::Allocation => f.write_str(ALLOCATION),
            Self::Unfinished { .. } => f.write_str("left by a run that was stopped"),
            Self::DiskFull { kept: None, .. } => f.write_str(FULL),
            Self::Interrupted { kept: None } => f.write_str("interrupted; nothing was written"),
        }
    }
}

fn unknown(f: &mut fmt::Formatter<'_>, name: &str, near: &[String]) -> fmt::Result {
    write!(f, "'{name}' names no tensor that is compressed")?;
    match near {
        [] => Ok(()),
        _ => write!(f, "; near it are {}", near.join(", ")),
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} parts", self.done, self.of)
    }
}

impl std::error::Error for CompressError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CompressError::Tensor { error, .. } => Some(error),
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
