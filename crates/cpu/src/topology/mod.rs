//! The cores, caches, memory and NUMA nodes that this process may use.
//!
//! Nothing here fails: where the machine does not say, the answer is a fallback or `None`. Files are read under a root
//! that the tests replace.

mod affinity;
mod cgroup;
mod placement;
pub(crate) mod sysfs;

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::{Machine, flags};

pub use placement::Placement;
use sysfs::ROOT;
pub use sysfs::{Cache, CacheKind, Node};

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

#[cfg(test)]
mod testing {
    use std::fs;

    /// A temporary root with these files, to be read in place of `/`.
    pub(super) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a relative path")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_follow_cores_and_quota() {
        let table = [
            ((8, None), 8),
            ((8, Some(2.0)), 2),
            ((8, Some(2.1)), 3),
            ((8, Some(0.05)), 1),
            ((8, Some(64.0)), 8),
            ((1, None), 1),
            ((0, None), 1),
            ((8, Some(f64::MAX)), 8),
        ];
        for ((cores, quota), threads) in table {
            assert_eq!(
                threads_for(cores, quota),
                threads,
                "{cores} cores, quota {quota:?}"
            );
        }
    }

    #[test]
    fn the_running_machine_is_described() {
        let cpus = allowed_cpus();
        assert!(!cpus.is_empty() && cpus.is_sorted());
        let mut by_core = cpus_by_core();
        by_core.sort_unstable();
        assert_eq!(by_core, cpus);
        assert!((1..=cpus.len()).contains(&default_threads()));
        assert!(numa_nodes().iter().all(|node| !node.cpus.is_empty()));
        assert!(!numa_nodes().is_empty());
        assert!(!brand().is_empty());
        assert!(cgroup_cpu_quota().is_none_or(|cpus| cpus > 0.0));
        #[cfg(target_os = "linux")]
        assert!(available_memory_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_pinned_and_later_answers_stay() {
        let cpus = allowed_cpus();
        let pinned =
            |cpu: usize| move || (pin_current_thread(cpu), affinity::current(), allowed_cpus());
        for &cpu in &cpus {
            let (result, now, allowed) = std::thread::spawn(pinned(cpu)).join().expect("no panic");
            result.expect("an allowed CPU");
            assert_eq!(now, Some(vec![cpu]));
            assert_eq!(allowed, cpus);
        }
        let absent = cpus[cpus.len() - 1] + 1000;
        for cpu in [absent, usize::MAX] {
            let (result, now, _) = std::thread::spawn(pinned(cpu)).join().expect("no panic");
            assert_eq!(
                result.expect_err("no such CPU").kind(),
                io::ErrorKind::InvalidInput,
                "{cpu}"
            );
            assert_eq!(now, Some(cpus.clone()));
        }
    }
}
