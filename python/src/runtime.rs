//! The threads that Rust works on.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::ThreadPool;
use sparamx_cpu::{Cpu, ISA_VARIABLE};
use sparamx_kernels::{KernelError, Pool, Runtime};

use crate::IntoPython;

/// The threads of kernels and those of everything else, for one number of threads.
pub(crate) struct Threads {
    pub kernels: Runtime,
    /// Of its own, as rayon's global threads do not survive a fork.
    pub work: ThreadPool,
}

type Slot = Mutex<Option<Arc<Threads>>>;

/// `GOMP_parallel(function, data, threads, flags)` of GNU's OpenMP, which others have too.
type Parallel =
    unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Where it is in this process, if PyTorch or another has loaded it.
static PARALLEL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Whether this is a child process: OpenMP's threads are not to be had any more.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Has PyTorch's own threads run a kernel. They spin for a while after each of its operators, so that others would have to wait
/// for the processors.
fn on_openmp(threads: usize, work: &(dyn Fn() + Sync)) {
    unsafe extern "C" fn call(work: *mut c_void) {
        // SAFETY: what is passed below, which lives until all calls have returned. It does not unwind: see `Pool::run`.
        unsafe { (*work.cast::<&(dyn Fn() + Sync)>())() }
    }
    // SAFETY: the symbol of that name has this type; `openmp` found it.
    unsafe {
        let parallel = PARALLEL.load(Ordering::Relaxed);
        let parallel = std::mem::transmute::<*mut c_void, Parallel>(parallel);
        parallel(
            call,
            (&raw const work).cast_mut().cast(),
            threads as c_uint,
            0,
        );
    }
}

/// Whether there is OpenMP to run on.
fn openmp() -> bool {
    // SAFETY: a name that ends with 0; asking for a symbol has no effect.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
    PARALLEL.store(found, Ordering::Relaxed);
    !found.is_null() && !FORKED.load(Ordering::Relaxed)
}

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
    let cpu = cpu()?;
    let pool = match openmp() {
        true => Pool::of_lent(threads, on_openmp),
        false => Pool::new(threads),
    };
    let kernels = pool.map(|pool| Runtime::with_pool(cpu, pool));
    let kernels = kernels.and_then(forced).map_err(IntoPython::into_python)?;
    let work = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let work = work.map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    let new = Arc::new(Threads { kernels, work });
    *slot = Some(Arc::clone(&new));
    Ok(new)
}

/// The same with the kernel that `SPARAMX_KERNEL` names, if it does.
pub(crate) fn forced(kernels: Runtime) -> Result<Runtime, KernelError> {
    match std::env::var("SPARAMX_KERNEL") {
        Ok(name) if !name.is_empty() => kernels.with_kernel(&name),
        _ => Ok(kernels),
    }
}

/// The CPU, up to the level that `SPARAMX_ISA` allows.
pub(crate) fn cpu() -> PyResult<Cpu> {
    Cpu::detect_up_to(std::env::var_os(ISA_VARIABLE).as_deref())
        .map_err(|e| PyRuntimeError::new_err(e.to_string()))
}

/// To be called in a child process: threads do not survive a fork, so the child starts its own. The old ones are forgotten.
#[pyfunction]
pub(crate) fn after_fork() {
    FORKED.store(true, Ordering::Relaxed);
    SLOT.store(std::ptr::null_mut(), Ordering::Release);
}

/// The instruction set that kernels use on this CPU: `portable`, `avx2`, `avx512` or `amx`.
#[pyfunction]
pub(crate) fn isa() -> PyResult<String> {
    Ok(cpu()?.isa().to_string())
}
