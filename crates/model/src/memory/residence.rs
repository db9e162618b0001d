//! In which form weights stay in memory.
//!
//! A packed weight has fewer bytes to read, but it has to be expanded each time. On most CPUs that hides behind the memory; where
//! it does not, the weight is faster when it is expanded once, at the price of memory. Which it is, is measured on the model's
//! own weights when it is loaded. Both forms give the same bits.
//!
//! Weights that are windows of a file map are copied to the program's own memory first, where there is room: they are read a tenth
//! faster there (docs/performance.md).

use std::time::Instant;

use rayon::ThreadPool;
use sparamx_cpu::topology;
use sparamx_kernels::linear::WeightFormat;
use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, Weight, linear};

use crate::memory::load::threads;
use crate::pass::layers::projection::Projection;
use crate::{Model, ModelError};

/// Bytes of expanded weights of a group that are timed: enough that a cache does not serve them.
const SAMPLE_BYTES: usize = 128 << 20;
/// Rounds of both forms in turn; the median counts.
const ROUNDS: usize = 7;
/// An expanded weight must be faster by this factor: less is noise, and not worth the memory.
const GAIN: f64 = 1.03;
/// Share of the available memory that weights may take where no limit is set.
const DEFAULT_SHARE: f64 = 0.7;

/// What may be decided, and for what.
#[derive(Debug, Clone, Copy)]
pub struct ResidenceOptions {
    /// Memory for all weights together; `None`: a part of what the operating system has left.
    pub memory_bytes: Option<u64>,
    /// Rows of activations to be fast for: sequences that are decoded together.
    pub batch: usize,
}

impl Default for ResidenceOptions {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            batch: 1,
        }
    }
}

/// The packed weights of one kind, such as `mlp.down_proj` of all layers, and what became of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The module, without its layer.
    pub module: &'static str,
    /// `[N, K]`
    pub shape: [usize; 2],
    /// Form in the file.
    pub packed: WeightFormat,
    /// Form that it would be expanded to.
    pub dense: WeightFormat,
    /// Weights in the group.
    pub tensors: usize,
    /// How many of them were expanded: the first ones.
    pub expanded: usize,
    /// Bytes of all of them packed.
    pub packed_bytes: u64,
    /// Bytes of all of them expanded.
    pub dense_bytes: u64,
    /// Time of one multiplication packed, microseconds.
    pub packed_us: f64,
    /// Time of one multiplication expanded, microseconds.
    pub dense_us: f64,
}

impl Group {
    /// Why the group stays as it is or was expanded, in a few words.
    pub fn reason(&self) -> &'static str {
        if !self.gains() {
            "packed is as fast or faster"
        } else if self.expanded == self.tensors {
            "expanded is faster here"
        } else if self.expanded > 0 {
            "expanded is faster, memory for some only"
        } else {
            "expanded is faster, but memory does not allow it"
        }
    }

    fn gains(&self) -> bool {
        self.dense_us * GAIN < self.packed_us
    }

    fn extra_bytes_each(&self) -> u64 {
        self.dense_bytes.saturating_sub(self.packed_bytes) / self.tensors.max(1) as u64
    }

    /// Microseconds won by a byte.
    fn worth(&self) -> f64 {
        (self.packed_us - self.dense_us) / self.extra_bytes_each().max(1) as f64
    }
}

