//! Machines to pretend to be, for the tests of detection.
//!
//! The bits stand here a second time and as numbers, from the manuals, so that a wrong row in `flags` is found.

use std::cell::RefCell;

use crate::Os;

const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let (mut word, mut i) = (0, 0);
    while i < N {
        word |= 1 << numbers[i];
        i += 1;
    }
    word
}

/// avx2, bmi1, bmi2.
const LEAF7_EBX_AVX2: u32 = bits([5, 3, 8]);
/// avx512 f, dq, cd, bw, vl.
const LEAF7_EBX_AVX512: u32 = LEAF7_EBX_AVX2 | bits([16, 17, 28, 30, 31]);
const VBMI: u32 = bits([1, 6]);
const VNNI: u32 = bits([11]);
const AVX512_BF16: u32 = bits([5]);

pub(crate) struct Pretend {
    /// The highest basic leaf, 0 without CPUID.
    pub highest_leaf: u32,
    pub osxsave: bool,
    pub leaf7_ebx: u32,
    pub leaf7_ecx: u32,
    pub amx_bits: u32,
    /// Register eax of leaf 7, subleaf 1; `None` if there is no such subleaf.
    pub leaf7_1_eax: Option<u32>,
    pub xcr0: u64,
    pub linux: bool,
    pub request: Result<(), i32>,
    pub permitted: Result<u64, i32>,
    /// A flag to leave out.
    pub without: Option<&'static str>,
    /// The components that were requested.
    pub requests: RefCell<Vec<u32>>,
}

impl Pretend {
    pub(crate) fn sapphire_rapids() -> Pretend {
        Pretend {
            highest_leaf: 0x20,
            osxsave: true,
            leaf7_ebx: LEAF7_EBX_AVX512,
            leaf7_ecx: VBMI | VNNI,
            amx_bits: bits([22, 24, 25]),
            leaf7_1_eax: Some(AVX512_BF16),
            xcr0: 0x6_02e7,
            linux: true,
            request: Ok(()),
            permitted: Ok(0x6_02e7),
            without: None,
            requests: RefCell::new(Vec::new()),
        }
    }

    pub(crate) fn zen4() -> Pretend {
        Pretend {
            highest_leaf: 0x10,
            amx_bits: 0,
            xcr0: 0x2e7,
            ..Pretend::sapphire_rapids()
        }
    }

    pub(crate) fn ice_lake() -> Pretend {
        Pretend {
            leaf7_1_eax: None,
            ..Pretend::zen4()
        }
    }

    pub(crate) fn skylake_x() -> Pretend {
        Pretend {
            leaf7_ecx: 0,
            ..Pretend::ice_lake()
        }
    }

    pub(crate) fn zen3() -> Pretend {
        Pretend {
            leaf7_ebx: LEAF7_EBX_AVX2,
            xcr0: 0x207,
            ..Pretend::skylake_x()
        }
    }

    /// AVX, and a highest leaf under 7: what is read there means nothing.
    pub(crate) fn sandy_bridge() -> Pretend {
        Pretend {
            highest_leaf: 6,
            xcr0: 0x7,
            ..Pretend::zen3()
        }
    }

    pub(crate) fn without_cpuid() -> Pretend {
        Pretend {
            highest_leaf: 0,
            osxsave: false,
            xcr0: 0,
            linux: false,
            ..Pretend::zen3()
        }
    }

    fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let osxsave = if self.osxsave { bits([26, 27]) } else { 0 };
        match (leaf, subleaf) {
            (0, _) => [
                self.highest_leaf,
                word(b"Genu"),
                word(b"ntel"),
                word(b"ineI"),
            ],
            // fma, popcnt, avx, f16c.
            (1, _) => [0, 0, osxsave | bits([12, 23, 28, 29]), 0],
            (7, 0) => [
                self.leaf7_1_eax.is_some().into(),
                self.leaf7_ebx,
                self.leaf7_ecx,
                self.amx_bits,
            ],
            (7, 1) => [self.leaf7_1_eax.unwrap_or(u32::MAX), 0, 0, 0],
            (0x8000_0000, _) => [0x8000_0004, 0, 0, 0],
            // lzcnt.
            (0x8000_0001, _) => [0, 0, bits([5]), 0],
            (0x8000_0002, _) => [word(b"  Pr"), word(b"eten"), word(b"d CP"), word(b"U @ ")],
            (0x8000_0003, _) => [word(b"2.00"), word(b"GHz\0"), word(b"junk"), u32::MAX],
            (0x8000_0004, _) => [u32::MAX; 4],
            _ => [0; 4],
        }
    }
}

fn word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

/// Where a flag of the levels stands: leaf, subleaf, register, bit.
fn place(flag: &str) -> (u32, u32, usize, u32) {
    match flag {
        "fma" => (1, 0, 2, 12),
        "popcnt" => (1, 0, 2, 23),
        "f16c" => (1, 0, 2, 29),
        "bmi1" => (7, 0, 1, 3),
        "avx2" => (7, 0, 1, 5),
        "bmi2" => (7, 0, 1, 8),
        "lzcnt" => (0x8000_0001, 0, 2, 5),
        "avx512f" => (7, 0, 1, 16),
        "avx512dq" => (7, 0, 1, 17),
        "avx512cd" => (7, 0, 1, 28),
        "avx512bw" => (7, 0, 1, 30),
        "avx512vl" => (7, 0, 1, 31),
        "avx512vbmi" => (7, 0, 2, 1),
        "avx512vbmi2" => (7, 0, 2, 6),
        "avx512bf16" => (7, 1, 0, 5),
        "amx-bf16" => (7, 0, 3, 22),
        "amx-tile" => (7, 0, 3, 24),
        other => panic!("no place for {other}"),
    }
}

impl Os for Pretend {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        if self.highest_leaf == 0 {
            return [0; 4];
        }
        // Above the highest leaf an Intel CPU answers with another leaf: here, with all bits set.
        if leaf < 0x8000_0000 && leaf > self.highest_leaf {
            return [u32::MAX; 4];
        }
        let mut registers = self.leaf(leaf, subleaf);
        if let Some((at, sub, register, bit)) = self.without.map(place)
            && (at, sub) == (leaf, subleaf)
        {
            registers[register] &= !(1 << bit);
        }
        registers
    }

    fn xcr0(&self) -> u64 {
        assert!(
            self.osxsave,
            "xgetbv without OSXSAVE is an invalid instruction"
        );
        self.xcr0
    }

    fn is_linux(&self) -> bool {
        self.linux
    }

    fn request_permission(&self, component: u32) -> Result<(), i32> {
        self.requests.borrow_mut().push(component);
        self.request
    }

    fn permitted_components(&self) -> Result<u64, i32> {
        self.permitted
    }
}
