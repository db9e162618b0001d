//! The CPUID bits we know by name.
//!
//! Source: Intel Software Developer's Manual volume 2, CPUID; AMD64 Architecture Programmer's Manual volume 3,
//! appendix E.

use crate::Os;

/// The registers that CPUID answers in, in the order of [`Os::cpuid`].
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

const EXTENDED: u32 = 0x8000_0000;

/// One row: name as in `target_feature` (where it has one), leaf, subleaf, register, bit.
type Flag = (&'static str, u32, u32, usize, u32);

const FLAGS: [Flag; 34] = [
    ("sse3", 1, 0, ECX, 0),
    ("ssse3", 1, 0, ECX, 9),
    ("fma", 1, 0, ECX, 12),
    ("sse4.1", 1, 0, ECX, 19),
    ("sse4.2", 1, 0, ECX, 20),
    ("popcnt", 1, 0, ECX, 23),
    ("osxsave", 1, 0, ECX, 27),
    ("avx", 1, 0, ECX, 28),
    ("f16c", 1, 0, ECX, 29),
    ("bmi1", 7, 0, EBX, 3),
    ("avx2", 7, 0, EBX, 5),
    ("bmi2", 7, 0, EBX, 8),
    ("avx512f", 7, 0, EBX, 16),
    ("avx512dq", 7, 0, EBX, 17),
    ("avx512ifma", 7, 0, EBX, 21),
    ("avx512cd", 7, 0, EBX, 28),
    ("avx512bw", 7, 0, EBX, 30),
    ("avx512vl", 7, 0, EBX, 31),
    ("avx512vbmi", 7, 0, ECX, 1),
    ("avx512vbmi2", 7, 0, ECX, 6),
    ("gfni", 7, 0, ECX, 8),
    ("avx512vnni", 7, 0, ECX, 11),
    ("avx512bitalg", 7, 0, ECX, 12),
    ("avx512vpopcntdq", 7, 0, ECX, 14),
    ("amx-bf16", 7, 0, EDX, 22),
    ("avx512fp16", 7, 0, EDX, 23),
    ("amx-tile", 7, 0, EDX, 24),
    ("amx-int8", 7, 0, EDX, 25),
    ("avxvnni", 7, 1, EAX, 4),
    ("avx512bf16", 7, 1, EAX, 5),
    ("amx-fp16", 7, 1, EAX, 21),
    ("avxvnniint8", 7, 1, EDX, 4),
    ("amx-complex", 7, 1, EDX, 8),
    ("lzcnt", EXTENDED + 1, 0, ECX, 5),
];

/// The names of the flags that the CPU sets, whatever the operating system allows.
pub(crate) fn read(os: &dyn Os) -> Vec<&'static str> {
    let set = FLAGS.iter().filter(|(_, leaf, subleaf, register, bit)| {
        leaf_or_zero(os, *leaf, *subleaf)[*register] & (1 << bit) != 0
    });
    set.map(|(name, ..)| *name).collect()
}

/// A leaf, or zeros where the CPU does not have it: Intel CPUs answer a leaf above the highest with the contents of
/// another one, whose bits mean something else.
fn leaf_or_zero(os: &dyn Os, leaf: u32, subleaf: u32) -> [u32; 4] {
    let highest_leaf = os.cpuid(leaf & EXTENDED, 0)[EAX];
    if leaf > highest_leaf {
        return [0; 4];
    }
    if leaf == 7 && subleaf > os.cpuid(7, 0)[EAX] {
        return [0; 4];
    }
    os.cpuid(leaf, subleaf)
}

/// The manufacturer's name for itself, e.g. `GenuineIntel`; empty where there is no CPUID.
pub(crate) fn vendor(os: &dyn Os) -> String {
    let [_, ebx, ecx, edx] = os.cpuid(0, 0);
    text(&[ebx, edx, ecx])
}

/// The name of the model, e.g. `AMD EPYC 9654 96-Core Processor`; empty where the CPU does not say.
pub(crate) fn brand(os: &dyn Os) -> String {
    let leaves = (2..=4).map(|i| leaf_or_zero(os, EXTENDED + i, 0));
    text(&leaves.collect::<Vec<_>>().concat())
}

/// Registers as text: little-endian bytes up to the first NUL, anything unprintable dropped, blanks trimmed.
fn text(registers: &[u32]) -> String {
    let bytes = registers.iter().flat_map(|register| register.to_le_bytes());
    let text: String = bytes
        .take_while(|&byte| byte != 0)
        .map(char::from)
        .filter(|c| matches!(c, ' '..='~'))
        .collect();
    text.trim().to_owned()
}
