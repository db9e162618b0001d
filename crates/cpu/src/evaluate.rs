//! From what a machine says to what may be used on it.

use std::fmt;

use crate::topology::Cache;
use crate::{Features, Isa, Os, flags, levels};

/// Bits of XCR0: the operating system saves SSE and AVX state; the AVX-512 masks and registers; AMX configuration and
/// tiles.
const XCR0_YMM: u64 = 0b110;
const XCR0_ZMM: u64 = 0b1110_0000;
const XCR0_TILES: u64 = 0b11 << TILE_CONFIG;
const TILE_CONFIG: u32 = 17;

/// The state component that holds the tiles, whose use Linux permits on request only.
const TILE_DATA: u32 = 18;

/// What was found out about a machine. A description: only [`crate::Cpu`] proves something about the running one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Manufacturer as CPUID gives it (`GenuineIntel`, `AuthenticAMD`); empty without CPUID.
    pub vendor: String,
    /// Model name; empty where the CPU does not give one.
    pub brand: String,
    /// The CPUID flags we know by name and the CPU sets, whatever may be used of them.
    pub flags: Vec<&'static str>,
    /// The register states the operating system saves, as the bits of XCR0.
    pub xcr0: u64,
    /// What may be used: in the CPU, enabled by the operating system, and not above `limit`.
    pub features: Features,
    /// The level of `features`.
    pub isa: Isa,
    /// Why AMX may be used or not.
    pub amx: AmxState,
    /// The highest level asked for, if one was.
    pub limit: Option<Isa>,
    /// The caches of the first core.
    pub caches: Vec<Cache>,
}

impl Report {
    /// What this machine lacks for `level`, in words: CPUID flags by name, then what the operating system withholds.
    /// Empty if nothing is lacking but a `limit`.
    pub fn missing(&self, level: Isa) -> Vec<String> {
        let mut missing = Vec::new();
        let mut need = |list: &[&str], xcr0: u64, state: &str| {
            let absent = list.iter().filter(|name| !self.flags.contains(name));
            missing.extend(absent.map(|name| (*name).to_owned()));
            if self.xcr0 & xcr0 != xcr0 {
                missing.push(format!("{state} state enabled by the operating system"));
            }
        };
        if level >= Isa::Avx2 {
            need(levels::AVX2, XCR0_YMM, "avx");
        }
        if level >= Isa::Avx512 {
            need(levels::AVX512, XCR0_ZMM, "avx-512");
        }
        if level >= Isa::Amx {
            need(levels::AVX512_BF16, 0, "");
            need(levels::AMX_BF16, XCR0_TILES, "tile");
            if missing.is_empty() && !matches!(self.amx, AmxState::Ready | AmxState::Limited) {
                missing.push(format!("permission to use tiles ({})", self.amx));
            }
        }
        missing
    }
}

/// Whether AMX may be used, and if not, what stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmxState {
    /// In the CPU, enabled, permitted.
    Ready,
    /// The CPU, or the hypervisor over it, has no tiles with bf16, or not the AVX-512 level with BF16 beside them.
    NotInCpu,
    /// The operating system does not save the tile registers (XCR0 bits 17 and 18).
    NotEnabledByOs,
    /// Linux refused the request for the permission.
    PermissionRefused {
        /// The error number: 1 `EPERM`, 22 `EINVAL` (Linux before 5.16), 28 `ENOSPC` (a signal stack is too small), 38 `ENOSYS`.
        errno: i32,
    },
    /// Linux accepted the request, and does not list the permission.
    PermissionNotInForce,
    /// Tiles are there, and we know how to ask for the permission on Linux only.
    NotLinux,
    /// Tiles are there, and a lower level was asked for; the permission was not requested.
    Limited,
}

impl fmt::Display for AmxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AmxState::Ready => f.write_str("ready: in the CPU, enabled and permitted"),
            AmxState::NotInCpu => f.write_str("not in this CPU"),
            AmxState::NotEnabledByOs => {
                f.write_str("in the CPU, but the operating system or hypervisor does not enable the tile state")
            }
            AmxState::PermissionRefused { errno } => write!(
                f,
                "in the CPU, but the kernel refused the permission: {} (Linux 5.16 or later grants it; a sandbox may filter arch_prctl)",
                std::io::Error::from_raw_os_error(*errno)
            ),
            AmxState::PermissionNotInForce => {
                f.write_str("in the CPU, but the kernel accepted the request for permission and does not list it")
            }
            AmxState::NotLinux => f.write_str("in the CPU, but used on Linux only"),
            AmxState::Limited => f.write_str("in the CPU, but a lower level was asked for (SPARAMX_ISA)"),
        }
    }
}

/// Finds out what may be used on the machine `os`, with no level above `limit`. Requests the permission for tiles only
/// where all else is there and `limit` allows them.
pub fn evaluate(os: &dyn Os, limit: Option<Isa>) -> Report {
    let flags = flags::read(os);
    let xcr0 = if flags.contains(&"osxsave") {
        os.xcr0()
    } else {
        0
    };
    let vector = vector_features(&flags, xcr0);
    let amx = amx_state(os, &flags, xcr0, vector, limit);
    let tiles = match amx {
        AmxState::Ready if has(&flags, levels::AMX_INT8) => Features::AMX_INT8,
        AmxState::Ready => Features::AMX_BF16,
        _ => Features::NONE,
    };
    let features = vector
        .union(tiles)
        .intersection(limit.unwrap_or(Isa::Amx).ceiling());
    Report {
        vendor: flags::vendor(os),
        brand: flags::brand(os),
        flags,
        xcr0,
        features,
        isa: features.isa(),
        amx,
        limit,
        caches: os.caches(),
    }
}

fn has(flags: &[&str], list: &[&str]) -> bool {
    list.iter().all(|name| flags.contains(name))
}

fn vector_features(flags: &[&str], xcr0: u64) -> Features {
    if !has(flags, levels::AVX2) || xcr0 & XCR0_YMM != XCR0_YMM {
        return Features::NONE;
    }
    if !has(flags, levels::AVX512) || xcr0 & XCR0_ZMM != XCR0_ZMM {
        return Features::AVX2;
    }
    let mut features = Features::AVX512;
    if has(flags, levels::AVX512_BF16) {
        features = features.union(Features::AVX512_BF16);
    }
    if has(flags, levels::AVX512_VNNI) {
        features = features.union(Features::AVX512_VNNI);
    }
    features
}

fn amx_state(
    os: &dyn Os,
    flags: &[&str],
    xcr0: u64,
    vector: Features,
    limit: Option<Isa>,
) -> AmxState {
    if !has(flags, levels::AMX_BF16) || !vector.contains(Features::AVX512_BF16) {
        return AmxState::NotInCpu;
    }
    if xcr0 & XCR0_TILES != XCR0_TILES {
        return AmxState::NotEnabledByOs;
    }
    if limit.is_some_and(|limit| limit < Isa::Amx) {
        return AmxState::Limited;
    }
    if !os.is_linux() {
        return AmxState::NotLinux;
    }
    let granted = os
        .request_permission(TILE_DATA)
        .and_then(|()| os.permitted_components());
    match granted {
        Ok(components) if components & (1 << TILE_DATA) != 0 => AmxState::Ready,
        Ok(_) => AmxState::PermissionNotInForce,
        Err(errno) => AmxState::PermissionRefused { errno },
    }
}
