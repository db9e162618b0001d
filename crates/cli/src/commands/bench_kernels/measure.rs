//! Weights, and the rounds of one shape and batch.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use sparamx_kernels::bandwidth::Bandwidth;
use sparamx_kernels::catalog::KernelSpec;
use sparamx_kernels::linear::{WeightFormat, linear_with};
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime};
use sparamx_model::random_weight;

use super::oracle;

/// Time that a kernel is measured for in a round.
pub const BUDGET: Duration = Duration::from_millis(50);
/// Calls in a round at least, where they take no longer than `LONG`.
const LEAST_CALLS: usize = 3;
const LONG: Duration = Duration::from_millis(300);
/// A call that would take longer is not made at all.
const LONGEST: Duration = Duration::from_secs(3);
/// Slower than any kernel on any CPU we know: below that many operations no call can take `LONGEST`.
const SLOWEST_FLOPS: f64 = 5e8;
/// Outputs from which the time of a call with all of them is predicted, a thread.
const TRIAL_OUTPUTS: usize = 64;
const SEED: u64 = 1;

/// N and K of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.n, self.k)
    }
}

/// What is measured at a time: one shape, one number of rows of activations.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub shape: Shape,
    pub m: usize,
}

impl Setting {
    /// Multiplications and additions of a call.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.shape.n as f64 * self.shape.k as f64
    }
}

/// A format with a share of zeros.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub format: WeightFormat,
    pub sparsity: f64,
}

impl Variant {
    /// About the bytes of one weight.
    pub fn bytes(&self, shape: Shape) -> u64 {
        let elems = (shape.n * shape.k) as f64;
        let bits = f64::from(self.format.element().bits());
        let stored = if self.format.is_sparse() {
            (1.0 - self.sparsity) * bits + 1.0
        } else {
            bits
        };
        (elems * stored / 8.0) as u64
    }

    /// Distinct weights of `bytes` bytes together, one at least.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn make(&self, shape: Shape, bytes: usize) -> Result<Set> {
        let mut set = Set {
            variant: *self,
            copies: Vec::new(),
        };
        let mut made = 0;
        while set.copies.is_empty() || made < bytes {
            let layer = self.layer(shape, SEED + set.copies.len() as u64)?;
            made += layer.weight.bytes();
            set.copies.push(layer);
        }
        Ok(set)
    }

    fn layer(&self, shape: Shape, seed: u64) -> Result<Linear> {
        let weight = random_weight(self.format, shape.n, shape.k, self.sparsity, seed)?;
        Ok(Linear { weight, bias: None })
    }
}

/// Weights of one variant that a kernel goes through in turn, so that none is in a cache when its turn comes.
pub struct Set {
    pub variant: Variant,
    copies: Vec<Linear>,
}

impl Set {
    /// Bytes that a call reads, on average.
    pub fn bytes(&self) -> f64 {
        let all: usize = self.copies.iter().map(|layer| layer.weight.bytes()).sum();
        all as f64 / self.copies.len() as f64
    }
}

/// A kernel with a set of weights.
pub struct Entry {
    pub spec: &'static KernelSpec,
    /// Index of its set.
    pub set: usize,
    /// Calls in a round.
    calls: usize,
    /// The copy of the next call.
    next: usize,
    /// Seconds of a call, round by round.
    pub seconds: Vec<f64>,
}

/// A kernel that would take too long, and how long about.
#[derive(Debug, Serialize)]
pub struct Skipped {
    kernel: &'static str,
    weights: &'static str,
    sparsity: f64,
    n: usize,
    k: usize,
    m: usize,
    predicted_s: f64,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Skipped {
            kernel,
            n,
            k,
            m,
            predicted_s,
            ..
        } = self;
        write!(
            f,
            "{kernel} left out for {n} x {k}, M {m}: a call would take about {predicted_s:.0} s"
        )
    }
}

/// All kernels for one shape and batch.
pub struct Group<'a> {
    rt: &'a Runtime,
    pub setting: Setting,
    pub sets: &'a [Set],
    x: Vec<f32>,
    y: Vec<f32>,
    pub entries: Vec<Entry>,
    /// Read bandwidth in GB/s, round by round.
    pub bandwidth: Vec<f64>,
}

impl<'a> Group<'a> {
    /// Without a kernel so far.
    pub fn new(rt: &'a Runtime, setting: Setting, sets: &'a [Set]) -> Self {
        let Setting { shape, m } = setting;
        Group {
            rt,
            setting,
            sets,
            x: activations(m * shape.k),
            y: vec![0.0; m * shape.n],
            entries: Vec::new(),
            bandwidth: Vec::new(),
        }
    }

