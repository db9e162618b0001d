//! What can be wrong with a checkpoint or with a call into this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use sparamx_format::{FormatError, Short};
use sparamx_kernels::KernelError;

use crate::config::precision::Precision;
use crate::families::names::HEAD;

/// Forms of compressed-tensors that are read.
const COMPRESSED_TENSORS_FORMATS: &str = "sparse-bitmask, sparse-24-bitmask, int-quantized, naive-quantized or \
    pack-quantized (4 or 8 bits)";

/// Errors of this crate. Every message names the file and the tensor or field, and where there is one the way out.
#[derive(Debug)]
pub enum ModelError {
    /// A file or folder cannot be read.
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file is a link to one that is not there.
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
    /// A folder holds neither `model.safetensors` nor `model.safetensors.index.json`.
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file is not JSON, or not an object.
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        error: String,
    },
    /// A field that has no default is absent or null.
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field, with the objects around it: `rope_scaling.factor`.
        field: String,
    },
    /// A field holds what it cannot hold, or contradicts another one.
    BadField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// The architecture is none of those that this crate runs.
    UnsupportedArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture's name.
        found: String,
        /// Those that are supported.
        supported: Vec<&'static str>,
    },
    /// The weights are quantized or packed by a method that this crate does not read.
    UnsupportedQuantization {
        /// The file.
        path: PathBuf,
        /// The method, or what stands in its place.
        method: String,
    },
    /// A container or a packed tensor is not valid.
    Format(FormatError),
    /// One of several files of weights is not there.
    MissingShard {
        /// The index that names it, or the folder where there is no index.
        index: PathBuf,
        /// The file.
        shard: String,
        /// A tensor that the index puts in it.
        tensor: Option<String>,
    },
    /// A tensor that `config.json`, or what a GGUF file has in its place, asks for is in none of the files.
    MissingTensor {
        /// Folder of the checkpoint.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the model described by `config.json` has no place for.
    UnexpectedTensor {
        /// Folder of the checkpoint.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor's shape is not the one that follows from `config.json`.
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that `config.json` asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type is none of F64, F32, F16 and BF16.
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor of a quantized checkpoint contradicts itself or its neighbours, or is of a kind that is not supported.
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A packed or quantized weight has another dtype than `config.json` says.
    Precision {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What `quantization_config` says.
        expected: Precision,
        /// What the file says.
        found: Precision,
    },
    /// A tensor holds NaN, infinity, or a value that becomes infinity in bf16.
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Index of the first such element, counted row by row.
        element: usize,
        /// Its value.
        value: f32,
    },
    /// The model does not fit in memory.
    NotEnoughMemory {
        /// Bytes the model needs.
        needed_bytes: u64,
        /// Bytes this process may still use.
        available_bytes: u64,
    },
    /// A share of zeros is not in `0.0 ..= 1.0`.
    Sparsity {
        /// The share.
        found: f64,
    },
    /// The table of shapes has no such name.
    UnknownShape {
        /// The name.
        name: String,
        /// Those that it has.
        known: Vec<&'static str>,
    },
    /// An input without tokens.
    EmptyInput {
        /// Index of the input.
        input: usize,
    },
    /// A token id that the vocabulary does not have.
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// The KV cache has no room for the tokens.
    CacheFull {
        /// Tokens it would hold.
        needed: usize,
        /// Tokens it can hold.
        capacity: usize,
    },
    /// A kernel refused its operands.
    Kernel(KernelError),
}

impl ModelError {
    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }

    /// There is no such file.
    pub fn not_found(path: &Path) -> Self {
        // As the operating systems number it: the message is theirs.
        Self::io(path, std::io::Error::from_raw_os_error(2))
    }
}

impl From<FormatError> for ModelError {
    fn from(e: FormatError) -> Self {
        Self::Format(e)
    }
}

impl From<KernelError> for ModelError {
    fn from(e: KernelError) -> Self {
        Self::Kernel(e)
    }
}

/// Bytes as GiB with two digits, or as they are when few.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 24 {
            write!(f, "{} bytes", self.0)
        } else {
            write!(f, "{:.2} GiB", self.0 as f64 / (1u64 << 30) as f64)
        }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.path() {
            write!(f, "{}: ", path.display())?;
        }
        self.fmt_call(f)
    }
}

/// Messages, without the path before them. Each function passes on what is not its own.
impl ModelError {
    /// The file or folder that the error is about.
    fn path(&self) -> Option<&Path> {
        use ModelError::*;
        match self {
            Io { path, .. }
            | DanglingLink { path, .. }
            | Json { path, .. }
            | MissingField { path, .. }
            | BadField { path, .. } => Some(path),
            UnsupportedArchitecture { path, .. } | UnsupportedQuantization { path, .. } => {
                Some(path)
            }
            Shape { path, .. }
            | Dtype { path, .. }
            | Precision { path, .. }
            | BadTensor { path, .. }
            | NotFinite { path, .. } => Some(path),
            NoWeights { dir, .. } | MissingTensor { dir, .. } | UnexpectedTensor { dir, .. } => {
                Some(dir)
            }
            MissingShard { index, .. } => Some(index),
            _ => None,
        }
    }

