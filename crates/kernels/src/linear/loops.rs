//! The loops that kernels share: over strips, over panels, over blocks of rows and of k.

use sparamx_format::STRIP_ROWS;

use super::chunk::Chunk;

/// Expands a packed strip, given by its masks and by the values from its first on, to the dense lines of `panel`. Requires a
/// level of instructions, and a strip's masks and values.
pub(crate) type Expand = unsafe fn(masks: &[u32], values: &[u16], panel: &mut [u16]);
/// Multiplies all rows of the chunk by strip `s`, whose dense lines are given. Requires a level of instructions, and a strip of
/// the chunk.
pub(crate) type Multiply = unsafe fn(chunk: &Chunk<'_>, lines: &[u16], s: usize);

/// Bytes of scratch that [`panels`] needs.
pub(crate) fn panel_bytes(k_padded: usize) -> usize {
    k_padded * STRIP_ROWS * 2
}

/// Bytes of a strip of int8 or int4 weights as lines of bytes.
pub(crate) fn int_panel_bytes(k_padded: usize) -> usize {
    k_padded * STRIP_ROWS
}

/// No scratch at all.
pub(crate) fn no_bytes(_k_padded: usize) -> usize {
    0
}

/// Expands each strip once, into a panel that stays in the L2 cache (128 KiB for K = 4096), and multiplies all rows by it.
///
/// # Safety
/// The level of instructions that `expand` and `multiply` require.
pub(crate) unsafe fn panels(
    chunk: &Chunk<'_>,
    scratch: &mut [u8],
    expand: Expand,
    multiply: Multiply,
) {
    let panel = &mut bytemuck::cast_slice_mut(scratch)[..chunk.strip_elems()];
    for s in chunk.strips.clone() {
        let (masks, values) = chunk.sparse_strip(s);
        // SAFETY: the level is required; masks and values are a strip's (`Chunk`, *values*), the panel is as long as its lines.
        unsafe {
            expand(masks, values, panel);
            multiply(chunk, panel, s);
        }
    }
}

/// Lines `from..to` of strip `s`, for rows from `first_row` on.
pub(crate) struct Span {
    pub s: usize,
    pub from: usize,
    pub to: usize,
    pub first_row: usize,
}

/// A kernel of [`blocked`].
pub(crate) trait Blocked {
    /// A place in a strip.
    type Lines;

    /// Lines at a time where all rows are multiplied at once, so that nothing is kept.
    const ONE_PASS_LINES: usize;

    /// How many of `rows` rows to multiply by fresh lines; 0 if all are to be multiplied by kept ones.
    fn first_rows(rows: usize) -> usize {
        Self::rows_of(rows)
    }

    /// How many of `rest` rows to take at a time.
    fn rows_of(rest: usize) -> usize;

    /// The first line of strip `s`.
    fn lines(&self, s: usize) -> Self::Lines;

    /// Multiplies `count` rows from `i` on by the lines of `span`, which `lines` yields; with `keep` writes them to where
    /// `kept` finds them.
    ///
    /// # Safety
    /// The CPU has the kernel's features. *rows*: there are `count` rows from `i` on, among the [`BLOCK_ROWS`] from
    /// `span.first_row` on; `count` is of `first_rows` or `rows_of`. *span*: its strip is of the chunk and has its lines, which
    /// `lines` yields next; it is no longer than [`BLOCK_LINES`] or, without `keep`, than `ONE_PASS_LINES`; the span before it
    /// was computed before.
    unsafe fn fresh(
        &self,
        span: &Span,
        lines: &mut Self::Lines,
        i: usize,
        count: usize,
        keep: bool,
    );

    /// Multiplies `count` rows from `i` on by the lines of `span`, which were kept. `next` is the line after them.
    ///
    /// # Safety
    /// As `fresh`, which kept the lines of the span.
    unsafe fn kept(&self, span: &Span, next: &Self::Lines, i: usize, count: usize);
}

/// Lines of a block of k. Kept at 128 bytes a line they are half of an L1 cache of 32 KiB; the activations of the rows under
/// way lie beside them.
pub(crate) const BLOCK_LINES: usize = 128;

/// Rows of a block. Their sums, which wait in memory between blocks of k, take 32 KiB at 128 bytes a row; to expand a line
/// again for each block is a fiftieth of the work on it.
pub(crate) const BLOCK_ROWS: usize = 256;

/// The loops of a kernel for any M whose weights cost something to read: for each block of rows, strip and block of k, the
/// first rows are multiplied by lines as they come, which are kept in the L1 cache for the other rows.
///
/// # Safety
/// The CPU has the kernel's features; strips have `all` lines.
pub(crate) unsafe fn blocked<B: Blocked>(chunk: &Chunk<'_>, all: usize, kernel: &B) {
    for first_row in (0..chunk.m).step_by(BLOCK_ROWS) {
        let end_row = chunk.m.min(first_row + BLOCK_ROWS);
        let first_rows = B::first_rows(end_row - first_row);
        let keep = first_row + first_rows < end_row;
        let step = if keep { BLOCK_LINES } else { B::ONE_PASS_LINES };
        for s in chunk.strips.clone() {
            let mut lines = kernel.lines(s);
            for from in (0..all).step_by(step) {
                let to = all.min(from.saturating_add(step));
                let span = Span {
                    s,
                    from,
                    to,
                    first_row,
                };
                // SAFETY: the features are required. `first_row..end_row` are rows below M, at most BLOCK_ROWS of them, counted
                // out by `first_rows` and `rows_of`; the span ends at `all`, and `lines` has yielded what comes before it.
                unsafe {
                    kernel.fresh(&span, &mut lines, first_row, first_rows, keep);
                    let mut i = first_row + first_rows;
                    while i < end_row {
                        let count = B::rows_of(end_row - i);
                        kernel.kept(&span, &lines, i, count);
                        i += count;
                    }
                }
            }
        }
    }
}

/// Multiplies all rows by dense strips where they lie.
///
/// # Safety
/// The level of instructions that `multiply` requires.
pub(crate) unsafe fn dense(chunk: &Chunk<'_>, multiply: Multiply) {
    for s in chunk.strips.clone() {
        // SAFETY: the level is required; lines and `s` are of one strip of the chunk.
        unsafe { multiply(chunk, chunk.dense_strip(s), s) };
    }
}