    /// Checks a kernel and finds how often it is to be called, or leaves it out if that takes too long.
    ///
    /// # Errors
    /// It computes something wrong.
    pub fn add(&mut self, spec: &'static KernelSpec, set: usize) -> Result<Option<Skipped>> {
        let predicted = self.predict(spec, set)?;
        if predicted > LONGEST {
            let Setting {
                shape: Shape { n, k },
                m,
            } = self.setting;
            let Variant { format, sparsity } = self.sets[set].variant;
            return Ok(Some(Skipped {
                kernel: spec.name,
                weights: format.element().name(),
                sparsity,
                n,
                k,
                m,
                predicted_s: predicted.as_secs_f64(),
            }));
        }
        let layer = &self.sets[set].copies[0];
        // What another kernel left there must not pass for this one's.
        self.y.fill(f32::NAN);
        let first = call(spec, self.rt, &self.x, layer, &mut self.y)?;
        let Setting { shape, m } = self.setting;
        let (x, y) = (
            Rows::new(&self.x, m, shape.k),
            Rows::new(&self.y, m, shape.n),
        );
        if let Err(wrong) = oracle::check(spec.activation, &layer.weight, x, y) {
            bail!(
                "{}, {shape}, M {m}: {wrong}; this is a bug, and nothing was timed",
                spec.name
            );
        }
        // Once more for the time: the first call grows buffers.
        let seconds = if first < LONG {
            call(spec, self.rt, &self.x, layer, &mut self.y)?
        } else {
            first
        };
        let calls = (BUDGET.as_secs_f64() / seconds.as_secs_f64().max(1e-9)).ceil() as usize;
        self.entries.push(Entry {
            spec,
            set,
            calls: if first < LONG {
                calls.max(LEAST_CALLS)
            } else {
                1
            },
            next: 0,
            seconds: Vec::new(),
        });
        Ok(None)
    }

    /// About the time of a call; nothing where it is short on any machine.
    fn predict(&self, spec: &'static KernelSpec, set: usize) -> Result<Duration> {
        let Setting { shape, m } = self.setting;
        if self.setting.flops() < SLOWEST_FLOPS * LONGEST.as_secs_f64() {
            return Ok(Duration::ZERO);
        }
        let n = shape.n.min(TRIAL_OUTPUTS * self.rt.threads());
        let layer = self.sets[set].variant.layer(Shape { n, ..shape }, SEED)?;
        let time = call(spec, self.rt, &self.x, &layer, &mut vec![0.0; m * n])?;
        Ok(time.mul_f64(shape.n as f64 / n as f64))
    }

    /// Measures every kernel once, and the bandwidth before and after. The better of both is the round's: what disturbs one of
    /// them need not have disturbed the kernels.
    ///
    /// # Errors
    /// A kernel refuses the call.
    pub fn round(&mut self, memory: &Bandwidth, done: &mut dyn FnMut()) -> Result<()> {
        let before = memory.measure(self.rt);
        for entry in &mut self.entries {
            let copies = &self.sets[entry.set].copies;
            let mut time = Duration::ZERO;
            for _ in 0..entry.calls {
                time += call(
                    entry.spec,
                    self.rt,
                    &self.x,
                    &copies[entry.next],
                    &mut self.y,
                )?;
                entry.next = (entry.next + 1) % copies.len();
            }
            entry.seconds.push(time.as_secs_f64() / entry.calls as f64);
            done();
        }
        self.bandwidth.push(before.max(memory.measure(self.rt)));
        Ok(())
    }
}

/// One call: `x` is `[M, K]`, `y` `[M, N]`.
fn call(
    spec: &'static KernelSpec,
    rt: &Runtime,
    x: &[f32],
    linear: &Linear,
    y: &mut [f32],
) -> Result<Duration> {
    let (n, k) = (linear.weight.n(), linear.weight.k());
    let m = x.len() / k;
    let job = LinearJob {
        linear,
        y: RowsMut::new(y, m, n),
    };
    let start = Instant::now();
    linear_with(spec, rt, Rows::new(x, m, k), &mut [job])?;
    Ok(start.elapsed())
}

/// Values in -1 ..= 1 without a pattern.
fn activations(count: usize) -> Vec<f32> {
    let mut state = SEED;
    let mut next = || {
        // Knuth's constants (MMIX); only the high bits are used.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_fill_their_range() {
        let x = activations(10_000);
        assert!(x.iter().all(|x| (-1.0..=1.0).contains(x)));
        assert!(x.iter().any(|&x| x < -0.99) && x.iter().any(|&x| x > 0.99));
        assert!((x.iter().sum::<f32>() / 10_000.0).abs() < 0.05);
    }

    #[test]
    fn sets_are_as_large_as_asked_for_and_of_distinct_weights() {
        let shape = Shape { n: 32, k: 64 };
        for format in WeightFormat::ALL {
            let variant = Variant {
                format,
                sparsity: 0.5,
            };
            assert_eq!(variant.make(shape, 0).unwrap().copies.len(), 1);
            let set = variant.make(shape, 10_000).unwrap();
            assert!(set.bytes() * set.copies.len() as f64 >= 10_000.0);
            let copies: Vec<Vec<f32>> = set
                .copies
                .iter()
                .map(|layer| layer.weight.strip_to_f32(0))
                .collect();
            for (i, copy) in copies.iter().enumerate() {
                assert!(!copies[..i].contains(copy), "{format}: copy {i}");
            }
        }
    }
}
