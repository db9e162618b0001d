//! `y = x W^T + bias` for dense and packed weights.

pub mod reference;

pub(crate) mod activation;
pub(crate) mod chunk;
mod job;
pub(crate) mod loops;
pub(crate) mod out;
pub(crate) mod portable;
mod schedule;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use std::fmt;

use sparamx_format::{
    DenseBf16, DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8,
};

use crate::catalog::select;
use crate::spec::KernelSpec;
use crate::{KernelError, Rows, Runtime};

pub use activation::Activation;
pub use job::{Linear, LinearJob};

/// A weight `[N, K]` in a form that kernels read.
#[derive(Clone)]
pub enum Weight {
    /// All elements, in strip order.
    DenseBf16(DenseBf16),
    /// Bitmap and non-zero values.
    SparseBf16(SparseBf16),
    /// All levels, a byte each, with the scales.
    DenseI8(DenseI8),
    /// Bitmap and non-zero levels, with the scales.
    SparseI8(SparseI8),
    /// All levels, half a byte each, with the scales.
    DenseI4(DenseI4),
    /// Bitmap and non-zero levels, half a byte each, with the scales.
    SparseI4(SparseI4),
}

/// The same expression over the weight inside, whatever its format: the formats' types share these methods but no trait.
macro_rules! each {
    ($weight:expr, $w:ident => $e:expr) => {
        match $weight {
            Weight::DenseBf16($w) => $e,
            Weight::SparseBf16($w) => $e,
            Weight::DenseI8($w) => $e,
            Weight::SparseI8($w) => $e,
            Weight::DenseI4($w) => $e,
            Weight::SparseI4($w) => $e,
        }
    };
}

/// The forms of [`Weight`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// [`Weight::DenseBf16`]
    DenseBf16,
    /// [`Weight::SparseBf16`]
    SparseBf16,
    /// [`Weight::DenseI8`]
    DenseI8,
    /// [`Weight::SparseI8`]
    SparseI8,
    /// [`Weight::DenseI4`]
    DenseI4,
    /// [`Weight::SparseI4`]
    SparseI4,
}

impl WeightFormat {
    /// All formats.
    pub const ALL: [WeightFormat; 6] = [
        WeightFormat::DenseBf16,
        WeightFormat::SparseBf16,
        WeightFormat::DenseI8,
        WeightFormat::SparseI8,
        WeightFormat::DenseI4,
        WeightFormat::SparseI4,
    ];

    /// Whether zeros are left out.
    pub const fn is_sparse(self) -> bool {
        matches!(
            self,
            WeightFormat::SparseBf16 | WeightFormat::SparseI8 | WeightFormat::SparseI4
        )
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WeightFormat::DenseBf16 => "dense bf16",
            WeightFormat::SparseBf16 => "sparse bf16",
            WeightFormat::DenseI8 => "dense int8",
            WeightFormat::SparseI8 => "sparse int8",
            WeightFormat::DenseI4 => "dense int4",
            WeightFormat::SparseI4 => "sparse int4",
        })
    }
}

impl Weight {
    /// Output features.
    pub fn n(&self) -> usize {
        each!(self, w => w.n())
    }

    /// Input features.
    pub fn k(&self) -> usize {
        each!(self, w => w.k())
    }

    /// Input features, rounded up to the layout's step.
    pub(crate) fn k_padded(&self) -> usize {
        each!(self, w => w.k_padded())
    }

    /// Groups of 16 output features.
    pub(crate) fn strips(&self) -> usize {
        each!(self, w => w.strips())
    }

