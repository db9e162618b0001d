//! The gate of a gated feed-forward layer.

use super::{RowOp, for_each_row, same};
use crate::simd::{Lanes, exp};
use crate::{KernelError, Rows, RowsMut, Runtime};

/// `gate = silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`, both `[M, N]`.
///
/// # Errors
/// [`KernelError::Mismatch`] if the shapes differ.
pub fn silu_mul(rt: &Runtime, gate: RowsMut<'_>, up: Rows<'_>) -> Result<(), KernelError> {
    same("rows of gate and of up", gate.rows(), up.rows())?;
    same("columns of gate and of up", gate.cols(), up.cols())?;
    for_each_row(rt, gate, &SiluMul { up });
    Ok(())
}

struct SiluMul<'a> {
    up: Rows<'a>,
}

impl RowOp for SiluMul<'_> {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, i: usize, gate: &mut [f32]) {
        let (zero, one) = (l.splat(0.0), l.splat(1.0));
        for (gate, up) in gate.chunks_mut(L::LEN).zip(self.up.row(i).chunks(L::LEN)) {
            let x = l.load_some(gate, 0.0);
            let silu = l.div(x, l.add(one, exp(l, l.sub(zero, x))));
            l.store_some(l.mul(silu, l.load_some(up, 0.0)), gate);
        }
    }
}
