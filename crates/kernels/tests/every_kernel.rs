//! Every row of the catalog against the oracle, on every edge of shape and density.

use sparamx_cpu::Cpu;
use sparamx_format::{DenseBf16, SparseBf16};
use sparamx_kernels::catalog::{KernelSpec, NumericClass, catalog};
use sparamx_kernels::linear::{Activation, WeightFormat, linear_with, reference};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, Weight};
use sparamx_testkit::{
    Canary, Density, Random, RowReport, activations, fast, round_bf16, sum_tolerance, to_f32,
    weights,
};

const DENSITIES: [Density; 6] = [
    Density::Zero,
    Density::One,
    Density::Random(0.5),
    Density::Random(0.1),
    Density::Full,
    Density::Mixed,
];

/// Everything of one multiplication.
struct Case {
    m: usize,
    n: usize,
    k: usize,
    density: Density,
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
            gap,
            bias,
        } = self;
        write!(
            f,
            "m {m}, n {n}, k {k}, density {density:?}, gap {gap}, bias {bias}"
        )
    }
}

/// The inputs of a case.
struct Inputs {
    x: Vec<f32>,
    stride: usize,
    w: Vec<u16>,
    bias: Option<Vec<f32>>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut random = Random::new((case.m * 1_000_003 + case.n * 1009 + case.k) as u64);
        let stride = case.k + case.gap;
        let mut x = activations(case.m, stride, &mut random);
        // What lies between the rows must not be read as if it belonged to them.
        x.chunks_mut(stride)
            .for_each(|row| row[case.k..].fill(f32::NAN));
        let w = weights(case.n, case.k, case.density, &mut random);
        let bias = case.bias.then(|| activations(1, case.n, &mut random));
        Self { x, stride, w, bias }
    }

    fn layer(&self, case: &Case, format: WeightFormat) -> Linear {
        let weight = match format {
            WeightFormat::DenseBf16 => {
                Weight::DenseBf16(DenseBf16::from_rows(&self.w, case.n, case.k).unwrap())
            }
            WeightFormat::SparseBf16 => {
                Weight::SparseBf16(SparseBf16::pack(&self.w, case.n, case.k).unwrap())
            }
        };
        Linear {
            weight,
            bias: self.bias.clone(),
        }
    }

    fn rows(&self, case: &Case) -> Rows<'_> {
        Rows::with_stride(&self.x, case.m, case.k, self.stride).unwrap()
    }
}

fn compute(spec: &'static KernelSpec, rt: &Runtime, case: &Case, inputs: &Inputs) -> Canary {
    let layer = inputs.layer(case, spec.weight);
    let mut out = Canary::new(case.m, case.n, case.gap);
    let y = RowsMut::with_stride(&mut out.data, case.m, case.n, out.stride).unwrap();
    linear_with(
        spec,
        rt,
        inputs.rows(case),
        &mut [LinearJob { linear: &layer, y }],
    )
    .unwrap();
    out
}

/// Compares with the oracle; for kernels that round activations to bf16, with the oracle that rounds them too.
fn check(spec: &'static KernelSpec, rt: &Runtime, case: &Case) {
    let context = format!("{}: {case}", spec.name);
    let inputs = Inputs::new(case);
    let out = compute(spec, rt, case, &inputs);
    out.check(&context);
    let x = match spec.activation {
        Activation::F32 => inputs.x.clone(),
        Activation::Bf16 => round_bf16(&inputs.x),
    };
    let x = Rows::with_stride(&x, case.m, case.k, inputs.stride).unwrap();
    let w = to_f32(&inputs.w);
    let want = reference::linear(x, &w, case.n, inputs.bias.as_deref());
    let absolute: Vec<f32> = w.iter().map(|w| w.abs()).collect();
    for i in 0..case.m {
        let row: Vec<f32> = x.row(i).iter().map(|v| v.abs()).collect();
        let magnitude = reference::linear(Rows::new(&row, 1, case.k), &absolute, case.n, None);
        for (j, &got) in out.row(i).iter().enumerate() {
            let bias = inputs.bias.as_ref().map_or(0.0, |b| f64::from(b[j].abs()));
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
        gap: 1,
        bias: true,
    };
    let inputs = Inputs::new(&case);
    let one = Runtime::new(cpu, 1).unwrap();
    for spec in runnable(&cpu) {
        let want = compute(spec, &one, &case, &inputs);
        for threads in [2, 3, 5] {
            let got = compute(spec, &Runtime::new(cpu, threads).unwrap(), &case, &inputs);
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
        gap: 0,
        bias: true,
    };
    let inputs = Inputs::new(&all);
    for class in [
        NumericClass::F32,
        NumericClass::F32Fma,
        NumericClass::Bf16Dot,
        NumericClass::Bf16Tile,
    ] {
        let mut first: Option<(&str, Canary)> = None;
        for spec in runnable(&cpu).filter(|spec| spec.class == class) {
            let together = compute(spec, &rt, &all, &inputs);
            for i in 0..all.m {
                let alone = Case { m: 1, ..all };
                let row = Inputs {
                    x: inputs.rows(&all).row(i).to_vec(),
                    stride: all.k,
                    w: inputs.w.clone(),
                    bias: inputs.bias.clone(),
                };
                let row = compute(spec, &rt, &alone, &row);
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

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn several_jobs_in_one_call_are_as_each_alone() {
    let cpu = Cpu::detect().unwrap();
    let rt = Runtime::new(cpu, 3).unwrap();
    let shapes = [(1200, 0), (17, 1), (640, 0), (1, 1)];
    for m in [1, 5, 33] {
        let cases: Vec<_> = shapes
            .map(|(n, _)| Case {
                m,
                n,
                k: 96,
                density: Density::Random(0.5),
                gap: 0,
                bias: n % 2 == 1,
            })
            .into();
        let x = Inputs::new(&cases[0]);
        let layers: Vec<_> = cases
            .iter()
            .zip(shapes)
            .map(|(case, (_, dense))| {
                Inputs::new(case).layer(
                    case,
                    if dense == 1 {
                        WeightFormat::DenseBf16
                    } else {
                        WeightFormat::SparseBf16
                    },
                )
            })
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
