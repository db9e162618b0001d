//! The table of all linear kernels, and the choice among them.
//!
//! Tests, benchmarks, selection and `sparamx inspect --kernels` go over this table. A new kernel is a function in the file of its
//! instruction set and a row here.

use std::ops::RangeInclusive;

use sparamx_cpu::{Features, Isa};

use crate::linear::activation::Activation;
use crate::linear::loops::{int_panel_bytes, no_bytes, panel_bytes};
use crate::linear::portable;
#[cfg(target_arch = "x86_64")]
use crate::linear::{amx, avx2, avx512};
use crate::{KernelError, WeightFormat};

pub use crate::spec::{KernelSpec, NumericClass};

/// All kernels, the preferred first.
pub fn catalog() -> &'static [KernelSpec] {
    CATALOG
}

/// The kernel of that name.
///
/// # Errors
/// [`KernelError::UnknownKernel`]
pub fn by_name(name: &str) -> Result<&'static KernelSpec, KernelError> {
    let found = CATALOG.iter().find(|spec| spec.name == name);
    found.ok_or_else(|| KernelError::UnknownKernel {
        name: name.to_owned(),
    })
}

/// The kernel for weights of that form and `m` rows of activations on a CPU with `features`.
pub fn select(features: Features, weight: WeightFormat, m: usize) -> &'static KernelSpec {
    let fits = |spec: &&KernelSpec| {
        features.contains(spec.features) && spec.weight == weight && spec.best_m.contains(&m.max(1))
    };
    CATALOG
        .iter()
        .find(fits)
        .expect("the portable rows fit everywhere")
}

/// The same among the kernels that give a row the same bits whatever rows are beside it: those of the class that serves many rows.
pub fn select_in_one_class(
    features: Features,
    weight: WeightFormat,
    m: usize,
) -> &'static KernelSpec {
    let best = select(features, weight, m);
    let many = select(features, weight, m.max(MANY));
    if best.class == many.class { best } else { many }
}

/// AMX tiles of bytes; their expansion uses what comes with AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
const AMX_INT8: Features = Features::AMX_INT8.union(Features::AVX512_VNNI);

/// On AVX2 one row serves all M: the first rows are multiplied while a line is expanded, and only if more follow is it kept.
const ANY: RangeInclusive<usize> = 1..=usize::MAX;
/// AVX-512: to expand again for every 8 rows costs less than to write and read a panel, up to some rows. Measured on Zen 4, two
/// threads, 4096 x 4096 at 50 %, microseconds in registers / by panels (`sparamx bench --kernels`):
///
/// | M | f32 by bf16 | bf16 | int8 | int4 |
/// |---|---|---|---|---|
/// | 8 | 1559 / 1801 | 994 / 1234 | 461 / 734 | 501 / 585 |
/// | 16 | 3016 / 2843 | 1718 / 1673 | 928 / 1061 | 1064 / 943 |
/// | 24 | 4573 / 4085 | 2555 / 2306 | 1280 / 1367 | 1545 / 1267 |
/// | 32 | 6116 / 5362 | 3604 / 3598 | 1643 / 1647 | 2071 / 1573 |
/// | 48 | 9320 / 7731 | 5514 / 4227 | 2459 / 2247 | 2952 / 2161 |
const AVX512_DIRECT_BF16: RangeInclusive<usize> = 1..=15;
const AVX512_DIRECT_I8: RangeInclusive<usize> = 1..=31;
const AVX512_DIRECT_I4: RangeInclusive<usize> = 1..=8;
/// AMX: a tile takes 16 rows at the price of one; below, AVX-512 reads as fast and waits for no tile (the peers switch here too).
const AMX_MANY: RangeInclusive<usize> = 5..=usize::MAX;
/// Rows from which on all kernels are of one class.
const MANY: usize = 32;
/// AMX: more rows than one block has would expand again.
const AMX_ONE_BLOCK: RangeInclusive<usize> = 5..=32;
const AVX512_PANEL_BF16: RangeInclusive<usize> = 16..=usize::MAX;
const AVX512_PANEL_I8: RangeInclusive<usize> = 32..=usize::MAX;
const AVX512_PANEL_I4: RangeInclusive<usize> = 9..=usize::MAX;
const AMX_PANEL: RangeInclusive<usize> = 33..=usize::MAX;

const DENSE: &str = "reads the weights once, in memory order";
const DIRECT: &str = "expands in registers, nothing is written";
const TILE: &str = "expands tile by tile into the L1 cache, then multiplies 32 rows";
const BLOCK: &str = "expands in registers; for many rows keeps a block of lines in the L1 cache";
const PANEL: &str = "expands each strip once for all rows";

// The dense kernel of each level and kind of activations; a row of the table below says in what a kernel differs from it.

