//! The threads that compute.

use anyhow::{Context, Result};
use sparamx_cpu::{Cpu, ISA_VARIABLE, topology};
use sparamx_kernels::Runtime;

use crate::args::{Common, Threads};
use crate::output;

/// The environment variable that forces a kernel, by name; empty is as if not set.
const KERNEL_VARIABLE: &str = "SPARAMX_KERNEL";

/// The CPU, up to the level that `SPARAMX_ISA` allows.
///
/// # Errors
/// The variable holds no level, or one that this machine does not reach.
pub fn cpu() -> Result<Cpu> {
    Ok(Cpu::detect_up_to(
        std::env::var_os(ISA_VARIABLE).as_deref(),
    )?)
}

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
    let runtime = Runtime::new(cpu()?, threads)?;
    Ok(match std::env::var(KERNEL_VARIABLE) {
        Ok(name) if !name.is_empty() => runtime.with_kernel(&name)?,
        _ => runtime,
    })
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
