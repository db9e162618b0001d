//! The threads that compute.

use anyhow::{Context, Result};
use sparamx_cpu::{Cpu, topology};
use sparamx_kernels::Runtime;

use crate::args::{Common, Threads};
use crate::output;

/// Starts a pool of threads, the calling one among them.
///
/// Pin the caller to its processor only when everything is loaded: the threads that load would inherit the pin.
///
/// # Errors
/// `SPARAMX_ISA` or `SPARAMX_KERNEL` cannot be obeyed, or the system gives no threads.
pub fn start(threads: usize, common: Common) -> Result<Runtime> {
    let cpus = topology::allowed_cpus().len();
    if threads > cpus && !common.quiet {
        output::complain(&format!(
            "warning: {threads} threads on {cpus} CPUs wait for each other; lower --threads"
        ));
    }
    // The permission for AMX tiles counts for threads that start after it was given.
    let cpu = Cpu::detect()?;
    Ok(Runtime::new(cpu, threads)?)
}

/// Limits the threads that load and pack.
///
/// # Errors
/// The system gives no threads.
pub fn loading_threads(threads: Threads) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.count())
        .build_global()
        .context("cannot start threads; try fewer with --threads")
}