const PORTABLE_F32: KernelSpec = KernelSpec {
    name: "linear_f32_bf16_f32_1x16_portable",
    isa: Isa::Portable,
    features: Features::NONE,
    weight: WeightFormat::DenseBf16,
    activation: Activation::F32,
    mr: 1,
    nr: 16,
    best_m: ANY,
    reason: DENSE,
    class: NumericClass::F32,
    scratch_bytes: no_bytes,
    run: portable::dense_1x16,
};
const PORTABLE_I8: KernelSpec = KernelSpec {
    name: "linear_i8_i8_i32_1x16_portable",
    weight: WeightFormat::DenseI8,
    activation: Activation::I8,
    class: NumericClass::Exact,
    run: portable::dense_i8_1x16,
    ..PORTABLE_F32
};
#[cfg(target_arch = "x86_64")]
const AMX_BF16: KernelSpec = KernelSpec {
    name: "linear_bf16_bf16_f32_32x32_amx",
    isa: Isa::Amx,
    features: Features::AMX_BF16,
    activation: Activation::Bf16,
    mr: 32,
    nr: 32,
    best_m: AMX_MANY,
    class: NumericClass::Bf16Tile,
    scratch_bytes: amx::bf16::group_bytes,
    run: amx::bf16::dense_32x32,
    ..PORTABLE_F32
};
#[cfg(target_arch = "x86_64")]
const AVX512_BF16: KernelSpec = KernelSpec {
    name: "linear_bf16_bf16_f32_8x16_avx512bf16",
    isa: Isa::Avx512,
    features: Features::AVX512_BF16,
    activation: Activation::Bf16,
    mr: 8,
    class: NumericClass::Bf16Dot,
    run: avx512::bf16::dense_bf16_8x16,
    ..PORTABLE_F32
};
#[cfg(target_arch = "x86_64")]
const AVX512_F32: KernelSpec = KernelSpec {
    name: "linear_f32_bf16_f32_8x16_avx512",
    isa: Isa::Avx512,
    features: Features::AVX512,
    mr: 8,
    class: NumericClass::F32Fma,
    run: avx512::bf16::dense_f32_8x16,
    ..PORTABLE_F32
};
#[cfg(target_arch = "x86_64")]
const AVX2_F32: KernelSpec = KernelSpec {
    name: "linear_f32_bf16_f32_3x16_avx2",
    isa: Isa::Avx2,
    features: Features::AVX2,
    mr: 3,
    class: NumericClass::F32Fma,
    scratch_bytes: avx2::bf16::block_bytes,
    run: avx2::bf16::dense_3x16,
    ..PORTABLE_F32
};
#[cfg(target_arch = "x86_64")]
const AMX_I8: KernelSpec = KernelSpec {
    name: "linear_i8_i8_i32_32x32_amx",
    isa: Isa::Amx,
    features: AMX_INT8,
    mr: 32,
    nr: 32,
    best_m: AMX_MANY,
    scratch_bytes: amx::int::batch_bytes,
    run: amx::int8::dense_i8_32x32,
    ..PORTABLE_I8
};
#[cfg(target_arch = "x86_64")]
const AVX512_I8: KernelSpec = KernelSpec {
    name: "linear_i8_i8_i32_8x16_avx512vnni",
    isa: Isa::Avx512,
    features: Features::AVX512_VNNI,
    mr: 8,
    run: avx512::int8::dense_i8_8x16,
    ..PORTABLE_I8
};
#[cfg(target_arch = "x86_64")]
const AVX2_I16: KernelSpec = KernelSpec {
    name: "linear_i8_i8_i32_6x16_avx2",
    isa: Isa::Avx2,
    features: Features::AVX2,
    activation: Activation::I16,
    mr: 6,
    scratch_bytes: avx2::int8::block_bytes,
    run: avx2::int8::dense_6x16,
    ..PORTABLE_I8
};
#[cfg(target_arch = "x86_64")]
const AVX2_I8: KernelSpec = KernelSpec {
    name: "linear_i8_i4_i32_4x16_avx2",
    isa: Isa::Avx2,
    features: Features::AVX2,
    weight: WeightFormat::DenseI4,
    mr: 4,
    scratch_bytes: avx2::int4::block_bytes,
    run: avx2::int4::dense_4x16,
    ..PORTABLE_I8
};

