//! The names of what a CPU can do: levels and capabilities.

use std::fmt;
use std::str::FromStr;

/// A level of vector instructions. Each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Portable,
    /// AVX2 with FMA, F16C, BMI1, BMI2, LZCNT and POPCNT (Haswell, Zen and later).
    Avx2,
    /// AVX-512 F, BW, DQ, VL, CD, VBMI and VBMI2 (Ice Lake, Zen 4 and later).
    Avx512,
    /// AMX tiles with bf16, over AVX-512 with BF16 (Sapphire Rapids and later).
    Amx,
}

impl Isa {
    /// All levels, lowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The capabilities that every CPU of this level has.
    pub const fn features(self) -> Features {
        match self {
            Isa::Portable => Features::NONE,
            Isa::Avx2 => Features::AVX2,
            Isa::Avx512 => Features::AVX512,
            Isa::Amx => Features::AMX_BF16,
        }
    }

    /// The capabilities that may be used when this level is the highest allowed.
    pub(crate) const fn ceiling(self) -> Features {
        match self {
            Isa::Portable => Features::NONE,
            Isa::Avx2 => Features::AVX2,
            Isa::Avx512 => Features::AVX512_BF16.union(Features::AVX512_VNNI),
            Isa::Amx => Features(u16::MAX),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    /// Reads the lower-case name that `Display` writes.
    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let found = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// A name that is none of the four levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(pub String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown instruction set {:?}: choose portable, avx2, avx512 or amx",
            self.0
        )
    }
}

impl std::error::Error for UnknownIsa {}

/// A set of capabilities that a kernel may require. It is only a description: anybody can make one, so it proves
/// nothing about the running CPU (see [`crate::Cpu`]).
///
/// Each constant includes the capabilities it builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Features(u16);

impl Features {
    /// Nothing beyond plain Rust.
    pub const NONE: Features = Features(0);
    /// AVX2, FMA, F16C, BMI1, BMI2, LZCNT and POPCNT.
    pub const AVX2: Features = Features(1);
    /// [`Features::AVX2`] with AVX-512 F, BW, DQ, VL, CD, VBMI and VBMI2.
    pub const AVX512: Features = Features(1 << 1).union(Features::AVX2);
    /// [`Features::AVX512`] with bf16 dot products (`vdpbf16ps`).
    pub const AVX512_BF16: Features = Features(1 << 2).union(Features::AVX512);
    /// [`Features::AVX512`] with int8 dot products (`vpdpbusd`).
    pub const AVX512_VNNI: Features = Features(1 << 3).union(Features::AVX512);
    /// [`Features::AVX512_BF16`] with AMX tiles and `tdpbf16ps`, enabled by the operating system and permitted to
    /// this process.
    pub const AMX_BF16: Features = Features(1 << 4).union(Features::AVX512_BF16);
    /// [`Features::AMX_BF16`] with the int8 tile products (`tdpbssd`).
    pub const AMX_INT8: Features = Features(1 << 5).union(Features::AMX_BF16);

    const NAMED: [(Features, &'static str); 6] = [
        (Features::AVX2, "avx2"),
        (Features::AVX512, "avx512"),
        (Features::AVX512_BF16, "avx512_bf16"),
        (Features::AVX512_VNNI, "avx512_vnni"),
        (Features::AMX_BF16, "amx_bf16"),
        (Features::AMX_INT8, "amx_int8"),
    ];

    /// Everything that is in either set.
    #[must_use]
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Everything that is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// Whether all of `required` is here.
    pub const fn contains(self, required: Features) -> bool {
        self.0 & required.0 == required.0
    }

    /// The highest level that is completely here.
    pub const fn isa(self) -> Isa {
        if self.contains(Features::AMX_BF16) {
            Isa::Amx
        } else if self.contains(Features::AVX512) {
            Isa::Avx512
        } else if self.contains(Features::AVX2) {
            Isa::Avx2
        } else {
            Isa::Portable
        }
    }

    /// The names of the capabilities in the set, lowest first.
    pub fn names(self) -> Vec<&'static str> {
        let here = Self::NAMED
            .into_iter()
            .filter(|(feature, _)| self.contains(*feature));
        here.map(|(_, name)| name).collect()
    }
}

impl fmt::Display for Features {
    /// The names joined by `+`, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names().as_slice() {
            [] => f.pad("none"),
            names => f.pad(&names.join("+")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_levels_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        for wrong in ["", "AVX2", "avx-512", "amx ", "sse"] {
            let error = wrong.parse::<Isa>().unwrap_err();
            assert_eq!(error, UnknownIsa(wrong.to_owned()));
            assert!(error.to_string().contains("portable, avx2, avx512 or amx"));
        }
    }

    #[test]
    fn levels_are_ordered_and_nested() {
        for pair in Isa::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[1].features().contains(pair[0].features()));
            assert!(!pair[0].ceiling().contains(pair[1].features()));
        }
        for isa in Isa::ALL {
            assert_eq!(isa.features().isa(), isa);
            assert_eq!(isa.ceiling().isa(), isa);
        }
    }

    #[test]
    fn sets_are_named() {
        assert_eq!(Features::NONE.to_string(), "none");
        assert_eq!(
            Features::AVX512_VNNI.names(),
            ["avx2", "avx512", "avx512_vnni"]
        );
        let all = Features::AMX_INT8.union(Features::AVX512_VNNI);
        assert_eq!(
            all.to_string(),
            "avx2+avx512+avx512_bf16+avx512_vnni+amx_bf16+amx_int8"
        );
        assert_eq!(all.intersection(Features::AVX2), Features::AVX2);
    }
}
