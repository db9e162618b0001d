//! The running CPU, and the tokens that prove what it can do.

use std::ffi::OsStr;
use std::fmt;
use std::sync::OnceLock;

use crate::{Features, Isa, Machine, Report, UnknownIsa, evaluate};

/// The environment variable by which programs let users force a lower level, as errors name it: `portable`, `avx2`, `avx512` or
/// `amx`. Empty is as if not set. It is read by the programs, not here; see [`Cpu::detect_up_to`].
pub const ISA_VARIABLE: &str = "SPARAMX_ISA";

/// What may be used on the running machine. Made by [`Cpu::detect`] only, so its answers can be relied on for safety.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    report: &'static Report,
    features: Features,
}

impl Cpu {
    /// All that the machine has: [`Cpu::detect_up_to`] without a limit.
    ///
    /// # Errors
    /// None without a limit.
    pub fn detect() -> Result<Cpu, CpuError> {
        Self::detect_up_to(None)
    }

    /// Looks at the machine, once per process and limit, which is the value of [`ISA_VARIABLE`]. Call it before threads are
    /// started: it requests the permission for AMX tiles, unless the limit is below.
    ///
    /// # Errors
    /// The limit is no level, or one that this machine does not reach.
    pub fn detect_up_to(limit: Option<&OsStr>) -> Result<Cpu, CpuError> {
        /// By limit: none, then each level.
        static REPORTS: [OnceLock<Report>; 1 + Isa::ALL.len()] =
            [const { OnceLock::new() }; 1 + Isa::ALL.len()];
        let limit = parse(limit)?;
        let found = &REPORTS[limit.map_or(0, |isa| 1 + isa as usize)];
        let report = found.get_or_init(|| evaluate(&Machine, limit));
        reached(report)?;
        Ok(Cpu {
            report,
            features: report.features,
        })
    }

    /// The same CPU without what is above `isa`: tests run every level of a machine in one process.
    #[must_use]
    pub fn at_most(self, isa: Isa) -> Cpu {
        Cpu {
            features: self.features.intersection(isa.ceiling()),
            ..self
        }
    }

    /// All that kernels may use here.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The highest level that kernels may use here.
    pub fn isa(&self) -> Isa {
        self.features.isa()
    }

    /// The proof that [`crate::avx2_fns!`] functions may be called.
    pub fn avx2(&self) -> Option<Avx2> {
        self.features().contains(Features::AVX2).then_some(Avx2(()))
    }

    /// The proof that [`crate::avx512_fns!`] functions may be called.
    pub fn avx512(&self) -> Option<Avx512> {
        self.features()
            .contains(Features::AVX512)
            .then_some(Avx512(()))
    }

    /// The proof that tiles and `tdpbf16ps` may be used.
    pub fn amx(&self) -> Option<Amx> {
        self.features()
            .contains(Features::AMX_BF16)
            .then_some(Amx(()))
    }

    /// The proof that `tdpbssd` may be used, too.
    pub fn amx_int8(&self) -> Option<AmxInt8> {
        self.features()
            .contains(Features::AMX_INT8)
            .then_some(AmxInt8(()))
    }

    /// What was found, for people to read; the same for a limited CPU.
    pub fn report(&self) -> &'static Report {
        self.report
    }
}

/// Proof of [`Features::AVX2`] on the running machine.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Proof of [`Features::AVX512`] on the running machine.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Proof of [`Features::AMX_BF16`] on the running machine, the permission to use tiles included.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

/// Proof of [`Features::AMX_INT8`] on the running machine, the permission to use tiles included.
#[derive(Clone, Copy, Debug)]
pub struct AmxInt8(());

impl Avx512 {
    /// The level below.
    pub fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

impl Amx {
    /// The level below.
    pub fn avx512(self) -> Avx512 {
        Avx512(())
    }
}

impl AmxInt8 {
    /// Tiles and `tdpbf16ps`.
    pub fn amx(self) -> Amx {
        Amx(())
    }
}

/// Why no level could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuError {
    /// [`ISA_VARIABLE`] holds no level.
    UnknownLevel(UnknownIsa),
    /// [`ISA_VARIABLE`] asks for more than the machine has.
    LevelMissing {
        /// The level asked for.
        level: Isa,
        /// The highest level there is.
        highest: Isa,
        /// What is lacking, in words.
        missing: Vec<String>,
    },
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::UnknownLevel(error) => write!(f, "{ISA_VARIABLE}: {error}"),
            CpuError::LevelMissing {
                level,
                highest,
                missing,
            } => write!(
                f,
                "{ISA_VARIABLE}={level}: this machine reaches {highest} and lacks {}; \
                 unset the variable or choose {highest} or lower",
                missing.join(", ")
            ),
        }
    }
}

impl std::error::Error for CpuError {}

/// The level that a value of [`ISA_VARIABLE`] names, if any.
fn parse(setting: Option<&OsStr>) -> Result<Option<Isa>, CpuError> {
    let Some(value) = setting.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let level = value.to_string_lossy().parse();
    level.map(Some).map_err(CpuError::UnknownLevel)
}