static CATALOG: &[KernelSpec] = &[
    #[cfg(target_arch = "x86_64")]
    AMX_BF16,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_32x32_amx",
        weight: WeightFormat::SparseBf16,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        run: amx::bf16::sparse_32x32,
        ..AMX_BF16
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_32x32_panel_amx",
        weight: WeightFormat::SparseBf16,
        best_m: AMX_PANEL,
        reason: PANEL,
        scratch_bytes: amx::bf16::panel_pair_bytes,
        run: amx::bf16::sparse_panel_32x32,
        ..AMX_BF16
    },
    #[cfg(target_arch = "x86_64")]
    AVX512_BF16,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_8x16_avx512bf16",
        weight: WeightFormat::SparseBf16,
        best_m: AVX512_DIRECT_BF16,
        reason: DIRECT,
        run: avx512::bf16::sparse_bf16_8x16,
        ..AVX512_BF16
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_8x16_panel_avx512bf16",
        weight: WeightFormat::SparseBf16,
        best_m: AVX512_PANEL_BF16,
        reason: PANEL,
        scratch_bytes: panel_bytes,
        run: avx512::bf16::sparse_panel_bf16_8x16,
        ..AVX512_BF16
    },
    #[cfg(target_arch = "x86_64")]
    AVX512_F32,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_8x16_avx512",
        weight: WeightFormat::SparseBf16,
        best_m: AVX512_DIRECT_BF16,
        reason: DIRECT,
        run: avx512::bf16::sparse_f32_8x16,
        ..AVX512_F32
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_8x16_panel_avx512",
        weight: WeightFormat::SparseBf16,
        best_m: AVX512_PANEL_BF16,
        reason: PANEL,
        scratch_bytes: panel_bytes,
        run: avx512::bf16::sparse_panel_f32_8x16,
        ..AVX512_F32
    },
    #[cfg(target_arch = "x86_64")]
    AVX2_F32,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_3x16_avx2",
        weight: WeightFormat::SparseBf16,
        reason: BLOCK,
        run: avx2::bf16::sparse_3x16,
        ..AVX2_F32
    },
    PORTABLE_F32,
    KernelSpec {
        name: "linear_f32_bmbf16_f32_1x16_portable",
        weight: WeightFormat::SparseBf16,
        reason: PANEL,
        scratch_bytes: panel_bytes,
        run: portable::sparse_1x16,
        ..PORTABLE_F32
    },
    #[cfg(target_arch = "x86_64")]
    AMX_I8,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_32x32_amx",
        weight: WeightFormat::SparseI8,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        run: amx::int8::sparse_i8_32x32,
        ..AMX_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_32x32_panel_amx",
        weight: WeightFormat::SparseI8,
        best_m: AMX_PANEL,
        reason: PANEL,
        scratch_bytes: amx::int::panel_pair_bytes,
        run: amx::int8::sparse_panel_i8_32x32,
        ..AMX_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i4_i32_32x32_amx",
        weight: WeightFormat::DenseI4,
        reason: TILE,
        run: amx::int4::dense_i4_32x32,
        ..AMX_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_32x32_amx",
        weight: WeightFormat::SparseI4,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        run: amx::int4::sparse_i4_32x32,
        ..AMX_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_32x32_panel_amx",
        weight: WeightFormat::SparseI4,
        best_m: AMX_PANEL,
        reason: PANEL,
        scratch_bytes: amx::int::panel_pair_bytes,
        run: amx::int4::sparse_panel_i4_32x32,
        ..AMX_I8
    },
    #[cfg(target_arch = "x86_64")]
    AVX512_I8,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_8x16_avx512vnni",
        weight: WeightFormat::SparseI8,
        best_m: AVX512_DIRECT_I8,
        reason: DIRECT,
        run: avx512::int8::sparse_i8_8x16,
        ..AVX512_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_8x16_panel_avx512vnni",
        weight: WeightFormat::SparseI8,
        best_m: AVX512_PANEL_I8,
        reason: PANEL,
        scratch_bytes: int_panel_bytes,
        run: avx512::int8::sparse_panel_i8_8x16,
        ..AVX512_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i4_i32_8x16_avx512vnni",
        weight: WeightFormat::DenseI4,
        run: avx512::int4::dense_i4_8x16,
        ..AVX512_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_8x16_avx512vnni",
        weight: WeightFormat::SparseI4,
        best_m: AVX512_DIRECT_I4,
        reason: DIRECT,
        run: avx512::int4::sparse_i4_8x16,
        ..AVX512_I8
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_8x16_panel_avx512vnni",
        weight: WeightFormat::SparseI4,
        best_m: AVX512_PANEL_I4,
        reason: PANEL,
        scratch_bytes: int_panel_bytes,
        run: avx512::int4::sparse_panel_i4_8x16,
        ..AVX512_I8
    },
    #[cfg(target_arch = "x86_64")]
    AVX2_I16,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_6x16_avx2",
        weight: WeightFormat::SparseI8,
        reason: BLOCK,
        run: avx2::int8::sparse_6x16,
        ..AVX2_I16
    },
    #[cfg(target_arch = "x86_64")]
    AVX2_I8,
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_4x16_avx2",
        weight: WeightFormat::SparseI4,
        reason: BLOCK,
        run: avx2::int4::sparse_4x16,
        ..AVX2_I8
    },
    PORTABLE_I8,
    KernelSpec {
        name: "linear_i8_bmi8_i32_1x16_portable",
        weight: WeightFormat::SparseI8,
        reason: PANEL,
        scratch_bytes: int_panel_bytes,
        run: portable::sparse_i8_1x16,
        ..PORTABLE_I8
    },
    KernelSpec {
        name: "linear_i8_i4_i32_1x16_portable",
        weight: WeightFormat::DenseI4,
        reason: PANEL,
        scratch_bytes: int_panel_bytes,
        run: portable::dense_i4_1x16,
        ..PORTABLE_I8
    },
    KernelSpec {
        name: "linear_i8_bmi4_i32_1x16_portable",
        weight: WeightFormat::SparseI4,
        reason: PANEL,
        scratch_bytes: int_panel_bytes,
        run: portable::sparse_i4_1x16,
        ..PORTABLE_I8
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the name of a kernel says.
    #[derive(Debug, PartialEq)]
    struct Said {
        activation: &'static str,
        weight: WeightFormat,
        exact: bool,
        mr: usize,
        nr: usize,
        panel: bool,
        isa: Isa,
        features: Features,
    }

    /// `linear_<activation>_<weight>_<sum>_<MR>x<NR>[_panel]_<isa>`
    fn parse(name: &str) -> Option<Said> {
        let mut words: Vec<&str> = name.split('_').collect();
        let panel = words.len() == 7 && words.remove(5) == "panel";
        let [op, activation, weight, sum, tile, isa] = words[..] else {
            return None;
        };
        let (mr, nr) = tile.split_once('x')?;
        let activation = ["f32", "bf16", "i8"]
            .into_iter()
            .find(|a| *a == activation)?;
        let (isa, features) = match (isa, activation) {
            ("portable", _) => (Isa::Portable, Features::NONE),
            ("avx2", _) => (Isa::Avx2, Features::AVX2),
            ("avx512", "f32") => (Isa::Avx512, Features::AVX512),
            ("avx512bf16", "bf16") => (Isa::Avx512, Features::AVX512_BF16),
            ("avx512vnni", "i8") => (Isa::Avx512, Features::AVX512_VNNI),
            ("amx", "bf16") => (Isa::Amx, Features::AMX_BF16),
            ("amx", "i8") => (Isa::Amx, Features::AMX_INT8.union(Features::AVX512_VNNI)),
            _ => return None,
        };
        let said = Said {
            activation,
            weight: match weight {
                "bf16" => WeightFormat::DenseBf16,
                "bmbf16" => WeightFormat::SparseBf16,
                "i8" => WeightFormat::DenseI8,
                "bmi8" => WeightFormat::SparseI8,
                "i4" => WeightFormat::DenseI4,
                "bmi4" => WeightFormat::SparseI4,
                _ => return None,
            },
            exact: match sum {
                "f32" => false,
                "i32" => true,
                _ => return None,
            },
            mr: mr.parse().ok()?,
            nr: nr.parse().ok()?,
            panel,
            isa,
            features,
        };
        (op == "linear").then_some(said)
    }

    #[test]
    fn names_say_what_rows_are() {
        for spec in catalog() {
            let said = parse(spec.name);
            let said = said.unwrap_or_else(|| panic!("{} follows no grammar", spec.name));
            let activation = match spec.activation {
                Activation::F32 => "f32",
                Activation::Bf16 => "bf16",
                Activation::I8 | Activation::I16 => "i8",
            };
            let is = Said {
                activation,
                weight: spec.weight,
                exact: spec.class == NumericClass::Exact,
                mr: spec.mr,
                nr: spec.nr,
                // Portable kernels have no way but by panels, so their names do not say it.
                panel: spec.reason == PANEL && spec.isa != Isa::Portable,
                isa: spec.isa,
                features: spec.features,
            };
            assert_eq!(said, is, "{}", spec.name);
            assert_eq!(said.exact, said.activation == "i8", "{}", spec.name);
        }
    }

    #[test]
    fn names_are_unique_and_ranges_of_a_level_do_not_overlap() {
        for (i, spec) in catalog().iter().enumerate() {
            let before = &catalog()[..i];
            assert!(
                before.iter().all(|other| other.name != spec.name),
                "{}",
                spec.name
            );
            // A panel grows with K.
            let grows = (spec.scratch_bytes)(4096) > (spec.scratch_bytes)(64);
            assert_eq!(grows, spec.reason == PANEL, "{}", spec.name);
            // Of the kernels of a level for a form of weights, one is the best for any M.
            for m in 1..=64 {
                let same = |other: &&KernelSpec| {
                    (other.features, other.weight) == (spec.features, spec.weight)
                        && other.best_m.contains(&m)
                };
                let best: Vec<_> = catalog().iter().filter(same).collect();
                assert!(best.len() <= 1, "{best:?} for {m} rows");
            }
        }
    }
}