impl Model {
    /// Expands those packed weights that this CPU multiplies faster when they are dense, as far as memory allows, and copies the
    /// others from the file's map into memory. `progress` gets the number of weights decided so far and that of all.
    ///
    /// # Errors
    /// [`ModelError::Format`] if memory is refused, [`ModelError::Kernel`] if there are no threads to be had.
    pub fn settle(
        &mut self,
        rt: &Runtime,
        options: ResidenceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Group>, ModelError> {
        let pool = threads(rt)?;
        let weight_bytes = self.weight_bytes();
        let memory_bytes = options.memory_bytes.unwrap_or_else(|| {
            topology::available_memory_bytes().map_or(u64::MAX, |bytes| {
                // What is mapped from a file counts as available: the system would take it back.
                (bytes as f64 * DEFAULT_SHARE) as u64
            })
        });
        if weight_bytes <= memory_bytes {
            self.take_into_memory(rt)?;
        }
        let mut kinds = self.kinds();
        let all = kinds.iter().map(|kind| kind.linears.len()).sum();
        let mut groups = Vec::new();
        for kind in &kinds {
            groups.push(kind.measure(rt, &pool, options.batch.max(1))?);
            progress(
                groups.iter().map(|group: &Group| group.tensors).sum(),
                2 * all,
            );
        }
        decide(&mut groups, memory_bytes.saturating_sub(weight_bytes));
        let mut done = all;
        for (kind, group) in kinds.iter_mut().zip(&groups) {
            for linear in kind.linears.iter_mut().take(group.expanded) {
                linear.weight = pool.install(|| linear.weight.expand())?;
                done += 1;
                progress(done, 2 * all);
            }
        }
        progress(2 * all, 2 * all);
        Ok(groups)
    }

    /// Copies the weights that are windows of a file, by the threads that will read them.
    fn take_into_memory(&mut self, rt: &Runtime) -> Result<(), ModelError> {
        let mut all: Vec<_> = self.projections_mut().collect();
        rt.pool().try_for_each(&mut all, |projection| {
            let weight = &mut projection.linear.weight;
            *weight = weight.in_memory()?;
            Ok(())
        })
    }

    /// The packed weights, by module, shape and format.
    fn kinds(&mut self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        for Projection { module, linear } in self.projections_mut() {
            if !linear.weight.format().is_sparse() {
                continue;
            }
            let key = |l: &Linear| (l.weight.format(), l.weight.n(), l.weight.k());
            let same = kinds
                .iter_mut()
                .find(|kind| kind.module == *module && key(kind.linears[0]) == key(linear));
            match same {
                Some(kind) => kind.linears.push(linear),
                None => kinds.push(Kind {
                    module,
                    linears: vec![linear],
                }),
            }
        }
        kinds
    }
}

struct Kind<'a> {
    module: &'static str,
    linears: Vec<&'a mut Linear>,
}

impl Kind<'_> {
    /// Times some of the weights, packed and expanded in turn.
    fn measure(&self, rt: &Runtime, pool: &ThreadPool, batch: usize) -> Result<Group, ModelError> {
        let mut sample = Vec::new();
        let mut sample_bytes = 0;
        for linear in &self.linears {
            if sample_bytes >= SAMPLE_BYTES {
                break;
            }
            let weight = pool.install(|| linear.weight.expand())?;
            sample_bytes += weight.bytes();
            sample.push(Linear { weight, bias: None });
        }
        let first = &self.linears[0].weight;
        let (n, k) = (first.n(), first.k());
        let x: Vec<f32> = (0..batch * k).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut y = vec![0.0; batch * n];
        let (mut packed, mut dense) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let x = Rows::new(&x, batch, k);
            packed.push(time(
                rt,
                x,
                &mut y,
                self.linears.iter().take(sample.len()).map(|l| &**l),
            )?);
            dense.push(time(rt, x, &mut y, sample.iter())?);
        }
        let bytes = |weights: &mut dyn Iterator<Item = &Weight>| -> u64 {
            weights.map(|w| w.bytes() as u64).sum()
        };
        let dense_bytes = bytes(&mut sample.iter().map(|l| &l.weight));
        Ok(Group {
            module: self.module,
            shape: [n, k],
            packed: first.format(),
            dense: sample[0].weight.format(),
            tensors: self.linears.len(),
            expanded: 0,
            packed_bytes: bytes(&mut self.linears.iter().map(|l| &l.weight)),
            dense_bytes: dense_bytes / sample.len() as u64 * self.linears.len() as u64,
            packed_us: median(&mut packed),
            dense_us: median(&mut dense),
        })
    }
}

