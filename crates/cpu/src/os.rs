//! What detection asks of the machine, behind a trait so that tests can pretend to be another one.

use std::path::Path;

use crate::topology::sysfs::{self, Cache};

/// The processor and the kernel under us, as far as detection needs them. [`Machine`] is the real one.
pub trait Os {
    /// CPUID `leaf` and `subleaf`: eax, ebx, ecx, edx. Zeros where there is no CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// XCR0, the register states that the operating system saves; 0 where it saves none.
    fn xcr0(&self) -> u64;

    /// Whether the Linux permission calls below exist.
    fn is_linux(&self) -> bool;

    /// Asks the kernel to let this process use the state `component` (`ARCH_REQ_XCOMP_PERM`). Err: the errno.
    fn request_permission(&self, component: u32) -> Result<(), i32>;

    /// The bit mask of the components that this process may use (`ARCH_GET_XCOMP_PERM`). Err: the errno.
    fn permitted_components(&self) -> Result<u64, i32>;

    /// The caches of the first core.
    fn caches(&self) -> Vec<Cache> {
        Vec::new()
    }
}

/// The running machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Os for Machine {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        cpuid(leaf, subleaf)
    }

    fn xcr0(&self) -> u64 {
        xcr0()
    }

    fn is_linux(&self) -> bool {
        cfg!(target_os = "linux")
    }

    fn request_permission(&self, component: u32) -> Result<(), i32> {
        permission::request(component)
    }

    fn permitted_components(&self) -> Result<u64, i32> {
        permission::components()
    }

    fn caches(&self) -> Vec<Cache> {
        sysfs::caches(Path::new(sysfs::ROOT))
    }
}

#[cfg(target_arch = "x86_64")]
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpuid(_leaf: u32, _subleaf: u32) -> [u32; 4] {
    [0; 4]
}

#[cfg(target_arch = "x86_64")]
fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: `xgetbv` with 0 reads XCR0, which exists where the instruction does.
        unsafe { core::arch::x86_64::_xgetbv(0) }
    }

    const XSAVE_AND_OSXSAVE: u32 = 1 << 26 | 1 << 27;
    if cpuid(1, 0)[2] & XSAVE_AND_OSXSAVE != XSAVE_AND_OSXSAVE {
        return 0;
    }
    // SAFETY: the CPU has XSAVE and the operating system has enabled it, checked in the line above.
    unsafe { read() }
}

#[cfg(not(target_arch = "x86_64"))]
fn xcr0() -> u64 {
    0
}

/// Linux: kernel documentation `arch/x86/xstate.rst`.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod permission {
    const ARCH_GET_XCOMP_PERM: libc::c_long = 0x1022;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;

    pub(super) fn request(component: u32) -> Result<(), i32> {
        // SAFETY: this call takes a number and touches no memory of ours.
        let status = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                libc::c_long::from(component),
            )
        };
        result(status)
    }

    pub(super) fn components() -> Result<u64, i32> {
        let mut mask = 0u64;
        // SAFETY: the kernel writes one u64 through the pointer, which points to one for the whole call.
        let status =
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &raw mut mask) };
        result(status).map(|()| mask)
    }

    fn result(status: libc::c_long) -> Result<(), i32> {
        match status {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod permission {
    /// `ENOSYS` of Linux, the answer of a kernel without the call.
    const NO_SUCH_CALL: i32 = 38;

    pub(super) fn request(_component: u32) -> Result<(), i32> {
        Err(NO_SUCH_CALL)
    }

    pub(super) fn components() -> Result<u64, i32> {
        Err(NO_SUCH_CALL)
    }
}
