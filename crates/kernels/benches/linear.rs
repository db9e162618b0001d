//! Every linear kernel that this CPU can run, on weights that come from memory: `cargo bench -p sparamx-kernels`.
//!
//! For each M and sparsity all kernels take turns, round by round, beside a measurement of the read bandwidth; medians. Each kernel's
//! result is compared with the oracle first. Arguments: any words select the kernels whose names contain one of them.

use std::time::Instant;

use sparamx_cpu::{Cpu, topology};
use sparamx_format::{DenseBf16, SparseBf16};
use sparamx_kernels::bandwidth::Bandwidth;
use sparamx_kernels::catalog::{KernelSpec, catalog};
use sparamx_kernels::linear::{Activation, WeightFormat, linear_with, reference};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, Weight};
use sparamx_testkit::{Density, Random, activations, round_bf16, sum_tolerance, to_f32, weights};

/// A projection of Llama-3-8B.
const N: usize = 4096;
const K: usize = 4096;
/// Bytes of distinct weights in a round, dense: many times the last-level cache.
const STREAM_BYTES: usize = 384 << 20;
const ROUNDS: usize = 7;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let cpu = Cpu::detect().expect("a CPU");
    let rt = Runtime::new(cpu, topology::default_threads()).expect("threads");
    rt.pin_caller();
    let memory = Bandwidth::new(&rt, 512 << 20);
    println!(
        "{}, {} threads, N {N}, K {K}",
        cpu.report().brand,
        rt.threads()
    );
    println!(
        "{:<46} {:>8} {:>4} {:>10} {:>8} {:>9} {:>9}",
        "kernel", "sparsity", "M", "us/call", "GB/s", "of memory", "GFLOP/s"
    );
    let specs: Vec<_> = catalog()
        .iter()
        .filter(|spec| {
            spec.on(&cpu).is_ok()
                && (words.is_empty() || words.iter().any(|w| spec.name.contains(w)))
        })
        .collect();
    let copies = STREAM_BYTES / (N * K * 2);
    let dense = layers(WeightFormat::DenseBf16, 0.0, copies);
    for sparsity in [0.5, 0.8] {
        let sparse = layers(WeightFormat::SparseBf16, sparsity, copies);
        for m in [1, 4, 16, 64] {
            let sets: Vec<_> = specs
                .iter()
                .map(|spec| {
                    (
                        *spec,
                        if spec.weight == WeightFormat::DenseBf16 {
                            &dense
                        } else {
                            &sparse
                        },
                    )
                })
                .collect();
            compare(&rt, &memory, &sets, m, sparsity);
        }
    }
}

fn layers(format: WeightFormat, sparsity: f64, copies: usize) -> Vec<(Vec<u16>, Linear)> {
    (0..copies)
        .map(|i| {
            let density = if sparsity == 0.0 {
                Density::Full
            } else {
                Density::Random(1.0 - sparsity)
            };
            // One pattern serves all copies, moved by some rows: to draw them all would take longer than to measure them.
            let mut w = weights(N, K, density, &mut Random::new(7));
            w.rotate_left(i * K);
            let weight = match format {
                WeightFormat::DenseBf16 => {
                    Weight::DenseBf16(DenseBf16::from_rows(&w, N, K).expect("finite"))
                }
                WeightFormat::SparseBf16 => {
                    Weight::SparseBf16(SparseBf16::pack(&w, N, K).expect("finite"))
                }
            };
            // Only the first copy is compared with the oracle.
            w.truncate(if i == 0 { w.len() } else { 0 });
            (w, Linear { weight, bias: None })
        })
        .collect()
}

type Set<'a> = (&'static KernelSpec, &'a Vec<(Vec<u16>, Linear)>);

fn compare(rt: &Runtime, memory: &Bandwidth, sets: &[Set<'_>], m: usize, sparsity: f64) {
    let x = activations(m, K, &mut Random::new(1));
    let x = Rows::new(&x, m, K);
    let mut y = vec![0.0; m * N];
    for (spec, layers) in sets {
        check(spec, rt, &layers[0], x, &mut y);
    }
    let mut seconds = vec![Vec::new(); sets.len()];
    let mut bandwidth = Vec::new();
    for _ in 0..ROUNDS {
        bandwidth.push(memory.measure(rt));
        for ((spec, layers), seconds) in sets.iter().zip(&mut seconds) {
            let start = Instant::now();
            for (_, linear) in *layers {
                let y = RowsMut::new(&mut y, m, N);
                linear_with(spec, rt, x, &mut [LinearJob { linear, y }]).expect("checked before");
            }
            seconds.push(start.elapsed().as_secs_f64() / layers.len() as f64);
        }
    }
    let bandwidth = median(&mut bandwidth);
    for ((spec, layers), seconds) in sets.iter().zip(&mut seconds) {
        let seconds = median(seconds);
        let rate = layers[0].1.weight.bytes() as f64 / seconds * 1e-9;
        let flops = 2.0 * (m * N * K) as f64 / seconds * 1e-9;
        let sparsity = if spec.weight == WeightFormat::DenseBf16 {
            0.0
        } else {
            sparsity
        };
        println!(
            "{:<46} {sparsity:>8} {m:>4} {:>10.0} {rate:>8.1} {:>9.2} {flops:>9.1}",
            spec.name,
            seconds * 1e6,
            rate / bandwidth
        );
    }
}

fn check(
    spec: &'static KernelSpec,
    rt: &Runtime,
    layer: &(Vec<u16>, Linear),
    x: Rows<'_>,
    y: &mut [f32],
) {
    const OUTPUTS: usize = 40;
    let (w, linear) = layer;
    linear_with(
        spec,
        rt,
        x,
        &mut [LinearJob {
            linear,
            y: RowsMut::new(y, x.rows(), N),
        }],
    )
    .expect("a runnable kernel");
    let row = match spec.activation {
        Activation::F32 => x.row(0).to_vec(),
        Activation::Bf16 => round_bf16(x.row(0)),
    };
    let w = to_f32(&w[..OUTPUTS * K]);
    let want = reference::linear(Rows::new(&row, 1, K), &w, OUTPUTS, None);
    for (j, want) in want.iter().enumerate() {
        let magnitude: f64 = row
            .iter()
            .zip(&w[j * K..])
            .map(|(a, b)| f64::from((a * b).abs()))
            .sum();
        let error = (f64::from(y[j]) - want).abs();
        assert!(
            error <= sum_tolerance(K, magnitude),
            "{}: y[0][{j}] is {} and not {want}",
            spec.name,
            y[j]
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
