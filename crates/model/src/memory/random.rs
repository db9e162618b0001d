//! Models with random weights, for benchmarks: the shape of a model decides its speed, not its values.

use rayon::ThreadPool;
use rayon::prelude::*;
use sparamx_format::{DenseBf16, ElementKind, Scales, Weight, WeightFormat};
use sparamx_kernels::Runtime;

use crate::families::plan::{self, Role, TensorPlan};
use crate::memory::load::{Source, build, check_memory, dense_bytes, threads};
use crate::{Config, Model, ModelError, Precision};

/// What random weights are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomSpec {
    /// Share of zeros in the projections of the layers, `0.0 ..= 1.0`; above 0 they are packed. Embedding and output head stay
    /// dense, as pruning leaves them.
    pub sparsity: f64,
    /// Dtype of the projections and of the output head. The embedding is bf16.
    pub precision: Precision,
    /// The same seed makes the same model.
    pub seed: u64,
}

impl RandomSpec {
    fn sparsity_of(self, role: Role) -> f64 {
        if role == Role::Projection {
            self.sparsity
        } else {
            0.0
        }
    }
}

impl Model {
    /// A model of this shape with random weights, about as large as those of a trained one. Made on as many threads as the
    /// runtime has; the same for any number of them.
    ///
    /// # Errors
    /// [`ModelError::Sparsity`], [`ModelError::NotEnoughMemory`], or [`ModelError::Kernel`] if there are no threads to be
    /// had.
    pub fn random(rt: &Runtime, config: &Config, spec: RandomSpec) -> Result<Self, ModelError> {
        if !(0.0..=1.0).contains(&spec.sparsity) {
            return Err(ModelError::Sparsity {
                found: spec.sparsity,
            });
        }
        let largest = plan::tensors(config)
            .iter()
            .map(|tensor| dense_bytes(&tensor.shape))
            .max();
        let needed = Self::random_bytes(config, spec).saturating_add(largest.unwrap_or(0));
        check_memory(needed, None)?;
        build(
            config,
            &mut Random {
                spec,
                threads: threads(rt)?,
                tensors: 0,
            },
        )
    }

    /// Bytes of the weights of such a model; to make them takes the largest matrix as bf16 on top.
    pub fn random_bytes(config: &Config, spec: RandomSpec) -> u64 {
        let bits = match spec.precision {
            Precision::Bf16 => 16.0,
            Precision::Int8 => 8.0,
            // A scale of 16 bits a group.
            Precision::Int4 { group_elems } => 4.0 + 16.0 / group_elems as f64,
        };
        let bytes = |tensor: &TensorPlan| {
            let bits = match (tensor.role, spec.sparsity_of(tensor.role)) {
                (Role::Projection | Role::Head, 0.0) => bits,
                // Zeros are left out, and a mask has one bit for each element.
                (Role::Projection | Role::Head, sparsity) => bits * (1.0 - sparsity) + 1.0,
                _ => 16.0,
            };
            (dense_bytes(&tensor.shape) as f64 / 16.0 * bits) as u64
        };
        let tensors = plan::tensors(config);
        tensors.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

struct Random {
    spec: RandomSpec,
    threads: ThreadPool,
    /// Tensors made so far: each has its own random numbers.
    tensors: u64,
}

impl Random {
    /// The seed of the next tensor.
    fn seed(&mut self) -> u64 {
        self.tensors += 1;
        mix(self.spec.seed ^ mix(self.tensors))
    }
}

impl Source for Random {
    fn dense(&mut self, tensor: &TensorPlan) -> Result<DenseBf16, ModelError> {
        let (n, k, seed) = (tensor.shape[0], tensor.shape[1], self.seed());
        Ok(self.threads.install(|| {
            DenseBf16::from_rows(&random_elements(seed, n, k, 0.0, bf16_element(k)), n, k)
        })?)
    }

    fn weight(&mut self, tensor: &TensorPlan) -> Result<Weight, ModelError> {
        if !matches!(tensor.role, Role::Projection | Role::Head) {
            return Ok(Weight::DenseBf16(self.dense(tensor)?));
        }
        let (n, k, seed) = (tensor.shape[0], tensor.shape[1], self.seed());
        let sparsity = self.spec.sparsity_of(tensor.role);
        let format = WeightFormat::new(self.spec.precision.element(), sparsity > 0.0);
        let group = self.spec.precision.group_elems().unwrap_or(GROUP);
        self.threads
            .install(|| weight_in_groups(format, n, k, sparsity, seed, group))
    }

    fn vector(&mut self, tensor: &TensorPlan) -> Result<Vec<f32>, ModelError> {
        let value = if tensor.name.ends_with(".bias") {
            0.0
        } else {
            1.0
        };
        Ok(vec![value; tensor.shape[0]])
    }
}

/// A weight `[n, k]` in any format, about as large as trained ones, with this share of zeros strewn in. Made in parallel; the
/// same seed makes the same weight. int4 weights have groups of 128.
///
/// # Errors
/// [`ModelError::Format`] if the shape is empty or too large, or memory is refused.
pub fn random_weight(
    format: WeightFormat,
    n: usize,
    k: usize,
    sparsity: f64,
    seed: u64,
) -> Result<Weight, ModelError> {
    weight_in_groups(format, n, k, sparsity, seed, GROUP)
}

/// As [`random_weight`], with groups of `elems` columns.
fn weight_in_groups(
    format: WeightFormat,
    n: usize,
    k: usize,
    sparsity: f64,
    seed: u64,
    elems: usize,
) -> Result<Weight, ModelError> {
    let bf16 = || random_elements(seed, n, k, sparsity, bf16_element(k));
    let levels = |level: fn(u64) -> i8| random_elements(seed, n, k, sparsity, level);
    let scale = |levels: f32, count: usize| -> Vec<f32> {
        let least = 1.0 / (levels * (k as f32).sqrt());
        let steps = (0..count as u64).map(|i| (mix(seed ^ i) >> 60) as f32);
        steps.map(|step| least * (1.0 + step / 16.0)).collect()
    };
    let row = || Scales::row(&scale(127.0, n), n);
    let group = || Scales::group(&scale(8.0, n * k.div_ceil(elems)), n, k, elems);
    let (levels, scales) = match (format.element(), format.is_sparse()) {
        (ElementKind::Bf16, sparse) => return Ok(Weight::of_bits(&bf16(), n, k, sparse)?),
        (ElementKind::Int8, _) => (levels(i8_level), row()?),
        (ElementKind::Int4, false) => (levels(dense_i4_level), group()?),
        (ElementKind::Int4, true) => (levels(sparse_i4_level), group()?),
    };
    Ok(Weight::of_levels(format, &levels, n, k, scales)?)
}

/// Columns that share a scale of int4 weights by default, as in packed models.
const GROUP: usize = 128;

/// bf16 bits of either sign and a magnitude around `1 / sqrt(k)`, out of 9 random bits.
fn bf16_element(k: usize) -> impl Fn(u64) -> u16 + Sync {
    let exponent = 127 - (k.ilog2() / 2) as u16;
    // Low to high: 7 bits of mantissa, 1 of exponent, 1 of sign.
    move |bits| {
        (bits as u16 & 0x7f)
            | (exponent - (bits >> 7) as u16 % 2) << 7
            | ((bits >> 8) as u16 & 1) << 15
    }
}

/// -127 to 127 without 0, out of 8 random bits.
fn i8_level(bits: u64) -> i8 {
    let level = (bits as i8 & 0x7f).max(1);
    if bits & 0x80 == 0 { level } else { -level }
}

/// -8 to 7, out of 4 random bits.
fn dense_i4_level(bits: u64) -> i8 {
    (bits & 15) as i8 - 8
}

/// -8 to 8 without 0, out of 4 random bits.
fn sparse_i4_level(bits: u64) -> i8 {
    let level = dense_i4_level(bits);
    level + i8::from(level >= 0)
}

/// `n * k` elements in row-major order: zeros in this share, the others made by `element` of 24 random bits (the higher ones
/// chose the zeros).
fn random_elements<T: Copy + Default + Send>(
    seed: u64,
    n: usize,
    k: usize,
    sparsity: f64,
    element: impl Fn(u64) -> T + Sync,
) -> Vec<T> {
    /// Elements made from one seed, whatever the number of threads.
    const CHUNK: usize = 1 << 16;
    // Of 2^24, so that a share is met to seven digits.
    let zeros = (sparsity * f64::from(1 << 24)) as u32;
    let mut rows = vec![T::default(); n * k];
    rows.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, out)| {
            let mut state = mix(seed ^ mix(chunk as u64)) | 1;
            for out in out {
                // xorshift64*: a nanosecond an element, and good enough in its high bits.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
                *out = if (bits >> 24) as u32 & 0xff_ffff < zeros {
                    T::default()
                } else {
                    element(bits)
                };
            }
        });
    rows
}