/// Whether the machine reaches the level that it was limited to.
fn reached(report: &Report) -> Result<(), CpuError> {
    match report.limit {
        Some(level) if level > report.isa => Err(CpuError::LevelMissing {
            level,
            highest: report.isa,
            missing: report.missing(level),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretend::Pretend;

    fn resolve(machine: &Pretend, setting: Option<&OsStr>) -> Result<Report, CpuError> {
        let report = evaluate(machine, parse(setting)?);
        reached(&report)?;
        Ok(report)
    }

    fn resolve_text(machine: &Pretend, value: &str) -> Result<Report, CpuError> {
        resolve(machine, Some(OsStr::new(value)))
    }

    #[test]
    fn the_variable_forces_a_lower_level() {
        for isa in Isa::ALL {
            let report = resolve_text(&Pretend::sapphire_rapids(), &isa.to_string()).unwrap();
            assert_eq!((report.isa, report.limit), (isa, Some(isa)));
        }
        for unset in [None, Some(OsStr::new(""))] {
            let report = resolve(&Pretend::sapphire_rapids(), unset).unwrap();
            assert_eq!((report.isa, report.limit), (Isa::Amx, None));
        }
    }

    #[test]
    fn an_unknown_level_is_refused_before_anything_is_requested() {
        for value in ["AVX2", "avx-512", "fastest", " amx", "\u{1f980}"] {
            let machine = Pretend::sapphire_rapids();
            let error = resolve_text(&machine, value).unwrap_err();
            assert_eq!(error, CpuError::UnknownLevel(UnknownIsa(value.to_owned())));
            let text = error.to_string();
            assert!(
                text.starts_with("SPARAMX_ISA: unknown")
                    && text.contains("portable, avx2, avx512 or amx"),
                "{text}"
            );
            assert!(machine.requests.borrow().is_empty());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_level_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let error = resolve(&Pretend::zen3(), Some(OsStr::from_bytes(b"amx\xff"))).unwrap_err();
        assert!(matches!(error, CpuError::UnknownLevel(_)));
    }

    #[test]
    fn a_level_out_of_reach_is_refused_with_what_is_missing() {
        let error = resolve_text(&Pretend::ice_lake(), "amx").unwrap_err();
        assert_eq!(
            error.to_string(),
            "SPARAMX_ISA=amx: this machine reaches avx512 and lacks avx512bf16, amx-tile, amx-bf16; \
             unset the variable or choose avx512 or lower"
        );
        let machine = Pretend {
            request: Err(1),
            ..Pretend::sapphire_rapids()
        };
        let text = resolve_text(&machine, "amx").unwrap_err().to_string();
        assert!(text.contains("lacks permission to use tiles"), "{text}");
        assert!(resolve_text(&Pretend::zen3(), "avx512").is_err());
        assert!(resolve_text(&Pretend::sandy_bridge(), "avx2").is_err());
        assert!(resolve_text(&Pretend::sandy_bridge(), "portable").is_ok());
    }

    #[test]
    fn every_limit_is_obeyed_or_refused() {
        let highest = Cpu::detect().unwrap();
        assert_eq!(highest.report().limit, None);
        for isa in Isa::ALL {
            let limited = Cpu::detect_up_to(Some(OsStr::new(&isa.to_string())));
            if isa <= highest.isa() {
                let limited = limited.unwrap();
                assert_eq!((limited.isa(), limited.report().limit), (isa, Some(isa)));
            } else {
                let text = limited.unwrap_err().to_string();
                let reaches = format!("reaches {} and lacks", highest.isa());
                assert!(text.contains(&reaches), "{text}");
            }
        }
        let unset = Cpu::detect_up_to(Some(OsStr::new(""))).unwrap();
        assert_eq!(unset.features(), highest.features());
        let unknown = Cpu::detect_up_to(Some(OsStr::new("avx9"))).unwrap_err();
        assert!(
            unknown
                .to_string()
                .contains("unknown instruction set \"avx9\"")
        );
    }

    #[test]
    fn tokens_follow_the_features() {
        let cpu = Cpu::detect().expect("a level that this machine has");
        assert_eq!(cpu.avx2().is_some(), cpu.isa() >= Isa::Avx2);
        assert_eq!(cpu.avx512().is_some(), cpu.isa() >= Isa::Avx512);
        assert_eq!(cpu.amx().is_some(), cpu.isa() >= Isa::Amx);
        assert_eq!(cpu.features(), cpu.report().features);
    }

    #[test]
    fn a_limited_cpu_has_no_higher_tokens() {
        let cpu = Cpu::detect().expect("a level that this machine has");
        for isa in Isa::ALL {
            let limited = cpu.at_most(isa);
            assert_eq!(limited.isa(), isa.min(cpu.isa()));
            assert!(cpu.features().contains(limited.features()));
            assert_eq!(limited.avx2().is_some(), limited.isa() >= Isa::Avx2);
            assert_eq!(limited.avx512().is_some(), limited.isa() >= Isa::Avx512);
            assert_eq!(limited.amx().is_some(), limited.isa() >= Isa::Amx);
        }
    }
}
