//! Every row of the catalog against the oracle, on every edge of shape and density.

mod common;

use std::collections::HashSet;

use common::{Meaning, TestWeight, bits};
use sparamx_cpu::Cpu;
use sparamx_kernels::catalog::{KernelSpec, NumericClass, catalog};
use sparamx_kernels::linear::{Activation, WeightFormat, linear_with, reference};
use sparamx_kernels::tolerance::sum_tolerance;
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime};
use sparamx_testkit::{Canary, Density, Random, RowReport, activations, fast, round_bf16};

const DENSITIES: [Density; 6] = [
    Density::Zero,
    Density::One,
    Density::Random(0.5),
    Density::Random(0.1),
    Density::Full,
    Density::Mixed,
];

/// Everything of one multiplication.
#[derive(Clone, Copy)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    density: Density,
    /// Columns that share a scale, in formats that have such groups.
    group: Option<usize>,
    /// Elements between rows of x and of y.
    gap: usize,
    bias: bool,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case {
            m,
            n,
            k,
            density,
            group,
            gap,
            bias,
        } = self;
        write!(
            f,
            "m {m}, n {n}, k {k}, density {density:?}, group {group:?}, gap {gap}, bias {bias}"
        )
    }
}

/// The inputs of a case.
struct Inputs {
    x: Vec<f32>,
    stride: usize,
    layer: Linear,
    meaning: Meaning,
}

impl Inputs {
    fn new(case: &Case, format: WeightFormat) -> Self {
        let mut random = Random::new((case.m * 1_000_003 + case.n * 1009 + case.k) as u64);
        let stride = case.k + case.gap;
        let mut x = activations(case.m, stride, &mut random);
        // What lies between the rows must not be read as if it belonged to them.
        x.chunks_mut(stride)
            .for_each(|row| row[case.k..].fill(f32::NAN));
        let shape = (case.n, case.k);
        let w = TestWeight::new(format, shape, case.density, case.group, &mut random);
        let bias = case.bias.then(|| activations(1, case.n, &mut random));
        Self {
            x,
            stride,
            layer: Linear {
                weight: w.weight,
                bias,
            },
            meaning: w.meaning,
        }
    }

    fn rows(&self, case: &Case) -> Rows<'_> {
        Rows::with_stride(&self.x, case.m, case.k, self.stride).unwrap()
    }
}

fn compute(
    spec: &'static KernelSpec,
    rt: &Runtime,
    case: &Case,
    linear: &Linear,
    x: Rows<'_>,
) -> Canary {
    let mut out = Canary::new(case.m, case.n, case.gap);
    let y = RowsMut::with_stride(&mut out.data, case.m, case.n, out.stride).unwrap();
    linear_with(spec, rt, x, &mut [LinearJob { linear, y }]).unwrap();
    out
}

fn check(spec: &'static KernelSpec, rt: &Runtime, case: &Case) {
    let context = format!("{}: {case}", spec.name);
    let inputs = Inputs::new(case, spec.weight);
    let out = compute(spec, rt, case, &inputs.layer, inputs.rows(case));
    out.check(&context);
    let bias = inputs.layer.bias.as_deref();
    match &inputs.meaning {
        Meaning::Float(w) => check_float(spec, case, &inputs, w, &out, &context),
        Meaning::Quantized(w) => {
            let want = reference::linear_int(inputs.rows(case), w, case.n, bias);
            for (i, want) in want.chunks(case.n).enumerate() {
                assert_eq!(bits(out.row(i)), bits(want), "{context}: row {i}");
            }
        }
    }
}

/// Compares with the oracle; for kernels that round activations to bf16, with the oracle that rounds them too.
fn check_float(
    spec: &KernelSpec,
    case: &Case,
    inputs: &Inputs,
    w: &[f32],
    out: &Canary,
    context: &str,
) {
    let bias = inputs.layer.bias.as_deref();
    let x = match spec.activation {
        Activation::Bf16 => round_bf16(&inputs.x),
        Activation::F32 | Activation::I8 | Activation::I16 => inputs.x.clone(),
    };
    let x = Rows::with_stride(&x, case.m, case.k, inputs.stride).unwrap();
    let want = reference::linear(x, w, case.n, bias);
    let absolute: Vec<f32> = w.iter().map(|w| w.abs()).collect();
    for i in 0..case.m {
        let row: Vec<f32> = x.row(i).iter().map(|v| v.abs()).collect();
        let magnitude = reference::linear(Rows::new(&row, 1, case.k), &absolute, case.n, None);
        for (j, &got) in out.row(i).iter().enumerate() {
            let bias = bias.map_or(0.0, |b| f64::from(b[j].abs()));
            let (want, allowed) = (
                want[i * case.n + j],
                sum_tolerance(case.k, magnitude[j] + bias),
            );
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= allowed,
                "{context}: y[{i}][{j}] is {got} and not {want}, {error:e} off where {allowed:e} is allowed"
            );
        }
    }
}

