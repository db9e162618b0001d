//! The threads that Rust works on.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::ThreadPool;
use sparamx_cpu::Cpu;

use crate::IntoPython;

/// The threads of kernels and those of everything else, for one number of threads.
pub(crate) struct Threads {
    pub kernels: sparamx_kernels::Runtime,
    /// Of its own, as rayon's global threads do not survive a fork.
    pub work: ThreadPool,
}

type Slot = Mutex<Option<Arc<Threads>>>;

/// The threads last used. Behind a pointer, because a child process cannot unlock what another thread held at the fork.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

fn slot() -> &'static Slot {
    let mut found = SLOT.load(Ordering::Acquire);
    if found.is_null() {
        let new = Box::into_raw(Box::new(Slot::default()));
        match SLOT.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => found = new,
            Err(first) => {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                found = first;
            }
        }
    }
    // SAFETY: slots are never freed once they are in SLOT.
    unsafe { &*found }
}

/// The threads for calls on `threads` of them.
pub(crate) fn threads(threads: usize) -> PyResult<Arc<Threads>> {
    let mut slot = slot().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = slot.as_ref()
        && found.kernels.threads() == threads
    {
        return Ok(Arc::clone(found));
    }
    let cpu = Cpu::detect().map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    let kernels = sparamx_kernels::Runtime::new(cpu, threads).map_err(IntoPython::into_python)?;
    let work = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let work = work.map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    let new = Arc::new(Threads { kernels, work });
    *slot = Some(Arc::clone(&new));
    Ok(new)
}

/// To be called in a child process: threads do not survive a fork, so the child starts its own. The old ones are forgotten.
#[pyfunction]
pub(crate) fn after_fork() {
    SLOT.store(std::ptr::null_mut(), Ordering::Release);
}

/// The instruction set that kernels use on this CPU: `portable`, `avx2`, `avx512` or `amx`.
#[pyfunction]
pub(crate) fn isa() -> PyResult<String> {
    let cpu = Cpu::detect().map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    Ok(cpu.isa().to_string())
}
