//! The exported attribute macros, used from another crate as the kernels use them.
//!
//! The bodies call one safe intrinsic of each extension: they compile only if the macro enables all of them.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use sparamx_cpu::{Cpu, Features};

sparamx_cpu::avx2_fns!(
    fn with_avx2(x: u32) -> u32 {
        let twice = _mm256_add_epi32(_mm256_set1_epi32(x as i32), _mm256_set1_epi32(x as i32));
        let sum = _mm256_fmadd_ps(
            _mm256_setzero_ps(),
            _mm256_setzero_ps(),
            _mm256_cvtepi32_ps(twice),
        );
        let half = _mm256_cvtps_ph::<0>(sum);
        let back = _mm256_cvtss_f32(_mm256_cvtph_ps(half)) as u32;
        _lzcnt_u32(1) + _blsr_u32(2) + _pext_u32(back, !0) + _popcnt32(1) as u32
    }

    fn second_function() -> u32 {
        with_avx2(10)
    }
);

sparamx_cpu::avx512_fns!(
    fn with_avx512(x: u32) -> u32 {
        let bytes = _mm512_maskz_expand_epi8(1, _mm512_set1_epi8(x as i8));
        let bytes = _mm512_permutexvar_epi8(_mm512_setzero_si512(), bytes);
        let words = _mm512_and_si512(bytes, _mm512_set1_epi16(1));
        let long = _mm512_conflict_epi32(_mm512_mullo_epi64(words, words));
        let short = _mm256_mask_add_epi32(
            _mm256_setzero_si256(),
            1,
            _mm256_set1_epi32(40),
            _mm256_setzero_si256(),
        );
        _mm256_extract_epi32::<0>(short) as u32
            + _mm512_cvtsi512_si32(long) as u32
            + second_function()
            - 51
            + x
    }
);

sparamx_cpu::avx512_bf16_fns!(
    fn with_bf16() -> f32 {
        let one = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0));
        with_avx512(0);
        _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), one, one))
    }
);

sparamx_cpu::avx512_vnni_fns!(
    fn with_vnni() -> i32 {
        let two = _mm512_set1_epi8(2);
        with_avx512(0);
        _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), two, two))
    }
);

#[test]
fn functions_run_where_detection_allows_them() {
    let cpu = Cpu::detect().expect("a level that this machine has");
    let features = cpu.features();
    println!("features: {features}");
    if cpu.avx2().is_some() {
        // SAFETY: the token.
        assert_eq!(unsafe { second_function() }, 31 + 20 + 1);
    }
    if cpu.avx512().is_some() {
        // SAFETY: the token.
        assert_eq!(unsafe { with_avx512(2) }, 40 + 1 + 2);
    }
    if features.contains(Features::AVX512_BF16) {
        // SAFETY: the features come from detection.
        assert_eq!(unsafe { with_bf16() }, 32.0);
    }
    if features.contains(Features::AVX512_VNNI) {
        // SAFETY: the features come from detection.
        assert_eq!(unsafe { with_vnni() }, 16 * 4 * 4);
    }
}

#[test]
fn detection_agrees_with_the_standard_library() {
    let cpu = Cpu::detect().expect("a level that this machine has");
    let flags = &cpu.report().flags;
    macro_rules! compare {
        ($($name:tt),+) => {
            // The standard library also asks whether the operating system saves the registers.
            $( assert!(!std::is_x86_feature_detected!($name) || flags.contains(&$name), "{} is not found", $name); )+
            let found = [$(std::is_x86_feature_detected!($name)),+];
            if cpu.avx512().is_some() {
                assert_eq!(found, [$(flags.contains(&$name)),+]);
            }
        };
    }
    compare!(
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "lzcnt",
        "popcnt",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512cd",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512bf16",
        "avx512vnni",
        "gfni",
        "avx512ifma",
        "avx512bitalg",
        "avx512vpopcntdq",
        "avx512fp16",
        "avxvnni"
    );
}