    fn fmt_call(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ModelError::*;
        match self {
            Format(e) => write!(f, "{e}"),
            Kernel(e) => write!(f, "{e}"),
            NotEnoughMemory {
                needed_bytes,
                available_bytes,
            } => write!(
                f,
                "the model needs {} of memory and {} is available: free some, or pack the model at a higher sparsity",
                Bytes(*needed_bytes),
                Bytes(*available_bytes)
            ),
            Sparsity { found } => write!(f, "a sparsity of {found} is not in 0.0 to 1.0"),
            UnknownShape { name, known } => {
                let names = known.join(", ");
                write!(f, "no shape is called '{}': there are {names}", Short(name))
            }
            EmptyInput { input } => write!(f, "input {input} has no tokens: give at least one"),
            TokenOutOfRange { token, vocab_size } => write!(
                f,
                "token id {token} is not in a vocabulary of {vocab_size}: the tokenizer belongs to another model"
            ),
            CacheFull { needed, capacity } => write!(
                f,
                "{needed} tokens do not fit in a context of {capacity}: shorten the prompt or ask for fewer tokens"
            ),
            _ => self.fmt_config(f),
        }
    }

    fn fmt_config(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ModelError::*;
        match self {
            Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                write!(f, "{error}: give a folder in Hugging Face layout")
            }
            Io { error, .. } => write!(f, "{error}"),
            DanglingLink { target, .. } => write!(
                f,
                "a link to {}, which is not there: download the file again",
                target.display()
            ),
            NoWeights { hint, .. } => write!(f, "{hint}"),
            Json { error, .. } => write!(f, "not a JSON object: {}", Short(error)),
            MissingField { field, .. } => write!(
                f,
                "field '{}' is missing: take the file from where the weights come from",
                Short(field)
            ),
            BadField {
                field,
                found,
                expected,
                ..
            } => {
                write!(
                    f,
                    "field '{}' is {}, expected {expected}",
                    Short(field),
                    Short(found)
                )
            }
            UnsupportedArchitecture {
                found, supported, ..
            } => {
                let names = supported.join(", ");
                write!(
                    f,
                    "architecture '{}' is not supported: supported are {names}",
                    Short(found)
                )
            }
            UnsupportedQuantization { method, .. } => write!(
                f,
                "weights quantized with {} are not supported: use the F32, F16 or BF16 checkpoint, one packed by \
                 `sparamx compress`, or one of compressed-tensors in {}",
                Short(method),
                COMPRESSED_TENSORS_FORMATS
            ),
            _ => self.fmt_missing(f),
        }
    }

    fn fmt_missing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ModelError::*;
        match self {
            MissingShard { shard, tensor, .. } => {
                let shard = Short(shard);
                match tensor {
                    Some(tensor) => write!(
                        f,
                        "it names '{shard}' for tensor '{}' and there is no such file: download it again",
                        Short(tensor)
                    ),
                    None => write!(
                        f,
                        "'{shard}' is missing, and others of its series are here: download it again"
                    ),
                }
            }
            MissingTensor { tensor, .. } => {
                write!(
                    f,
                    "tensor '{}' is missing: the model's configuration asks for it and no file has it",
                    Short(tensor)
                )?;
                if tensor == HEAD {
                    f.write_str(
                        "; if its output head is the embedding, set tie_word_embeddings to true in config.json",
                    )?;
                }
                Ok(())
            }
            _ => self.fmt_tensor(f),
        }
    }

    fn fmt_tensor(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ModelError::*;
        match self {
            UnexpectedTensor { tensor, .. } => write!(
                f,
                "the model that the configuration describes has no place for tensor '{}', and would not be the same without \
                 it: one of the two is wrong",
                Short(tensor)
            ),
            Shape {
                tensor,
                expected,
                found,
                ..
            } => write!(
                f,
                "tensor '{}' has shape {found:?}, the model's configuration asks for {expected:?}",
                Short(tensor)
            ),
            Dtype { tensor, found, .. } => write!(
                f,
                "tensor '{}' has element type {found}, supported are F64, F32, F16 and BF16",
                Short(tensor)
            ),
            BadTensor { tensor, reason, .. } => write!(f, "tensor '{}': {reason}", Short(tensor)),
            Precision {
                tensor,
                expected,
                found,
                ..
            } => write!(
                f,
                "tensor '{}' is stored as {found}, config.json says {expected}: one of the two files belongs to another model",
                Short(tensor)
            ),
            NotFinite {
                tensor,
                element,
                value,
                ..
            } => write!(
                f,
                "tensor '{}' has {value} at element {element}, which bf16 cannot hold as a number: the file is damaged or the \
                 training diverged",
                Short(tensor)
            ),
            other => write!(f, "{other:?}"),
        }
    }
}

impl std::error::Error for ModelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Format(e) => Some(e),
            Self::Kernel(e) => Some(e),
            _ => None,
        }
    }
}
