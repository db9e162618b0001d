//! The CPU set of a thread. On Linux the system calls take a bit mask of any length.

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    /// Linux can be built for at most 8192 CPUs; twice that is room enough, and bounds what we allocate.
    const MAX_CPUS: usize = 16 * 1024;

    /// The kernel's masks are made of words of this type.
    type Word = libc::c_ulong;
    const WORD_BITS: usize = Word::BITS as usize;

    /// The CPUs that the calling thread may run on; `None` if the kernel does not say.
    pub(crate) fn current() -> Option<Vec<usize>> {
        let mut mask = vec![0 as Word; MAX_CPUS / WORD_BITS];
        // SAFETY: the kernel writes at most the given number of bytes, the length of `mask`, through the pointer.
        let status = unsafe {
            libc::sched_getaffinity(0, size_of_val(mask.as_slice()), mask.as_mut_ptr().cast())
        };
        let is_set = |cpu: &usize| mask[cpu / WORD_BITS] >> (cpu % WORD_BITS) & 1 != 0;
        let cpus: Vec<usize> = (0..MAX_CPUS).filter(is_set).collect();
        (status == 0 && !cpus.is_empty()).then_some(cpus)
    }

    pub(crate) fn pin(cpu: usize) -> io::Result<()> {
        if cpu >= MAX_CPUS {
            let message = format!("cpu {cpu} is not below {MAX_CPUS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut mask = vec![0 as Word; cpu / WORD_BITS + 1];
        mask[cpu / WORD_BITS] = 1 << (cpu % WORD_BITS);
        // SAFETY: the kernel reads the given number of bytes, the length of `mask`, through the pointer.
        let status = unsafe {
            libc::sched_setaffinity(0, size_of_val(mask.as_slice()), mask.as_ptr().cast())
        };
        if status == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::{current, pin};

#[cfg(not(target_os = "linux"))]
pub(super) fn current() -> Option<Vec<usize>> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_cpu: usize) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
