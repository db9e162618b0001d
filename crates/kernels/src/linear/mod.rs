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

use crate::spec::KernelSpec;
use crate::{KernelError, Rows, Runtime};

pub use activation::Activation;
pub use job::{Linear, LinearJob};
pub use sparamx_format::{Weight, WeightFormat};

/// `y = x W^T + bias` for every job, in one pass over the threads. x is `[M, K]`.
///
/// The result of a row depends neither on the number of threads nor on the other jobs. (It can depend on M: kernels of
/// different numeric classes serve different ranges of M on a CPU with AMX. See [`crate::catalog`] and
/// [`Runtime::batch_invariant`].)
///
/// # Errors
/// [`KernelError::Mismatch`] if sizes do not fit.
pub fn linear(rt: &Runtime, x: Rows<'_>, jobs: &mut [LinearJob<'_>]) -> Result<(), KernelError> {
    check(x, jobs)?;
    let kernel = |job: &LinearJob<'_>| rt.kernel(job.linear.weight.format(), x.rows());
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
