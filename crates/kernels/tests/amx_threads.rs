//! Tile state over context switches: more threads than processors, all in AMX kernels at once.

mod common;

use common::TestWeight;
use sparamx_cpu::{Cpu, Isa};
use sparamx_kernels::catalog::{KernelSpec, catalog};
use sparamx_kernels::linear::linear_with;
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime};
use sparamx_testkit::{Density, Random, RowReport, activations, fast};

const THREADS: usize = 6;
const M: usize = 40;
const N: usize = 64;
const K: usize = 256;

/// What one thread computes again and again.
struct Work {
    spec: &'static KernelSpec,
    linear: Linear,
    x: Vec<f32>,
}

impl Work {
    fn new(spec: &'static KernelSpec, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let density = Density::Random(0.5);
        let TestWeight { weight, .. } =
            TestWeight::new(spec.weight, (N, K), density, None, &mut random);
        let x = activations(M, K, &mut random);
        Self {
            spec,
            linear: Linear { weight, bias: None },
            x,
        }
    }

    fn compute(&self, rt: &Runtime) -> Vec<f32> {
        let mut y = vec![0.0; M * N];
        let job = LinearJob {
            linear: &self.linear,
            y: RowsMut::new(&mut y, M, N),
        };
        linear_with(self.spec, rt, Rows::new(&self.x, M, K), &mut [job]).unwrap();
        y
    }
}

/// Each thread has its own data, so that tiles which end up in another thread show; what is right was computed before, alone.
#[test]
fn tiles_survive_context_switches() {
    let cpu = Cpu::detect().unwrap();
    let rounds = if fast() { 20 } else { 2000 };
    let mut report = RowReport::default();
    for spec in catalog().iter().filter(|spec| spec.isa == Isa::Amx) {
        let name = format!("{}_threads", spec.name);
        let spec = match spec.on(&cpu) {
            Ok(spec) => spec,
            Err(why) => {
                report.skip(&name, spec.isa, &why.to_string());
                continue;
            }
        };
        let work: Vec<Work> = (0..THREADS)
            .map(|seed| Work::new(spec, seed as u64))
            .collect();
        let alone = Runtime::new(cpu, 1).unwrap();
        let want: Vec<Vec<f32>> = work.iter().map(|work| work.compute(&alone)).collect();
        std::thread::scope(|scope| {
            for (work, want) in work.iter().zip(&want) {
                scope.spawn(move || {
                    let rt = Runtime::new(cpu, 1).unwrap();
                    for round in 0..rounds {
                        assert!(work.compute(&rt) == *want, "{}: round {round}", spec.name);
                    }
                });
            }
        });
        report.run(&name);
    }
    report.finish();
}
