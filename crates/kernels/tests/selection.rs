//! Which kernel is chosen on which CPU: runs anywhere.

use sparamx_cpu::Features;
use sparamx_kernels::KernelError;
use sparamx_kernels::catalog::{by_name, catalog, select, select_in_one_class};
use sparamx_kernels::linear::WeightFormat::{
    self, DenseBf16, DenseI4, DenseI8, SparseBf16, SparseI4, SparseI8,
};

const SPR: Features = Features::AMX_INT8.union(Features::AVX512_VNNI);

#[test]
fn each_cpu_gets_its_kernel() {
    #[rustfmt::skip]
    let table: &[(&str, Features, WeightFormat, usize, &str)] = &[
        ("any", Features::NONE, DenseBf16, 1, "linear_f32_bf16_f32_1x16_portable"),
        ("any", Features::NONE, SparseBf16, 500, "linear_f32_bmbf16_f32_1x16_portable"),
        ("Zen 3", Features::AVX2, DenseBf16, 1, "linear_f32_bf16_f32_3x16_avx2"),
        ("Zen 3", Features::AVX2, SparseBf16, 2, "linear_f32_bmbf16_f32_3x16_avx2"),
        ("Zen 3", Features::AVX2, SparseBf16, 3, "linear_f32_bmbf16_f32_3x16_avx2"),
        ("Zen 3", Features::AVX2, DenseI8, 1, "linear_i8_i8_i32_6x16_avx2"),
        ("Zen 3", Features::AVX2, SparseI8, 512, "linear_i8_bmi8_i32_6x16_avx2"),
        ("Zen 3", Features::AVX2, DenseI4, 16, "linear_i8_i4_i32_4x16_avx2"),
        ("Zen 3", Features::AVX2, SparseI4, 1, "linear_i8_bmi4_i32_4x16_avx2"),
        ("Ice Lake", Features::AVX512, SparseBf16, 1, "linear_f32_bmbf16_f32_8x16_avx512"),
        ("Ice Lake", Features::AVX512, SparseBf16, 16, "linear_f32_bmbf16_f32_8x16_panel_avx512"),
        ("Zen 4", Features::AVX512_BF16, DenseBf16, 100, "linear_bf16_bf16_f32_8x16_avx512bf16"),
        ("Zen 4", Features::AVX512_BF16, SparseBf16, 15, "linear_bf16_bmbf16_f32_8x16_avx512bf16"),
        ("Zen 4", Features::AVX512_BF16, SparseBf16, 16, "linear_bf16_bmbf16_f32_8x16_panel_avx512bf16"),
        ("Sapphire Rapids", Features::AMX_BF16, SparseBf16, 1, "linear_bf16_bmbf16_f32_8x16_avx512bf16"),
        ("Sapphire Rapids", Features::AMX_BF16, SparseBf16, 5, "linear_bf16_bmbf16_f32_32x32_amx"),
        ("Sapphire Rapids", Features::AMX_BF16, SparseBf16, 33, "linear_bf16_bmbf16_f32_32x32_panel_amx"),
        ("Sapphire Rapids", Features::AMX_BF16, DenseBf16, 512, "linear_bf16_bf16_f32_32x32_amx"),
        ("any", Features::NONE, SparseI8, 1, "linear_i8_bmi8_i32_1x16_portable"),
        ("any", Features::NONE, DenseI4, 9, "linear_i8_i4_i32_1x16_portable"),
        ("Zen 4", Features::AVX512_VNNI, DenseI8, 512, "linear_i8_i8_i32_8x16_avx512vnni"),
        ("Zen 4", Features::AVX512_VNNI, SparseI8, 1, "linear_i8_bmi8_i32_8x16_avx512vnni"),
        ("Zen 4", Features::AVX512_VNNI, SparseI8, 100, "linear_i8_bmi8_i32_8x16_panel_avx512vnni"),
        ("Zen 4", Features::AVX512_VNNI, SparseI4, 8, "linear_i8_bmi4_i32_8x16_avx512vnni"),
        ("Zen 4", Features::AVX512_VNNI, SparseI4, 9, "linear_i8_bmi4_i32_8x16_panel_avx512vnni"),
        ("Sapphire Rapids", SPR, SparseI4, 4, "linear_i8_bmi4_i32_8x16_avx512vnni"),
        ("Sapphire Rapids", SPR, SparseI8, 5, "linear_i8_bmi8_i32_32x32_amx"),
        ("Sapphire Rapids", SPR, SparseI8, 33, "linear_i8_bmi8_i32_32x32_panel_amx"),
        ("Sapphire Rapids", SPR, DenseI4, 33, "linear_i8_i4_i32_32x32_amx"),
    ];
    for &(cpu, features, weight, m, want) in table {
        if by_name(want).is_ok() || cfg!(target_arch = "x86_64") {
            assert_eq!(
                select(features, weight, m).name,
                want,
                "{cpu}, {weight}, m {m}"
            );
        }
    }
}

#[test]
fn names_are_unique_and_every_row_is_chosen_somewhere() {
    let levels = [
        Features::NONE,
        Features::AVX2,
        Features::AVX512,
        Features::AVX512_BF16,
        Features::AMX_BF16,
        Features::AVX512_VNNI,
        SPR,
    ];
    for spec in catalog() {
        assert_eq!(
            catalog()
                .iter()
                .filter(|other| other.name == spec.name)
                .count(),
            1,
            "{}",
            spec.name
        );
        let chosen = levels
            .iter()
            .any(|&level| (1..200).any(|m| select(level, spec.weight, m).name == spec.name));
        assert!(chosen, "{} is never chosen: delete it", spec.name);
    }
}

#[test]
fn an_unknown_name_is_an_error() {
    assert_eq!(
        by_name("linear_fast").unwrap_err(),
        KernelError::UnknownKernel {
            name: "linear_fast".into()
        }
    );
}

#[test]
fn one_class_serves_all_numbers_of_rows_by_the_fastest_kernel_it_has() {
    for features in [
        Features::NONE,
        Features::AVX2,
        Features::AVX512,
        Features::AVX512_BF16,
        Features::AVX512_VNNI,
        SPR,
    ] {
        for weight in [DenseBf16, SparseBf16, DenseI8, SparseI8, DenseI4, SparseI4] {
            let many = select(features, weight, usize::MAX);
            for m in 1..200 {
                let kernel = select_in_one_class(features, weight, m);
                assert_eq!(kernel.class, many.class, "{weight}, m {m}");
                let best = select(features, weight, m);
                assert!(
                    kernel.name == best.name || best.class != many.class,
                    "{weight}, m {m}"
                );
            }
        }
    }
    let single = select_in_one_class(SPR.union(Features::AMX_BF16), SparseBf16, 1);
    assert!(single.name == "linear_bf16_bmbf16_f32_32x32_amx" || !cfg!(target_arch = "x86_64"));
}