/// Sizes one below, at and above the edges of tiles and blocks.
fn cases(spec: &KernelSpec) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |m, n, k, density, gap, bias| {
        cases.push(Case {
            m,
            n,
            k,
            density,
            group: [None, Some(32), Some(64), Some(128)][(m + n + k) % 4],
            gap,
            bias,
        })
    };
    let most = if fast() {
        spec.mr.min(17) + 1
    } else {
        spec.mr + 1
    };
    for m in (1..=most).chain([2 * spec.mr + 1]) {
        add(m, spec.nr + 1, 65, Density::Random(0.5), m % 3, m % 2 == 0);
    }
    // Several blocks of k, and more rows than a block of rows has.
    add(2 * spec.mr + 1, 17, 1100, Density::Mixed, 1, true);
    if !fast() {
        add(259, 17, 600, Density::Random(0.5), 0, true);
    }
    let ns: &[usize] = if fast() {
        &[1, 15, 17, 33]
    } else {
        &[1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 81]
    };
    let ks: &[usize] = if fast() {
        &[1, 33, 512]
    } else {
        &[1, 2, 31, 32, 33, 63, 64, 65, 96, 511, 512, 513, 1056]
    };
    for &n in ns {
        for &k in ks {
            add(
                1 + (n + k) % 3,
                n,
                k,
                Density::Mixed,
                (n + k) % 2 * 5,
                k % 2 == 1,
            );
        }
    }
    for density in DENSITIES {
        for m in [1, 2, spec.mr, spec.mr + 1] {
            add(m, 35, if fast() { 70 } else { 300 }, density, 3, true);
        }
    }
    cases
}

#[test]
fn every_row_agrees_with_the_oracle() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 2).unwrap();
    let mut report = RowReport::default();
    for spec in catalog() {
        match spec.on(&cpu) {
            Ok(spec) => {
                cases(spec).iter().for_each(|case| check(spec, &rt, case));
                report.run(spec.name);
            }
            Err(why) => report.skip(spec.name, spec.isa, &why.to_string()),
        }
    }
    report.finish();
}

fn runnable(cpu: &Cpu) -> impl Iterator<Item = &'static KernelSpec> {
    catalog().iter().filter(move |spec| spec.on(cpu).is_ok())
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let cpu = Cpu::detect().unwrap();
    let case = Case {
        m: 3,
        n: if fast() { 200 } else { 1000 },
        k: 160,
        density: Density::Random(0.5),
        group: Some(64),
        gap: 1,
        bias: true,
    };
    let one = Runtime::new(cpu, 1).unwrap();
    for spec in runnable(&cpu) {
        let inputs = Inputs::new(&case, spec.weight);
        let x = inputs.rows(&case);
        let want = compute(spec, &one, &case, &inputs.layer, x);
        for threads in [2, 3, 5] {
            let rt = Runtime::new(cpu, threads).unwrap();
            let got = compute(spec, &rt, &case, &inputs.layer, x);
            assert_eq!(
                bits(&got.data),
                bits(&want.data),
                "{} on {threads} threads",
                spec.name
            );
        }
    }
}

/// Also over M: a row has the same bits whatever rows are computed beside it.
#[test]
fn rows_of_one_class_give_the_same_bits() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 2).unwrap();
    let all = Case {
        m: if fast() { 19 } else { 67 },
        n: 50,
        k: 200,
        density: Density::Random(0.4),
        group: Some(64),
        gap: 0,
        bias: true,
    };
    let classes: HashSet<_> = runnable(&cpu).map(class_of).collect();
    for class in classes {
        let mut first: Option<(&str, Canary)> = None;
        for spec in runnable(&cpu).filter(|&spec| class_of(spec) == class) {
            let inputs = Inputs::new(&all, spec.weight);
            let together = compute(spec, &rt, &all, &inputs.layer, inputs.rows(&all));
            for i in 0..all.m {
                let alone = Case { m: 1, ..all };
                let x = Rows::new(inputs.rows(&all).row(i), 1, all.k);
                let row = compute(spec, &rt, &alone, &inputs.layer, x);
                assert_eq!(
                    bits(row.row(0)),
                    bits(together.row(i)),
                    "{}: row {i} alone",
                    spec.name
                );
            }
            match &first {
                None => first = Some((spec.name, together)),
                Some((name, want)) => assert_eq!(
                    bits(&together.data),
                    bits(&want.data),
                    "{} and {name}",
                    spec.name
                ),
            }
        }
    }
}

