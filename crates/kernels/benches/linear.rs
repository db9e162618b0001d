//! Every linear kernel that this CPU can run, on weights that come from memory: `cargo bench -p sparamx-kernels --bench linear`.
//!
//! For each M and sparsity all kernels of a format take turns, round by round, beside a measurement of the read bandwidth;
//! medians. Each kernel's result is compared with the oracle first. Arguments: `m=1,8` and `sparsity=0.5` choose, any other words
//! select the kernels whose names contain one of them. `SPARAMX_ISA` limits the level.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Meaning, TestWeight};
use sparamx_cpu::{Cpu, topology};
use sparamx_kernels::bandwidth::Bandwidth;
use sparamx_kernels::catalog::{KernelSpec, catalog};
use sparamx_kernels::linear::{Activation, WeightFormat, linear_with, reference};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime};
use sparamx_testkit::{Density, Random, activations, round_bf16, sum_tolerance};

/// A projection of Llama-3-8B.
const N: usize = 4096;
const K: usize = 4096;
/// Bytes of distinct weights that a measurement goes through: many times the last-level cache.
const STREAM_BYTES: usize = 300 << 20;
const ROUNDS: usize = 7;
/// Outputs that are compared with the oracle.
const CHECKED: usize = 40;

struct Options {
    words: Vec<String>,
    ms: Vec<usize>,
    sparsities: Vec<f64>,
}

impl Options {
    fn from_args() -> Self {
        let mut options = Self {
            words: Vec::new(),
            ms: vec![1, 4, 16, 64],
            sparsities: vec![0.5, 0.8],
        };
        for arg in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
            if let Some(list) = arg.strip_prefix("m=") {
                options.ms = numbers(list);
            } else if let Some(list) = arg.strip_prefix("sparsity=") {
                options.sparsities = numbers(list);
            } else {
                options.words.push(arg);
            }
        }
        options
    }

    fn wants(&self, spec: &KernelSpec) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| spec.name.contains(w.as_str()))
    }
}

fn numbers<T: std::str::FromStr>(list: &str) -> Vec<T> {
    list.split(',')
        .map(|n| n.parse().unwrap_or_else(|_| panic!("'{n}' is no number")))
        .collect()
}

fn main() {
    let options = Options::from_args();
    let cpu = Cpu::detect().expect("a CPU");
    let rt = Runtime::new(cpu, topology::default_threads()).expect("threads");
    rt.pin_caller();
    let memory = Bandwidth::new(&rt, 512 << 20).expect("memory");
    println!(
        "{}, {} threads, N {N}, K {K}",
        cpu.report().brand,
        rt.threads()
    );
    println!(
        "{:<46} {:>8} {:>4} {:>10} {:>8} {:>9} {:>9}",
        "kernel", "sparsity", "M", "us/call", "GB/s", "of memory", "GFLOP/s"
    );
    for format in WeightFormat::ALL {
        let specs: Vec<_> = catalog()
            .iter()
            .filter(|spec| spec.on(&cpu).is_ok() && spec.weight == format && options.wants(spec))
            .collect();
        if specs.is_empty() {
            continue;
        }
        let dense = [0.0];
        let sparsities = if format.is_sparse() {
            &options.sparsities[..]
        } else {
            &dense
        };
        for &sparsity in sparsities {
            let layers = Layers::new(format, sparsity);
            for &m in &options.ms {
                compare(&rt, &memory, &specs, &layers, m, sparsity);
            }
        }
    }
}

/// Copies of a layer, and what the first one means.
struct Layers {
    copies: Vec<Linear>,
    meaning: Meaning,
}

impl Layers {
    fn new(format: WeightFormat, sparsity: f64) -> Self {
        let density = if sparsity == 0.0 {
            Density::Full
        } else {
            Density::Random(1.0 - sparsity)
        };
        let make = || TestWeight::new(format, (N, K), density, None, &mut Random::new(7));
        let first = make();
        let count = STREAM_BYTES.div_ceil(first.weight.bytes());
        let mut copies: Vec<_> = (1..count).map(|_| make().weight).collect();
        copies.insert(0, first.weight);
        let copies = copies.into_iter();
        Self {
            copies: copies.map(|weight| Linear { weight, bias: None }).collect(),
            meaning: first.meaning,
        }
    }
}

fn compare(
    rt: &Runtime,
    memory: &Bandwidth,
    specs: &[&'static KernelSpec],
    layers: &Layers,
    m: usize,
    sparsity: f64,
) {
    let x = activations(m, K, &mut Random::new(1));
    let x = Rows::new(&x, m, K);
    let mut y = vec![0.0; m * N];
    for spec in specs {
        check(spec, rt, layers, x, &mut y);
    }
    let mut seconds = vec![Vec::new(); specs.len()];
    let mut bandwidth = Vec::new();
    // Many rows take so long that fewer weights are streamed as well.
    let count = layers.copies.len().div_ceil(m.div_ceil(8)).max(2);
    for _ in 0..ROUNDS {
        bandwidth.push(memory.measure(rt));
        for (spec, seconds) in specs.iter().zip(&mut seconds) {
            let start = Instant::now();
            for linear in &layers.copies[..count] {
                let y = RowsMut::new(&mut y, m, N);
                linear_with(spec, rt, x, &mut [LinearJob { linear, y }]).expect("checked before");
            }
            seconds.push(start.elapsed().as_secs_f64() / count as f64);
        }
    }
    let bandwidth = median(&mut bandwidth);
    for (spec, seconds) in specs.iter().zip(&mut seconds) {
        let seconds = median(seconds);
        let rate = layers.copies[0].weight.bytes() as f64 / seconds * 1e-9;
        let flops = 2.0 * (m * N * K) as f64 / seconds * 1e-9;
        println!(
            "{:<46} {sparsity:>8} {m:>4} {:>10.0} {rate:>8.1} {:>9.2} {flops:>9.1}",
            spec.name,
            seconds * 1e6,
            rate / bandwidth
        );
    }
}

fn check(spec: &'static KernelSpec, rt: &Runtime, layers: &Layers, x: Rows<'_>, y: &mut [f32]) {
    let job = LinearJob {
        linear: &layers.copies[0],
        y: RowsMut::new(y, x.rows(), N),
    };
    linear_with(spec, rt, x, &mut [job]).expect("a runnable kernel");
    match &layers.meaning {
        Meaning::Float(w) => {
            let row = match spec.activation {
                Activation::Bf16 => round_bf16(x.row(0)),
                Activation::F32 | Activation::I8 | Activation::I16 => x.row(0).to_vec(),
            };
            let w = &w[..CHECKED * K];
            let want = reference::linear(Rows::new(&row, 1, K), w, CHECKED, None);
            for (j, want) in want.iter().enumerate() {
                let pairs = row.iter().zip(&w[j * K..]);
                let magnitude: f64 = pairs.map(|(a, b)| f64::from((a * b).abs())).sum();
                let error = (f64::from(y[j]) - want).abs();
                let name = spec.name;
                assert!(
                    error <= sum_tolerance(K, magnitude),
                    "{name}: y[0][{j}] is {} and not {want}",
                    y[j]
                );
            }
        }
        Meaning::Quantized(w) => {
            let mut some = w.clone();
            some.levels.truncate(CHECKED * K);
            some.scales.truncate(CHECKED * K.div_ceil(w.group));
            let x = Rows::new(x.row(0), 1, K);
            let want = reference::linear_int(x, &some, CHECKED, None);
            assert_eq!(y[..CHECKED], want, "{}", spec.name);
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
