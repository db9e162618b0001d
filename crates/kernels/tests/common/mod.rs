//! What the tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use sparamx_cpu::{Cpu, Isa};
use sparamx_format::{DenseBf16, DenseI4, DenseI8, Scales, SparseBf16, SparseI4, SparseI8};
use sparamx_kernels::Weight;
use sparamx_kernels::linear::WeightFormat;
use sparamx_kernels::linear::reference::Quantized;
use sparamx_testkit::{
    Density, Random, RowReport, activations, levels, round_bf16, to_f32, weights,
};

/// This CPU limited to each of `isas` that it reaches.
pub fn cpus(isas: &[Isa]) -> impl Iterator<Item = Cpu> {
    let cpu = Cpu::detect().unwrap();
    let here = isas.iter().filter(move |isa| **isa <= cpu.isa());
    here.map(move |isa| cpu.at_most(*isa))
}

/// Runs `test` on this CPU limited to each of `levels` and reports it as row `<operation>_<level>`.
///
/// # Panics
/// If `REQUIRE_ISA` asks for a level that this CPU lacks.
pub fn at_each_level(operation: &str, levels: &[Isa], test: impl Fn(Cpu)) {
    let cpu = Cpu::detect().unwrap();
    let mut report = RowReport::default();
    for &isa in levels {
        let name = format!("{operation}_{isa}");
        if isa <= cpu.isa() {
            test(cpu.at_most(isa));
            report.run(&name);
        } else {
            report.skip(&name, isa, &format!("this CPU reaches {}", cpu.isa()));
        }
    }
    report.finish();
}

/// The bit patterns, to compare also NaN and the sign of zero.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A weight of any format, with what it means.
pub struct TestWeight {
    pub weight: Weight,
    pub meaning: Meaning,
}

/// What an oracle needs to know of a weight.
pub enum Meaning {
    /// Row-major values.
    Float(Vec<f32>),
    /// Levels and scales.
    Quantized(Quantized),
}

impl TestWeight {
    /// Random weights of `density`; `group` is the number of columns that share a scale in formats with groups.
    pub fn new(
        format: WeightFormat,
        (n, k): (usize, usize),
        density: Density,
        group: Option<usize>,
        random: &mut Random,
    ) -> Self {
        let range = match format {
            WeightFormat::DenseBf16 | WeightFormat::SparseBf16 => {
                let w = weights(n, k, density, random);
                let weight = match format {
                    WeightFormat::DenseBf16 => {
                        Weight::DenseBf16(DenseBf16::from_rows(&w, n, k).unwrap())
                    }
                    _ => Weight::SparseBf16(SparseBf16::pack(&w, n, k).unwrap()),
                };
                return Self {
                    weight,
                    meaning: Meaning::Float(to_f32(&w)),
                };
            }
            WeightFormat::DenseI8 | WeightFormat::SparseI8 => (-127, 127),
            WeightFormat::DenseI4 => (-8, 7),
            WeightFormat::SparseI4 => (-8, 8),
        };
        Self::quantized(
            format,
            (n, k),
            levels(n, k, density, range, random),
            group,
            random,
        )
    }

    /// These levels with random scales.
    pub fn quantized(
        format: WeightFormat,
        (n, k): (usize, usize),
        levels: Vec<i8>,
        group: Option<usize>,
        random: &mut Random,
    ) -> Self {
        let grouped = match format {
            WeightFormat::DenseI4 | WeightFormat::SparseI4 => Some(group.unwrap_or(128)),
            // As an expanded int4 weight.
            WeightFormat::DenseI8 => group,
            _ => None,
        };
        let columns = grouped.unwrap_or(k);
        let scales = activations(n, k.div_ceil(columns), random);
        let (scales, packed) = match grouped {
            Some(group) => {
                let scales = round_bf16(&scales);
                let packed = Scales::group(&scales, n, k, group).unwrap();
                (scales, packed)
            }
            None => {
                let packed = Scales::row(&scales, n).unwrap();
                (scales, packed)
            }
        };
        let weight = match format {
            WeightFormat::DenseI8 => {
                Weight::DenseI8(DenseI8::from_rows(&levels, n, k, packed).unwrap())
            }
            WeightFormat::SparseI8 => {
                Weight::SparseI8(SparseI8::pack(&levels, n, k, packed).unwrap())
            }
            WeightFormat::DenseI4 => {
                Weight::DenseI4(DenseI4::from_rows(&levels, n, k, packed).unwrap())
            }
            _ => Weight::SparseI4(SparseI4::pack(&levels, n, k, packed).unwrap()),
        };
        Self {
            weight,
            meaning: Meaning::Quantized(Quantized {
                levels,
                scales,
                group: columns,
            }),
        }
    }
}