/// The largest sums there are, which an instruction that saturates or a sum of 16 bits would spoil.
#[test]
fn extreme_levels_do_not_overflow() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 1).unwrap();
    let (m, n, k) = (5, 18, if fast() { 320 } else { 4160 });
    let mut random = Random::new(3);
    for spec in runnable(&cpu).filter(|spec| spec.class == NumericClass::Exact) {
        let ends = match spec.weight {
            WeightFormat::DenseI8 | WeightFormat::SparseI8 => [-127, 127],
            WeightFormat::DenseI4 => [-8, 7],
            _ => [-8, 8],
        };
        for (w, sign) in [(0, 1.0), (1, 1.0), (0, -1.0), (1, -1.0)] {
            let shape = (n, k);
            let levels = vec![ends[w]; n * k];
            let w = TestWeight::quantized(spec.weight, shape, levels, None, &mut random);
            let x = vec![sign; m * k];
            let x = Rows::new(&x, m, k);
            let layer = Linear {
                weight: w.weight,
                bias: None,
            };
            let mut y = vec![0.0; m * n];
            let job = LinearJob {
                linear: &layer,
                y: RowsMut::new(&mut y, m, n),
            };
            linear_with(spec, &rt, x, &mut [job]).unwrap();
            let Meaning::Quantized(meaning) = &w.meaning else {
                panic!("{} is of class Exact and reads floats", spec.name)
            };
            let want = reference::linear_int(x, meaning, n, None);
            assert_eq!(bits(&y), bits(&want), "{}", spec.name);
        }
    }
}

/// Rows without a magnitude, or with one that is no number, end as f32 arithmetic would have them.
#[test]
fn odd_activations_spoil_their_own_row_only() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 1).unwrap();
    let (n, k) = (17, 70);
    for spec in runnable(&cpu).filter(|spec| spec.class == NumericClass::Exact) {
        let mut random = Random::new(5);
        let density = Density::Random(0.5);
        let w = TestWeight::new(spec.weight, (n, k), density, None, &mut random);
        let layer = Linear {
            weight: w.weight,
            bias: None,
        };
        let mut x = activations(6, k, &mut random);
        x[..k].fill(0.0);
        x[k + 3] = f32::NAN;
        x[2 * k + 3] = f32::INFINITY;
        x[3 * k..4 * k].fill(f32::MIN_POSITIVE / 8.0);
        let mut y = vec![0.0; 6 * n];
        let job = LinearJob {
            linear: &layer,
            y: RowsMut::new(&mut y, 6, n),
        };
        linear_with(spec, &rt, Rows::new(&x, 6, k), &mut [job]).unwrap();
        let row = |i: usize| &y[i * n..][..n];
        assert!(row(0).iter().all(|v| *v == 0.0), "{}", spec.name);
        assert!(row(1).iter().all(|v| v.is_nan()), "{}", spec.name);
        assert!(row(2).iter().all(|v| !v.is_finite()), "{}", spec.name);
        assert!(row(3).iter().all(|v| *v == 0.0), "{}", spec.name);
        let Meaning::Quantized(meaning) = &w.meaning else {
            panic!("{} is of class Exact and reads floats", spec.name)
        };
        let want = reference::linear_int(Rows::new(&x[4 * k..], 2, k), meaning, n, None);
        assert_eq!(bits(&y[4 * n..]), bits(&want), "{}", spec.name);
    }
}

/// Kernels that must agree to the bit, as they are given the same values: those of one class that read floats, and those of
/// the exact class that read one format.
fn class_of(spec: &KernelSpec) -> (NumericClass, Option<WeightFormat>) {
    let exact = spec.class == NumericClass::Exact;
    (spec.class, exact.then_some(spec.weight))
}

#[test]
fn several_jobs_in_one_call_are_as_each_alone() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 3).unwrap();
    let shapes = [
        (1200, WeightFormat::SparseBf16),
        (17, WeightFormat::DenseBf16),
        (640, WeightFormat::SparseI4),
        (333, WeightFormat::DenseI8),
        (640, WeightFormat::SparseBf16),
        (1, WeightFormat::DenseBf16),
    ];
    for m in [1, 5, 33] {
        let cases: Vec<_> = shapes
            .map(|(n, _)| Case {
                m,
                n,
                k: 96,
                density: Density::Random(0.5),
                group: Some(32),
                gap: 0,
                bias: n % 2 == 1,
            })
            .into();
        let x = Inputs::new(&cases[0], WeightFormat::DenseBf16);
        let layers: Vec<_> = cases
            .iter()
            .zip(shapes)
            .map(|(case, (_, format))| Inputs::new(case, format).layer)
            .collect();
        let mut together: Vec<_> = cases.iter().map(|case| vec![0f32; m * case.n]).collect();
        let mut jobs: Vec<_> = together
            .iter_mut()
            .zip(&cases)
            .zip(&layers)
            .map(|((y, case), linear)| LinearJob {
                linear,
                y: RowsMut::new(y, m, case.n),
            })
            .collect();
        sparamx_kernels::linear(&rt, x.rows(&cases[0]), &mut jobs).unwrap();
        for ((together, case), linear) in together.iter().zip(&cases).zip(&layers) {
            let mut alone = vec![0f32; m * case.n];
            let y = RowsMut::new(&mut alone, m, case.n);
            sparamx_kernels::linear(&rt, x.rows(&cases[0]), &mut [LinearJob { linear, y }])
                .unwrap();
            assert_eq!(bits(&alone), bits(together), "{case}");
        }
    }
}
