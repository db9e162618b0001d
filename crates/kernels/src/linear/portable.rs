//! Plain Rust, for any CPU.

use sparamx_format::{LINE_ELEMS_BF16, STRIP_ROWS};

use super::chunk::Chunk;
use super::schedule::{dense, panels};

/// Dense bf16 weights, one row at a time.
///
/// # Safety
/// A chunk as its documentation says.
pub(crate) unsafe fn dense_1x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { dense(chunk, multiply) }
}

/// Packed bf16 weights, expanded to panels.
///
/// # Safety
/// A chunk as its documentation says.
pub(crate) unsafe fn sparse_1x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { panels(chunk, scratch, expand, multiply) }
}

/// [`super::schedule::Expand`]
fn expand(masks: &[u32], values: &[u16], panel: &mut [u16]) {
    panel.fill(0);
    let mut values = values.iter();
    for (&mask, line) in masks.iter().zip(panel.chunks_exact_mut(LINE_ELEMS_BF16)) {
        let mut rest = mask;
        while rest != 0 {
            line[rest.trailing_zeros() as usize] =
                *values.next().expect("as many values as bits: validated");
            rest &= rest - 1;
        }
    }
}

/// Even and odd k are summed apart, as the vector kernels do, then added.
unsafe fn multiply(chunk: &Chunk<'_>, lines: &[u16], s: usize) {
    for i in 0..chunk.m {
        let [x] = chunk.f32_rows::<1>(i);
        // SAFETY: a row of activations holds k_padded elements.
        let x = unsafe { std::slice::from_raw_parts(x, chunk.k_padded) };
        let (mut even, mut odd) = ([0f32; STRIP_ROWS], [0f32; STRIP_ROWS]);
        for (line, pair) in lines.chunks_exact(LINE_ELEMS_BF16).zip(x.chunks_exact(2)) {
            for j in 0..STRIP_ROWS {
                even[j] += f32::from_bits(u32::from(line[2 * j]) << 16) * pair[0];
                odd[j] += f32::from_bits(u32::from(line[2 * j + 1]) << 16) * pair[1];
            }
        }
        // SAFETY: row i and strip s are the chunk's.
        unsafe {
            chunk
                .out
                .put(i, s, std::array::from_fn(|j| even[j] + odd[j]))
        };
    }
}
