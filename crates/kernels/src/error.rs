//! What can be wrong with a call into this crate.

use std::fmt;

/// Errors of this crate. Shapes are in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelError {
    /// Rows do not fit in the slice that should hold them.
    RowsTooShort {
        /// Rows wanted.
        rows: usize,
        /// Elements in a row.
        cols: usize,
        /// Elements from one row's start to the next.
        stride: usize,
        /// Elements in the slice.
        len: usize,
    },
    /// Two sizes of one call that should be equal are not.
    Mismatch {
        /// What the sizes are, such as `columns of x and K of the weight`.
        what: &'static str,
        /// The first size.
        left: usize,
        /// The second size.
        right: usize,
    },
    /// A kernel was asked for by a name that the catalog does not have.
    UnknownKernel {
        /// The name.
        name: String,
    },
    /// A kernel was asked for that cannot do this call.
    Unsuitable {
        /// The kernel's name.
        name: &'static str,
        /// Why not.
        why: String,
    },
    /// The operating system refused a thread.
    Thread {
        /// Threads wanted.
        threads: usize,
        /// What it said.
        error: String,
    },
    /// The operating system refused memory.
    Memory {
        /// Bytes wanted.
        bytes: usize,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowsTooShort {
                rows,
                cols,
                stride,
                len,
            } => write!(
                f,
                "{rows} rows of {cols} elements with stride {stride} do not fit in {len} elements"
            ),
            Self::Mismatch { what, left, right } => write!(f, "{what} differ: {left} and {right}"),
            Self::UnknownKernel { name } => write!(f, "no kernel is called '{name}'"),
            Self::Unsuitable { name, why } => write!(f, "kernel {name} cannot run here: {why}"),
            Self::Thread { threads, error } => {
                write!(f, "cannot start {threads} threads: {error}")
            }
            Self::Memory { bytes } => write!(f, "the system refuses {bytes} bytes of memory"),
        }
    }
}

impl std::error::Error for KernelError {}
