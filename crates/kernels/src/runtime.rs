//! What every kernel call needs: the CPU, the pool of threads, and memory to work in.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sparamx_cpu::Cpu;
use sparamx_format::WeightFormat;

use crate::spec::KernelSpec;
use crate::{KernelError, Pool, catalog};

/// The CPU, a pool of threads and their scratch memory. Two in a process fight for the cores unless their pools are on CPUs of one
/// [`Placement`](sparamx_cpu::topology::Placement).
pub struct Runtime {
    cpu: Cpu,
    pool: Pool,
    scratch: Vec<Mutex<Scratch>>,
    shared_scratch: Mutex<Scratch>,
    forced: Option<&'static KernelSpec>,
    batch_invariant: bool,
}

/// Memory that is kept from call to call, 64-byte aligned, of undefined content.
#[derive(Default)]
pub struct Scratch {
    lines: Vec<Line>,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

impl Scratch {
    /// `bytes` bytes, 64-byte aligned; what they hold is left over from earlier use.
    pub fn bytes(&mut self, bytes: usize) -> &mut [u8] {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines])[..bytes]
    }

    /// `len` values of f32, 64-byte aligned; what they hold is left over from earlier use.
    pub fn f32s(&mut self, len: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.bytes(len * 4))
    }
}

impl Runtime {
    /// Starts a pool of `threads` threads, the caller counted.
    ///
    /// # Errors
    /// [`KernelError::Thread`] without threads.
    pub fn new(cpu: Cpu, threads: usize) -> Result<Self, KernelError> {
        Ok(Self::with_pool(cpu, Pool::new(threads)?))
    }

    /// On the threads of `pool`.
    pub fn with_pool(cpu: Cpu, pool: Pool) -> Self {
        Self {
            cpu,
            scratch: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            pool,
            shared_scratch: Mutex::default(),
            forced: None,
            batch_invariant: false,
        }
    }

    /// Forces one kernel of the catalog, by name, wherever it can do the work.
    ///
    /// # Errors
    /// [`KernelError::UnknownKernel`] and [`KernelError::Unsuitable`] for one that does not exist or needs another CPU.
    pub fn with_kernel(mut self, name: &str) -> Result<Self, KernelError> {
        self.forced = Some(catalog::by_name(name)?.on(&self.cpu)?);
        Ok(self)
    }

    /// Whether a row of activations has the same result whatever rows are beside it. That takes kernels of one numeric class for all
    /// numbers of rows. Only on a CPU with AMX and for bf16 weights it changes anything: tiles serve one row too then.
    #[must_use]
    pub fn batch_invariant(mut self, yes: bool) -> Self {
        self.batch_invariant = yes;
        self
    }

    /// The kernel for weights of a format and `m` rows of activations.
    pub fn kernel(&self, weight: WeightFormat, m: usize) -> &'static KernelSpec {
        let forced = self.forced.filter(|spec| spec.weight == weight);
        let select = if self.batch_invariant {
            catalog::select_in_one_class
        } else {
            catalog::select
        };
        forced.unwrap_or_else(|| select(self.cpu.features(), weight, m))
    }

    /// Pins the calling thread to the first CPU of the pool, as the pool's threads are pinned to the others. For programs whose
    /// main thread makes all calls; a library leaves its caller's threads alone.
    pub fn pin_caller(&self) {
        self.pool.pin_caller();
    }

    /// The CPU.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The kernel that [`Runtime::with_kernel`] forced.
    pub fn forced_kernel(&self) -> Option<&'static KernelSpec> {
        self.forced
    }

    /// Scratch memory of one thread of the pool, for use inside a run. Another thread's is not to be touched: it would wait.
    pub fn scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Scratch memory that a caller fills before a run and all threads read in it. It is locked for the length of a call.
    pub(crate) fn shared_scratch(&self) -> MutexGuard<'_, Scratch> {
        self.shared_scratch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
