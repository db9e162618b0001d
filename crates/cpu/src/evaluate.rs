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
            if has(&self.flags, list) && self.xcr0 & xcr0 != xcr0 {
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
    /// The operating system does not save the registers: vectors, masks or tiles (XCR0).
    NotEnabledByOs,
    /// Linux refused the request for the permission.
    PermissionRefused {
        /// The error number: 1 `EPERM`, 22 `EINVAL` (Linux before 5.16), 28 `ENOSPC` (a signal stack is too
        /// small), 38 `ENOSYS`.
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
                f.write_str("in the CPU, but the operating system or hypervisor does not enable its registers")
            }
            AmxState::PermissionRefused { errno } => write!(
                f,
                "in the CPU, but the kernel refused the permission: {} \
                 (Linux 5.16 or later grants it; a sandbox may filter arch_prctl)",
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
    let amx = amx_state(os, &flags, xcr0, limit);
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

fn amx_state(os: &dyn Os, flags: &[&str], xcr0: u64, limit: Option<Isa>) -> AmxState {
    let lists = [
        levels::AVX2,
        levels::AVX512,
        levels::AVX512_BF16,
        levels::AMX_BF16,
    ];
    if !lists.iter().all(|list| has(flags, list)) {
        return AmxState::NotInCpu;
    }
    const STATE: u64 = XCR0_YMM | XCR0_ZMM | XCR0_TILES;
    if xcr0 & STATE != STATE {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretend::Pretend;

    const EPERM: i32 = 1;
    const EINVAL: i32 = 22;
    const ENOSYS: i32 = 38;

    const VNNI_BF16: Features = Features::AVX512_BF16.union(Features::AVX512_VNNI);
    const ALL: Features = VNNI_BF16.union(Features::AMX_INT8);

    fn refused(errno: i32) -> Pretend {
        Pretend {
            request: Err(errno),
            ..Pretend::sapphire_rapids()
        }
    }

    /// Name, machine, what may be used without a limit, AMX, and whether the permission is requested.
    fn machines() -> Vec<(&'static str, Pretend, Features, AmxState, bool)> {
        let spr = Pretend::sapphire_rapids;
        let errno = |errno| AmxState::PermissionRefused { errno };
        let no_int8 = Pretend {
            amx_bits: 1 << 22 | 1 << 24,
            ..spr()
        };
        let no_bf16_tiles = Pretend {
            amx_bits: 1 << 24 | 1 << 25,
            ..spr()
        };
        let no_avx512 = Pretend {
            leaf7_ebx: Pretend::zen3().leaf7_ebx,
            ..spr()
        };
        use AmxState::*;
        vec![
            ("sapphire rapids", spr(), ALL, Ready, true),
            (
                "refused by a sandbox",
                refused(EPERM),
                VNNI_BF16,
                errno(EPERM),
                true,
            ),
            (
                "linux 5.15",
                refused(EINVAL),
                VNNI_BF16,
                errno(EINVAL),
                true,
            ),
            (
                "no such call",
                refused(ENOSYS),
                VNNI_BF16,
                errno(ENOSYS),
                true,
            ),
            (
                "not listed",
                Pretend {
                    permitted: Ok(7),
                    ..spr()
                },
                VNNI_BF16,
                PermissionNotInForce,
                true,
            ),
            (
                "list refused",
                Pretend {
                    permitted: Err(EPERM),
                    ..spr()
                },
                VNNI_BF16,
                errno(EPERM),
                true,
            ),
            (
                "tiles not enabled",
                Pretend {
                    xcr0: 0xe7,
                    ..spr()
                },
                VNNI_BF16,
                NotEnabledByOs,
                false,
            ),
            (
                "tile data not enabled",
                Pretend {
                    xcr0: 0x2_00e7,
                    ..spr()
                },
                VNNI_BF16,
                NotEnabledByOs,
                false,
            ),
            (
                "zmm not enabled",
                Pretend {
                    xcr0: 0x6_0067,
                    ..spr()
                },
                Features::AVX2,
                NotEnabledByOs,
                false,
            ),
            (
                "ymm not enabled",
                Pretend { xcr0: 0x3, ..spr() },
                Features::NONE,
                NotEnabledByOs,
                false,
            ),
            (
                "no xsave",
                Pretend {
                    osxsave: false,
                    ..spr()
                },
                Features::NONE,
                NotEnabledByOs,
                false,
            ),
            (
                "not linux",
                Pretend {
                    linux: false,
                    ..spr()
                },
                VNNI_BF16,
                NotLinux,
                false,
            ),
            (
                "tiles without int8",
                no_int8,
                VNNI_BF16.union(Features::AMX_BF16),
                Ready,
                true,
            ),
            (
                "tiles without bf16",
                no_bf16_tiles,
                VNNI_BF16,
                NotInCpu,
                false,
            ),
            (
                "tiles without avx-512",
                no_avx512,
                Features::AVX2,
                NotInCpu,
                false,
            ),
            ("zen 3", Pretend::zen3(), Features::AVX2, NotInCpu, false),
            ("zen 4", Pretend::zen4(), VNNI_BF16, NotInCpu, false),
            (
                "skylake-x",
                Pretend::skylake_x(),
                Features::AVX2,
                NotInCpu,
                false,
            ),
            (
                "ice lake",
                Pretend::ice_lake(),
                Features::AVX512_VNNI,
                NotInCpu,
                false,
            ),
            (
                "sandy bridge",
                Pretend::sandy_bridge(),
                Features::NONE,
                NotInCpu,
                false,
            ),
            (
                "no cpuid",
                Pretend::without_cpuid(),
                Features::NONE,
                NotInCpu,
                false,
            ),
        ]
    }

    #[test]
    fn every_machine_is_judged_without_a_limit() {
        for (name, machine, features, amx, requested) in machines() {
            let report = evaluate(&machine, None);
            assert_eq!(report.features, features, "{name}: {}", report.features);
            assert_eq!(report.isa, features.isa(), "{name}");
            assert_eq!(report.amx, amx, "{name}");
            let requests: &[u32] = if requested { &[18] } else { &[] };
            assert_eq!(*machine.requests.borrow(), requests, "{name}");
            for level in Isa::ALL {
                assert_eq!(
                    report.missing(level).is_empty(),
                    level <= report.isa,
                    "{name}: {level}"
                );
            }
        }
    }

    #[test]
    fn a_limit_lowers_the_level_and_asks_for_no_permission() {
        for limit in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            for (name, machine, unlimited, unlimited_amx, _) in machines() {
                let report = evaluate(&machine, Some(limit));
                assert_eq!(
                    report.isa,
                    unlimited.isa().min(limit),
                    "{name} limited to {limit}"
                );
                assert!(
                    unlimited.contains(report.features),
                    "{name} limited to {limit}"
                );
                assert!(
                    machine.requests.borrow().is_empty(),
                    "{name} limited to {limit}"
                );
                let known = matches!(unlimited_amx, AmxState::NotInCpu | AmxState::NotEnabledByOs);
                assert_eq!(
                    report.amx,
                    if known {
                        unlimited_amx
                    } else {
                        AmxState::Limited
                    },
                    "{name}"
                );
            }
        }
        for (name, machine, unlimited, amx, _) in machines() {
            let report = evaluate(&machine, Some(Isa::Amx));
            assert_eq!((report.features, report.amx), (unlimited, amx), "{name}");
        }
        let report = evaluate(&Pretend::sapphire_rapids(), Some(Isa::Avx512));
        assert_eq!(report.features, VNNI_BF16);
    }

    #[test]
    fn each_flag_of_a_level_is_needed() {
        let lists = [
            (Isa::Avx2, levels::AVX2),
            (Isa::Avx512, levels::AVX512),
            (Isa::Amx, levels::AVX512_BF16),
            (Isa::Amx, levels::AMX_BF16),
        ];
        for (level, list) in lists {
            for flag in list {
                let machine = Pretend {
                    without: Some(flag),
                    ..Pretend::sapphire_rapids()
                };
                let report = evaluate(&machine, None);
                assert!(report.isa < level, "{level} without {flag}");
                assert_eq!(report.missing(level), [*flag], "{level} without {flag}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let refused = evaluate(&refused(EPERM), None).missing(Isa::Amx);
        assert_eq!(refused.len(), 1);
        assert!(
            refused[0].contains("permission") && refused[0].contains("Operation not permitted"),
            "{refused:?}"
        );
        let machine = Pretend {
            xcr0: 0xe7,
            ..Pretend::sapphire_rapids()
        };
        let not_enabled = evaluate(&machine, None).missing(Isa::Amx);
        assert_eq!(not_enabled, ["tile state enabled by the operating system"]);
        let zen4 = evaluate(&Pretend::zen4(), None);
        assert_eq!(zen4.missing(Isa::Amx), ["amx-tile", "amx-bf16"]);
        assert_eq!(
            evaluate(&Pretend::skylake_x(), None).missing(Isa::Avx512),
            ["avx512vbmi", "avx512vbmi2"]
        );
    }

    #[test]
    fn each_state_has_its_own_sentence() {
        let states = [
            AmxState::Ready,
            AmxState::NotInCpu,
            AmxState::NotEnabledByOs,
            AmxState::PermissionRefused { errno: EPERM },
            AmxState::PermissionRefused { errno: ENOSYS },
            AmxState::PermissionNotInForce,
            AmxState::NotLinux,
            AmxState::Limited,
        ];
        let sentences: std::collections::HashSet<String> =
            states.iter().map(AmxState::to_string).collect();
        assert_eq!(sentences.len(), states.len());
    }

    #[test]
    fn the_names_of_the_cpu_are_read() {
        let report = evaluate(&Pretend::sapphire_rapids(), None);
        assert_eq!(report.vendor, "GenuineIntel");
        assert_eq!(report.brand, "Pretend CPU @ 2.00GHz");
        let report = evaluate(&Pretend::without_cpuid(), None);
        assert_eq!((report.vendor.as_str(), report.brand.as_str()), ("", ""));
    }
}
