//! Sum of two matrices.

use super::{RowOp, for_each_row, same};
use crate::simd::Lanes;
use crate::{KernelError, Rows, RowsMut, Runtime};

/// `x += y`, both `[M, N]`.
///
/// # Errors
/// [`KernelError::Mismatch`] if the shapes differ.
pub fn add(rt: &Runtime, x: RowsMut<'_>, y: Rows<'_>) -> Result<(), KernelError> {
    same("rows of x and of y", x.rows(), y.rows())?;
    same("columns of x and of y", x.cols(), y.cols())?;
    for_each_row(rt, x, &Add { y });
    Ok(())
}

struct Add<'a> {
    y: Rows<'a>,
}

impl RowOp for Add<'_> {
    #[inline(always)]
    fn row<L: Lanes>(&self, l: L, i: usize, x: &mut [f32]) {
        for (x, y) in x.chunks_mut(L::LEN).zip(self.y.row(i).chunks(L::LEN)) {
            l.store_some(l.add(l.load_some(x, 0.0), l.load_some(y, 0.0)), x);
        }
    }
}
