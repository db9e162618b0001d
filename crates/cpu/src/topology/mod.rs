//! The cores, caches, memory and NUMA nodes that this process may use.
//!
//! Nothing here fails: where the machine does not say, the answer is a fallback or `None`. Files are read under a root
//! that the tests replace.

mod affinity;
mod cgroup;
mod sysfs;

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::{Machine, flags};

pub use sysfs::{Cache, CacheKind, Node};

const ROOT: &str = "/";

/// The logical CPUs that this process may run on, ascending; never empty. The answer is that of the first call in the
/// process: a pool that pins the calling thread must not shrink the next pool.
pub fn allowed_cpus() -> Vec<usize> {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    let read = || affinity::current().unwrap_or_else(|| (0..available_parallelism()).collect());
    ALLOWED.get_or_init(read).clone()
}

/// [`allowed_cpus`] in the order to give them to threads: one of each physical core first, then the second hardware
/// threads of the cores, and so on.
pub fn cpus_by_core() -> Vec<usize> {
    sysfs::by_core(Path::new(ROOT), &allowed_cpus()).0
}

/// CPU time that the control groups of this process allow, in CPUs; `None` if unlimited.
pub fn cgroup_cpu_quota() -> Option<f64> {
    cgroup::cpu_quota(Path::new(ROOT))
}

/// The number of threads to use if nobody says: one for each allowed physical core, at most the CPU quota rounded up.
///
/// Second hardware threads are not counted: the work waits for memory, one thread with several load streams already
/// keeps a core's line buffers full, and two would share its caches and its one tile unit.
pub fn default_threads() -> usize {
    let (_, cores) = sysfs::by_core(Path::new(ROOT), &allowed_cpus());
    threads_for(cores, cgroup_cpu_quota())
}

fn threads_for(cores: usize, quota: Option<f64>) -> usize {
    // The cast saturates.
    let quota = quota.map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    cores.min(quota).max(1)
}

/// The NUMA nodes that have CPUs, ascending, with all their CPUs; one node with the allowed CPUs if the system does not
/// say. Nodes of memory alone are left out, for no thread can touch pages there first.
pub fn numa_nodes() -> Vec<Node> {
    let nodes = sysfs::numa_nodes(Path::new(ROOT));
    if nodes.is_empty() {
        vec![Node {
            id: 0,
            cpus: allowed_cpus(),
        }]
    } else {
        nodes
    }
}

/// The caches of CPU 0, lowest level first; empty if the system does not say.
pub fn caches() -> Vec<Cache> {
    sysfs::caches(Path::new(ROOT))
}

/// Memory that can be had without swapping: what the system has available, or what the control groups leave, whichever
/// is lower.
pub fn available_memory_bytes() -> Option<u64> {
    let system = sysfs::memory_available(Path::new(ROOT));
    let group = cgroup::memory_left(Path::new(ROOT));
    system.into_iter().chain(group).min()
}

/// Keeps the calling thread on one logical CPU.
///
/// # Errors
/// The CPU does not exist or is not allowed to this process, or the system has no such call.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    affinity::pin(cpu)
}

/// The model name of the CPU, or the name of the architecture if the CPU has none.
pub fn brand() -> String {
    let brand = flags::brand(&Machine);
    if brand.is_empty() {
        std::env::consts::ARCH.to_owned()
    } else {
        brand
    }
}

fn available_parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