    /// Bytes that a multiplication reads.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::DenseBf16(w) => w.bytes(),
            Weight::SparseBf16(w) => w.packed_bytes(),
            Weight::DenseI8(w) => w.bytes(),
            Weight::SparseI8(w) => w.packed_bytes(),
            Weight::DenseI4(w) => w.bytes(),
            Weight::SparseI4(w) => w.packed_bytes(),
        }
    }

    /// Bytes of the strips before strip `s`.
    pub(crate) fn bytes_before(&self, s: usize) -> usize {
        if s == self.strips() {
            return self.bytes();
        }
        // Each strip has equally many masks and scales, and as many values as the offsets say.
        let scales = |scales: &Scales| scales.bytes() / self.strips() * s;
        match self {
            Weight::DenseBf16(w) => s * w.k_padded() * 32,
            Weight::SparseBf16(w) => {
                s * w.lines_per_strip() * 4 + 2 * w.offsets()[s * w.blocks_per_strip()] as usize
            }
            Weight::DenseI8(w) => s * w.k_padded() * 16 + scales(w.scales()),
            Weight::SparseI8(w) => {
                let values = w.offsets()[s * w.blocks_per_strip()] as usize;
                s * w.lines_per_strip() * 8 + values + scales(w.scales())
            }
            Weight::DenseI4(w) => s * w.k_padded() * 8 + scales(w.scales()),
            Weight::SparseI4(w) => {
                let values = w.offsets()[s * w.blocks_per_strip()] as usize / 2;
                s * w.lines_per_strip() * 8 + values + scales(w.scales())
            }
        }
    }

    /// The same weight in the program's own memory, which is faster to read than a file map: a copy if it belongs to a file.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`] if the system refuses the memory.
    pub fn in_memory(&self) -> Result<Self, FormatError> {
        Ok(match self {
            Weight::DenseBf16(w) => Weight::DenseBf16(w.in_memory()?),
            Weight::SparseBf16(w) => Weight::SparseBf16(w.in_memory()?),
            Weight::DenseI8(w) => Weight::DenseI8(w.in_memory()?),
            Weight::SparseI8(w) => Weight::SparseI8(w.in_memory()?),
            Weight::DenseI4(w) => Weight::DenseI4(w.in_memory()?),
            Weight::SparseI4(w) => Weight::SparseI4(w.in_memory()?),
        })
    }

    /// Which form it is.
    pub fn format(&self) -> WeightFormat {
        match self {
            Weight::DenseBf16(_) => WeightFormat::DenseBf16,
            Weight::SparseBf16(_) => WeightFormat::SparseBf16,
            Weight::DenseI8(_) => WeightFormat::DenseI8,
            Weight::SparseI8(_) => WeightFormat::SparseI8,
            Weight::DenseI4(_) => WeightFormat::DenseI4,
            Weight::SparseI4(_) => WeightFormat::SparseI4,
        }
    }
}

/// `y = x W^T + bias` for every job, in one pass over the threads. x is `[M, K]`.
///
/// The result of a row depends neither on the number of threads nor on the other jobs. (It can depend on M: kernels of
/// different numeric classes serve different ranges of M on a CPU with AMX. See [`crate::catalog`].)
///
/// # Errors
/// [`KernelError::Mismatch`] if sizes do not fit.
pub fn linear(rt: &Runtime, x: Rows<'_>, jobs: &mut [LinearJob<'_>]) -> Result<(), KernelError> {
    check(x, jobs)?;
    let kernel = |job: &LinearJob<'_>| {
        let format = job.linear.weight.format();
        let forced = rt.forced_kernel().filter(|spec| spec.weight == format);
        forced.unwrap_or_else(|| select(rt.cpu().features(), format, x.rows()))
    };
    let kernels: Vec<_> = jobs.iter().map(kernel).collect();
    schedule::run(rt, x, jobs, &kernels);
    Ok(())
}

/// [`linear()`] by one kernel, for tests and benchmarks.
///
/// # Errors
/// As [`linear()`]; [`KernelError::Unsuitable`] if this CPU cannot run the kernel or a weight is of another format.
pub fn linear_with(
    spec: &'static KernelSpec,
    rt: &Runtime,
    x: Rows<'_>,
    jobs: &mut [LinearJob<'_>],
) -> Result<(), KernelError> {
    spec.on(rt.cpu())?;
    check(x, jobs)?;
    if let Some(job) = jobs
        .iter()
        .find(|job| job.linear.weight.format() != spec.weight)
    {
        let why = format!(
            "it reads {} weights, not {}",
            spec.weight,
            job.linear.weight.format()
        );
        return Err(KernelError::Unsuitable {
            name: spec.name,
            why,
        });
    }
    schedule::run(rt, x, jobs, &vec![spec; jobs.len()]);
    Ok(())
}

fn check(x: Rows<'_>, jobs: &[LinearJob<'_>]) -> Result<(), KernelError> {
    let same = |what, left, right| {
        if left == right {
            Ok(())
        } else {
            Err(KernelError::Mismatch { what, left, right })
        }
    };
    for job in jobs {
        same(
            "columns of x and K of the weight",
            x.cols(),
            job.linear.weight.k(),
        )?;
        same("rows of x and rows of y", x.rows(), job.y.rows())?;
        same(
            "columns of y and N of the weight",
            job.y.cols(),
            job.linear.weight.n(),
        )?;
        if let Some(bias) = &job.linear.bias {
            same(
                "length of the bias and N of the weight",
                bias.len(),
                job.linear.weight.n(),
            )?;
        }
    }
    Ok(())
}
