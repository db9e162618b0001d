//! Models with random weights, for benchmarks: the shape of a model decides its speed, not its values.

use rayon::ThreadPool;
use rayon::prelude::*;
use sparamx_format::{DenseBf16, SparseBf16};
use sparamx_kernels::{Runtime, Weight};

use crate::load::{Source, build, check_memory, dense_bytes, threads};
use crate::plan::{self, Role, TensorPlan};
use crate::{Config, Model, ModelError};

/// What random weights are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomSpec {
    /// Share of zeros in the projections of the layers, `0.0 ..= 1.0`; above 0 they are packed. Embedding and output head stay
    /// dense, as pruning leaves them.
    pub sparsity: f64,
    /// The same seed makes the same model.
    pub seed: u64,
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
        check_memory(required_bytes(config, spec.sparsity), None)?;
        build(
            config,
            &mut Random {
                spec,
                threads: threads(rt)?,
                tensors: 0,
            },
        )
    }
}

/// Bytes of memory at the peak: all weights, and the rows of the largest one.
fn required_bytes(config: &Config, sparsity: f64) -> u64 {
    let tensors = plan::tensors(config);
    let bytes = |tensor: &TensorPlan| {
        let dense = dense_bytes(&tensor.shape);
        // A mask of one bit for each 16 of the dense weight.
        let packed = (dense as f64 * (1.0 - sparsity)) as u64 + dense / 16;
        if tensor.role == Role::Projection && sparsity > 0.0 {
            packed
        } else {
            dense
        }
    };
    let largest = tensors
        .iter()
        .map(|tensor| dense_bytes(&tensor.shape))
        .max();
    tensors
        .iter()
        .map(bytes)
        .fold(largest.unwrap_or(0), u64::saturating_add)
}

struct Random {
    spec: RandomSpec,
    threads: ThreadPool,
    /// Tensors made so far: each has its own random numbers.
    tensors: u64,
}

impl Random {
    fn rows(&mut self, n: usize, k: usize, sparsity: f64) -> Vec<u16> {
        self.tensors += 1;
        let seed = mix(self.spec.seed ^ mix(self.tensors));
        self.threads.install(|| random_rows(seed, n, k, sparsity))
    }
}

impl Source for Random {
    fn dense(&mut self, tensor: &TensorPlan) -> Result<DenseBf16, ModelError> {
        let (n, k) = (tensor.shape[0], tensor.shape[1]);
        let rows = self.rows(n, k, 0.0);
        Ok(self.threads.install(|| DenseBf16::from_rows(&rows, n, k))?)
    }

    fn weight(&mut self, tensor: &TensorPlan) -> Result<Weight, ModelError> {
        if tensor.role != Role::Projection || self.spec.sparsity == 0.0 {
            return Ok(Weight::DenseBf16(self.dense(tensor)?));
        }
        let (n, k) = (tensor.shape[0], tensor.shape[1]);
        let rows = self.rows(n, k, self.spec.sparsity);
        Ok(Weight::SparseBf16(
            self.threads.install(|| SparseBf16::pack(&rows, n, k))?,
        ))
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

/// `n * k` bf16 values in row-major order, of either sign and a magnitude around `1 / sqrt(k)`, with zeros strewn in.
fn random_rows(seed: u64, n: usize, k: usize, sparsity: f64) -> Vec<u16> {
    /// Values made from one seed, whatever the number of threads.
    const CHUNK: usize = 1 << 16;
    let exponent = 127 - (k.ilog2() / 2) as u16;
    // Of 2^24, so that a share is met to seven digits.
    let zeros = (sparsity * f64::from(1 << 24)) as u32;
    let mut rows = vec![0u16; n * k];
    rows.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, out)| {
            let mut state = mix(seed ^ mix(chunk as u64)) | 1;
            for out in out {
                // xorshift64*: a nanosecond a value, and good enough in its high bits.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
                // Low to high: 7 bits of mantissa, 1 of exponent, 1 of sign, 24 that say whether it is a zero.
                let value = (bits as u16 & 0x7f)
                    | (exponent - (bits >> 7) as u16 % 2) << 7
                    | ((bits >> 8) as u16 & 1) << 15;
                *out = if (bits >> 24) as u32 & 0xff_ffff < zeros {
                    0
                } else {
                    value
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
            let rows = random_rows(1, 500, 401, sparsity);
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
        let rows = random_rows(2, 64, 1024, 0.0);
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
        assert_ne!(rows, random_rows(3, 64, 1024, 0.0));
    }
}