/// Microseconds of one multiplication, on average over all weights.
fn time<'a>(
    rt: &Runtime,
    x: Rows<'_>,
    y: &mut [f32],
    linears: impl Iterator<Item = &'a Linear>,
) -> Result<f64, ModelError> {
    let (start, mut count) = (Instant::now(), 0);
    for linear_layer in linears {
        let y = RowsMut::new(y, x.rows(), linear_layer.weight.n());
        let job = LinearJob {
            linear: linear_layer,
            y,
        };
        linear(rt, x, &mut [job])?;
        count += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(count.max(1)))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Spends `extra_bytes` on the groups that gain, first where a byte wins most time.
fn decide(groups: &mut [Group], extra_bytes: u64) {
    let mut order: Vec<usize> = (0..groups.len()).filter(|&i| groups[i].gains()).collect();
    order.sort_by(|&a, &b| groups[b].worth().total_cmp(&groups[a].worth()));
    let mut left = extra_bytes;
    for i in order {
        let group = &mut groups[i];
        let fits = left
            .checked_div(group.extra_bytes_each())
            .unwrap_or(u64::MAX);
        group.expanded = group
            .tensors
            .min(usize::try_from(fits).unwrap_or(usize::MAX));
        left -= group.extra_bytes_each() * group.expanded as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparamx_cpu::Cpu;
    use sparamx_format::{Scales, SparseBf16, SparseI4, SparseI8};

    fn group(module: &'static str, packed_us: f64, dense_us: f64) -> Group {
        Group {
            module,
            shape: [16, 32],
            packed: WeightFormat::SparseI8,
            dense: WeightFormat::DenseI8,
            tensors: 4,
            expanded: 0,
            packed_bytes: 400,
            dense_bytes: 800,
            packed_us,
            dense_us,
        }
    }

    fn expanded(groups: &[Group]) -> Vec<usize> {
        groups.iter().map(|group| group.expanded).collect()
    }

    /// `[n, k]` levels, half of them zero.
    fn levels(n: usize, k: usize, most: i8) -> Vec<i8> {
        let level = |i: usize| (i * 7 % (2 * most as usize + 1)) as i8 - most;
        (0..n * k)
            .map(|i| if i * i % 3 == 0 { 0 } else { level(i) })
            .collect()
    }

    #[test]
    fn expanded_weights_give_the_same_bits() {
        let (n, k, m) = (50, 200, 3);
        let rt = Runtime::new(Cpu::detect().unwrap(), 2).unwrap();
        let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let rows: Vec<f32> = (0..n).map(|i| 0.01 * (i + 1) as f32).collect();
        let groups: Vec<f32> = (0..n * 4).map(|i| 0.5 + (i % 8) as f32).collect();
        let row_scales = Scales::row(&rows, n).unwrap();
        let group_scales = Scales::group(&groups, n, k, 64).unwrap();
        let bf16: Vec<u16> = levels(n, k, 100)
            .iter()
            .map(|&level| half::bf16::from_f32(f32::from(level)).to_bits())
            .collect();
        let int4 = |most| {
            let levels: Vec<i8> = levels(n, k, 8).iter().map(|&l| l.min(most)).collect();
            Weight::SparseI4(SparseI4::pack(&levels, n, k, group_scales.clone()).unwrap())
        };
        let packed = [
            Weight::SparseBf16(SparseBf16::pack(&bf16, n, k).unwrap()),
            Weight::SparseI8(SparseI8::pack(&levels(n, k, 127), n, k, row_scales).unwrap()),
            int4(7),
            int4(8),
        ];
        let forms = [
            WeightFormat::DenseBf16,
            WeightFormat::DenseI8,
            WeightFormat::DenseI4,
            WeightFormat::DenseI8,
        ];
        for (packed, form) in packed.into_iter().zip(forms) {
            let dense = packed.expand().unwrap();
            assert_eq!(dense.format(), form);
            let product = |weight: &Weight| {
                let linear_layer = Linear {
                    weight: weight.clone(),
                    bias: None,
                };
                let mut y = vec![0.0; m * n];
                let job = LinearJob {
                    linear: &linear_layer,
                    y: RowsMut::new(&mut y, m, n),
                };
                linear(&rt, Rows::new(&x, m, k), &mut [job]).unwrap();
                y
            };
            let (want, got) = (product(&packed), product(&dense));
            assert!(want.iter().any(|v| *v != 0.0));
            assert_eq!(want, got, "{}", packed.format());
        }
    }

    #[test]
    fn only_what_gains_is_expanded() {
        let mut groups = [
            group("a", 10.0, 9.0),
            group("b", 10.0, 9.9),
            group("c", 9.0, 10.0),
        ];
        decide(&mut groups, u64::MAX);
        assert_eq!(expanded(&groups), [4, 0, 0]);
        assert_eq!(groups[0].reason(), "expanded is faster here");
        assert_eq!(groups[1].reason(), "packed is as fast or faster");
    }

    #[test]
    fn memory_goes_where_a_byte_wins_most() {
        let mut groups = [group("a", 10.0, 9.0), group("b", 10.0, 5.0)];
        decide(&mut groups, 600);
        assert_eq!(expanded(&groups), [2, 4]);
        decide(&mut groups, 99);
        assert_eq!(expanded(&groups), [0, 0]);
        assert_eq!(
            groups[0].reason(),
            "expanded is faster, but memory does not allow it"
        );
    }

    #[test]
    fn what_takes_no_more_memory_is_free() {
        let mut groups = [Group {
            dense_bytes: 400,
            ..group("a", 10.0, 5.0)
        }];
        decide(&mut groups, 0);
        assert_eq!(expanded(&groups), [4]);
    }
}
