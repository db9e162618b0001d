//! The one place where an operation written over [`Lanes`] is compiled for each level and one of them is chosen.

use sparamx_cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use sparamx_cpu::{Avx2, Avx512};

use super::Lanes;
use super::portable::Portable;

/// An operation with its operands.
pub(crate) trait VectorOp {
    /// What it gives back.
    type Output;
    /// Does the operation. Implementations are `#[inline(always)]`.
    fn eval<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `op` with the widest vectors of the CPU.
pub(crate) fn dispatch<O: VectorOp>(cpu: &Cpu, op: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(token) = cpu.avx512() {
            // SAFETY: the token proves that the CPU has the level.
            return unsafe { eval_avx512(token, op) };
        }
        if let Some(token) = cpu.avx2() {
            // SAFETY: the token proves that the CPU has the level.
            return unsafe { eval_avx2(token, op) };
        }
    }
    let _ = cpu;
    op.eval(Portable)
}

#[cfg(target_arch = "x86_64")]
sparamx_cpu::avx512_fns!(
    fn eval_avx512<O: VectorOp>(token: Avx512, op: O) -> O::Output {
        op.eval(token)
    }
);

#[cfg(target_arch = "x86_64")]
sparamx_cpu::avx2_fns!(
    fn eval_avx2<O: VectorOp>(token: Avx2, op: O) -> O::Output {
        op.eval(token)
    }
);
