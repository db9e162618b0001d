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

static CATALOG: &[KernelSpec] = &[
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bf16_f32_32x32_amx",
        isa: Isa::Amx,
        features: Features::AMX_BF16,
        weight: WeightFormat::DenseBf16,
        activation: Activation::Bf16,
        mr: 32,
        nr: 32,
        best_m: AMX_MANY,
        reason: DENSE,
        class: NumericClass::Bf16Tile,
        scratch_bytes: amx::bf16::group_bytes,
        run: amx::bf16::dense_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_32x32_amx",
        isa: Isa::Amx,
        features: Features::AMX_BF16,
        weight: WeightFormat::SparseBf16,
        activation: Activation::Bf16,
        mr: 32,
        nr: 32,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        class: NumericClass::Bf16Tile,
        scratch_bytes: amx::bf16::group_bytes,
        run: amx::bf16::sparse_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_32x32_panel_amx",
        isa: Isa::Amx,
        features: Features::AMX_BF16,
        weight: WeightFormat::SparseBf16,
        activation: Activation::Bf16,
        mr: 32,
        nr: 32,
        best_m: AMX_PANEL,
        reason: PANEL,
        class: NumericClass::Bf16Tile,
        scratch_bytes: amx::bf16::panel_pair_bytes,
        run: amx::bf16::sparse_panel_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bf16_f32_8x16_avx512bf16",
        isa: Isa::Avx512,
        features: Features::AVX512_BF16,
        weight: WeightFormat::DenseBf16,
        activation: Activation::Bf16,
        mr: 8,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Bf16Dot,
        scratch_bytes: no_bytes,
        run: avx512::bf16::dense_bf16_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_8x16_avx512bf16",
        isa: Isa::Avx512,
        features: Features::AVX512_BF16,
        weight: WeightFormat::SparseBf16,
        activation: Activation::Bf16,
        mr: 8,
        nr: 16,
        best_m: AVX512_DIRECT_BF16,
        reason: DIRECT,
        class: NumericClass::Bf16Dot,
        scratch_bytes: no_bytes,
        run: avx512::bf16::sparse_bf16_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_bf16_bmbf16_f32_8x16_panel_avx512bf16",
        isa: Isa::Avx512,
        features: Features::AVX512_BF16,
        weight: WeightFormat::SparseBf16,
        activation: Activation::Bf16,
        mr: 8,
        nr: 16,
        best_m: AVX512_PANEL_BF16,
        reason: PANEL,
        class: NumericClass::Bf16Dot,
        scratch_bytes: panel_bytes,
        run: avx512::bf16::sparse_panel_bf16_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bf16_f32_8x16_avx512",
        isa: Isa::Avx512,
        features: Features::AVX512,
        weight: WeightFormat::DenseBf16,
        activation: Activation::F32,
        mr: 8,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::F32Fma,
        scratch_bytes: no_bytes,
        run: avx512::bf16::dense_f32_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_8x16_avx512",
        isa: Isa::Avx512,
        features: Features::AVX512,
        weight: WeightFormat::SparseBf16,
        activation: Activation::F32,
        mr: 8,
        nr: 16,
        best_m: AVX512_DIRECT_BF16,
        reason: DIRECT,
        class: NumericClass::F32Fma,
        scratch_bytes: no_bytes,
        run: avx512::bf16::sparse_f32_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_8x16_panel_avx512",
        isa: Isa::Avx512,
        features: Features::AVX512,
        weight: WeightFormat::SparseBf16,
        activation: Activation::F32,
        mr: 8,
        nr: 16,
        best_m: AVX512_PANEL_BF16,
        reason: PANEL,
        class: NumericClass::F32Fma,
        scratch_bytes: panel_bytes,
        run: avx512::bf16::sparse_panel_f32_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bf16_f32_3x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::DenseBf16,
        activation: Activation::F32,
        mr: 3,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::F32Fma,
        scratch_bytes: avx2::bf16::block_bytes,
        run: avx2::bf16::dense_3x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_f32_bmbf16_f32_3x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::SparseBf16,
        activation: Activation::F32,
        mr: 3,
        nr: 16,
        best_m: ANY,
        reason: BLOCK,
        class: NumericClass::F32Fma,
        scratch_bytes: avx2::bf16::block_bytes,
        run: avx2::bf16::sparse_3x16,
    },
    KernelSpec {
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
    },
    KernelSpec {
        name: "linear_f32_bmbf16_f32_1x16_portable",
        isa: Isa::Portable,
        features: Features::NONE,
        weight: WeightFormat::SparseBf16,
        activation: Activation::F32,
        mr: 1,
        nr: 16,
        best_m: ANY,
        reason: PANEL,
        class: NumericClass::F32,
        scratch_bytes: panel_bytes,
        run: portable::sparse_1x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i8_i32_32x32_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::DenseI8,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_MANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::batch_bytes,
        run: amx::int8::dense_i8_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_32x32_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::SparseI8,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::batch_bytes,
        run: amx::int8::sparse_i8_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_32x32_panel_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::SparseI8,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_PANEL,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::panel_pair_bytes,
        run: amx::int8::sparse_panel_i8_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i4_i32_32x32_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::DenseI4,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_MANY,
        reason: TILE,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::batch_bytes,
        run: amx::int4::dense_i4_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_32x32_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_ONE_BLOCK,
        reason: TILE,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::batch_bytes,
        run: amx::int4::sparse_i4_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_32x32_panel_amx",
        isa: Isa::Amx,
        features: AMX_INT8,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 32,
        nr: 32,
        best_m: AMX_PANEL,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: amx::int::panel_pair_bytes,
        run: amx::int4::sparse_panel_i4_32x32,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i8_i32_8x16_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::DenseI8,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: no_bytes,
        run: avx512::int8::dense_i8_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_8x16_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::SparseI8,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: AVX512_DIRECT_I8,
        reason: DIRECT,
        class: NumericClass::Exact,
        scratch_bytes: no_bytes,
        run: avx512::int8::sparse_i8_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_8x16_panel_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::SparseI8,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: AVX512_PANEL_I8,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: int_panel_bytes,
        run: avx512::int8::sparse_panel_i8_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i4_i32_8x16_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::DenseI4,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: no_bytes,
        run: avx512::int4::dense_i4_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_8x16_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: AVX512_DIRECT_I4,
        reason: DIRECT,
        class: NumericClass::Exact,
        scratch_bytes: no_bytes,
        run: avx512::int4::sparse_i4_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_8x16_panel_avx512vnni",
        isa: Isa::Avx512,
        features: Features::AVX512_VNNI,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 8,
        nr: 16,
        best_m: AVX512_PANEL_I4,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: int_panel_bytes,
        run: avx512::int4::sparse_panel_i4_8x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i8_i32_6x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::DenseI8,
        activation: Activation::I16,
        mr: 3,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: avx2::int8::block_bytes,
        run: avx2::int8::dense_6x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi8_i32_6x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::SparseI8,
        activation: Activation::I16,
        mr: 3,
        nr: 16,
        best_m: ANY,
        reason: BLOCK,
        class: NumericClass::Exact,
        scratch_bytes: avx2::int8::block_bytes,
        run: avx2::int8::sparse_6x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_i4_i32_4x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::DenseI4,
        activation: Activation::I8,
        mr: 4,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: avx2::int4::block_bytes,
        run: avx2::int4::dense_4x16,
    },
    #[cfg(target_arch = "x86_64")]
    KernelSpec {
        name: "linear_i8_bmi4_i32_4x16_avx2",
        isa: Isa::Avx2,
        features: Features::AVX2,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 4,
        nr: 16,
        best_m: ANY,
        reason: BLOCK,
        class: NumericClass::Exact,
        scratch_bytes: avx2::int4::block_bytes,
        run: avx2::int4::sparse_4x16,
    },
    KernelSpec {
        name: "linear_i8_i8_i32_1x16_portable",
        isa: Isa::Portable,
        features: Features::NONE,
        weight: WeightFormat::DenseI8,
        activation: Activation::I8,
        mr: 1,
        nr: 16,
        best_m: ANY,
        reason: DENSE,
        class: NumericClass::Exact,
        scratch_bytes: no_bytes,
        run: portable::dense_i8_1x16,
    },
    KernelSpec {
        name: "linear_i8_bmi8_i32_1x16_portable",
        isa: Isa::Portable,
        features: Features::NONE,
        weight: WeightFormat::SparseI8,
        activation: Activation::I8,
        mr: 1,
        nr: 16,
        best_m: ANY,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: int_panel_bytes,
        run: portable::sparse_i8_1x16,
    },
    KernelSpec {
        name: "linear_i8_i4_i32_1x16_portable",
        isa: Isa::Portable,
        features: Features::NONE,
        weight: WeightFormat::DenseI4,
        activation: Activation::I8,
        mr: 1,
        nr: 16,
        best_m: ANY,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: int_panel_bytes,
        run: portable::dense_i4_1x16,
    },
    KernelSpec {
        name: "linear_i8_bmi4_i32_1x16_portable",
        isa: Isa::Portable,
        features: Features::NONE,
        weight: WeightFormat::SparseI4,
        activation: Activation::I8,
        mr: 1,
        nr: 16,
        best_m: ANY,
        reason: PANEL,
        class: NumericClass::Exact,
        scratch_bytes: int_panel_bytes,
        run: portable::sparse_i4_1x16,
    },
];