/// The finalizer of splitmix64: neighboring inputs give unrelated outputs.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_the_share_asked_for() {
        for sparsity in [0.0, 0.5, 0.8, 1.0] {
            let rows = random_elements(1, 500, 401, sparsity, bf16_element(401));
            let zeros = rows.iter().filter(|&&v| v == 0).count() as f64 / rows.len() as f64;
            // Five standard deviations of a coin thrown 200 500 times.
            assert!(
                (zeros - sparsity).abs() < 5.0 * 0.5 / (200_500f64).sqrt(),
                "{zeros} is not {sparsity}"
            );
        }
    }

    #[test]
    fn values_are_finite_of_both_signs_and_of_the_size_of_trained_weights() {
        let rows = random_elements(2, 64, 1024, 0.0, bf16_element(1024));
        let values: Vec<f32> = rows
            .iter()
            .map(|&b| half::bf16::from_bits(b).to_f32())
            .collect();
        assert!(
            values
                .iter()
                .all(|v| (1.0 / 64.0..1.0 / 16.0).contains(&v.abs()))
        );
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert_ne!(rows, random_elements(3, 64, 1024, 0.0, bf16_element(1024)));
    }

    #[test]
    fn levels_are_in_range_and_zero_only_where_asked_for() {
        let all = |level: fn(u64) -> i8, bits: u64| (0..1 << bits).map(level).collect::<Vec<_>>();
        let range = |levels: &[i8]| (*levels.iter().min().unwrap(), *levels.iter().max().unwrap());
        let (int8, sparse) = (all(i8_level, 8), all(sparse_i4_level, 4));
        assert_eq!(range(&int8), (-127, 127));
        assert_eq!(range(&sparse), (-8, 8));
        assert!(!int8.contains(&0) && !sparse.contains(&0));
        assert_eq!(all(dense_i4_level, 4), (-8..8).collect::<Vec<i8>>());
    }

    #[test]
    fn every_format_is_made_and_zeros_save_bytes() {
        let bytes = |format, sparsity| {
            let weight = random_weight(format, 70, 300, sparsity, 1).unwrap();
            assert_eq!((weight.format(), weight.n(), weight.k()), (format, 70, 300));
            weight.bytes()
        };
        for format in WeightFormat::ALL {
            let (half, most) = (bytes(format, 0.5), bytes(format, 0.8));
            assert_eq!(
                most < half,
                format.is_sparse(),
                "{format}: {half} and {most}"
            );
        }
    }
}
