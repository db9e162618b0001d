//! Operations on rows of f32 between the linear layers, written once over the vectors of `crate::simd`.
//!
//! Each row is computed by one thread in a fixed order, so results do not depend on the number of threads.

mod add;
mod disjoint;
mod rms_norm;
mod rope;
mod silu;
mod softmax;

pub use add::add;
pub use rms_norm::{rms_norm, rms_norm_heads};
pub use rope::rope;
pub use silu::silu_mul;
pub use softmax::softmax_in_place;

pub(crate) use disjoint::DisjointRows;
pub(crate) use softmax::exp_in_place;

use std::ops::Range;

use crate::simd::{Lanes, VectorOp, dispatch};
use crate::{KernelError, RowsMut, Runtime};

/// Elements from which rows are shared out among the threads. To hand work to the pool and wait for it costs one to three
/// microseconds; one thread passes over 2^16 elements in about ten (256 KiB from the L2 cache, a few operations each).
const PARALLEL_ELEMS: usize = 1 << 16;

/// What is done to each row of an output.
trait RowOp: Sync {
    /// Computes output row `i` in `out`, which holds what the caller's rows held. `#[inline(always)]`.
    fn row<L: Lanes>(&self, lanes: L, i: usize, out: &mut [f32]);
}

/// Applies `op` to every row of `out`, on all threads if there is work for them.
fn for_each_row(rt: &Runtime, out: RowsMut<'_>, op: &impl RowOp) {
    let (rows, elems) = (out.rows(), out.rows() * out.cols());
    let out = DisjointRows::new(out);
    if elems < PARALLEL_ELEMS || rt.threads() == 1 {
        return dispatch(
            rt.cpu(),
            Block {
                op,
                out: &out,
                rows: 0..rows,
            },
        );
    }
    let threads = rt.threads();
    rt.pool().run(&|thread| {
        let rows = rows * thread / threads..rows * (thread + 1) / threads;
        dispatch(
            rt.cpu(),
            Block {
                op,
                out: &out,
                rows,
            },
        );
    });
}

/// The rows that one thread computes; no two blocks of a call share a row.
struct Block<'a, O> {
    op: &'a O,
    out: &'a DisjointRows<'a>,
    rows: Range<usize>,
}

impl<O: RowOp> VectorOp for Block<'_, O> {
    type Output = ();

    #[inline(always)]
    fn eval<L: Lanes>(self, lanes: L) {
        for i in self.rows {
            // SAFETY: the blocks of a call, made in `for_each_row` only, have no row in common, and each row is taken once.
            let out = unsafe { self.out.part(i, 0..self.out.cols()) };
            self.op.row(lanes, i, out);
        }
    }
}

/// Refuses two sizes that should be equal.
fn same(what: &'static str, left: usize, right: usize) -> Result<(), KernelError> {
    if left == right {
        Ok(())
    } else {
        Err(KernelError::Mismatch { what, left, right })
    }
}
