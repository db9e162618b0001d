//! What a linear kernel is: a row of the [`crate::catalog`].

use std::fmt;
use std::ops::RangeInclusive;

use sparamx_cpu::{Cpu, Features, Isa};

use crate::linear::activation::Activation;
use crate::linear::chunk::Chunk;
use crate::{KernelError, WeightFormat};

/// Kernels of one class give the same bits for the same row of activations, whatever M is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NumericClass {
    /// f32 products and sums, each rounded; even and odd k summed apart.
    F32,
    /// f32 fused multiply-adds; even and odd k summed apart.
    F32Fma,
    /// `vdpbf16ps` on bf16 activations; even and odd k-pairs summed apart.
    Bf16Dot,
    /// `tdpbf16ps` on bf16 activations.
    Bf16Tile,
    /// int8 activations: sums in a group of scales are exact, groups are added in order in f32. The same bits on every CPU.
    Exact,
}

/// One linear kernel.
///
/// Any kernel computes any M, N and K; `best_m` is where it is chosen.
#[derive(Clone)]
pub struct KernelSpec {
    /// `linear_<activation>_<weight>_<sum>_<MR>x<NR>_<isa>`; `bmbf16` is bitmap and bf16 values, `bmi8` and `bmi4` likewise.
    pub name: &'static str,
    /// The level of vector instructions it belongs to.
    pub isa: Isa,
    /// What the CPU must have.
    pub features: Features,
    /// The weights it reads.
    pub weight: WeightFormat,
    /// The activations it reads.
    pub activation: Activation,
    /// Rows of activations it multiplies at a time.
    pub mr: usize,
    /// Outputs it computes at a time.
    pub nr: usize,
    /// The M for which it is the best of its level.
    pub best_m: RangeInclusive<usize>,
    /// Why it is, in a few words.
    pub reason: &'static str,
    /// Which kernels give the same bits.
    pub class: NumericClass,
    /// Scratch that a thread needs, by K rounded up.
    pub(crate) scratch_bytes: fn(usize) -> usize,
    /// Computes a chunk. Safe to call where `features` are there and the chunk is as its documentation says.
    pub(crate) run: unsafe fn(&Chunk<'_>, &mut [u8]),
}

impl fmt::Debug for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl KernelSpec {
    /// The kernel, if `cpu` can run it.
    ///
    /// # Errors
    /// [`KernelError::Unsuitable`] names what is missing.
    pub fn on(&'static self, cpu: &Cpu) -> Result<&'static Self, KernelError> {
        if cpu.features().contains(self.features) {
            return Ok(self);
        }
        let why = format!(
            "it needs {}, this process may use {}",
            self.features,
            cpu.features()
        );
        Err(KernelError::Unsuitable {
            name: self.name,
            why,
        })
    }
}
