//! Output rows that several threads write, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

use crate::RowsMut;

/// The rows of a [`RowsMut`], to be handed out in parts that do not overlap.
pub(crate) struct DisjointRows<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the elements are f32, exclusively borrowed for 'a, and `part` requires that no two threads hold the same ones.
unsafe impl Sync for DisjointRows<'_> {}

impl<'a> DisjointRows<'a> {
    pub(crate) fn new(mut rows: RowsMut<'a>) -> Self {
        Self {
            rows: rows.rows(),
            cols: rows.cols(),
            stride: rows.stride(),
            start: rows.as_mut_ptr(),
            borrowed: PhantomData,
        }
    }

    /// Elements in a row.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Elements `cols` of row `row`.
    ///
    /// # Safety
    /// No element of it may be in another part that is in use.
    ///
    /// # Panics
    /// If there are no such elements.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub(crate) unsafe fn part(&self, row: usize, cols: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "{cols:?} of {} columns",
            self.cols
        );
        // SAFETY: row and columns are inside the borrowed rows (asserted); the caller keeps others away from them.
        unsafe {
            let start = self.start.add(row * self.stride + cols.start);
            std::slice::from_raw_parts_mut(start, cols.len())
        }
    }
}
