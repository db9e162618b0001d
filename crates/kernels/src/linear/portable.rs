//! Plain Rust, for any CPU.

use sparamx_format::{LINE_ELEMS_BF16, LINE_ELEMS_I8, STRIP_ROWS};

use super::chunk::Chunk;
use super::loops::{dense, panels};

/// Dense bf16 weights, one row at a time.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn dense_1x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    // SAFETY: `multiply` requires nothing of the CPU.
    unsafe { dense(chunk, multiply) }
}

/// Packed bf16 weights, expanded to panels.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn sparse_1x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    // SAFETY: `expand` and `multiply` require nothing of the CPU.
    unsafe { panels(chunk, scratch, expand, multiply) }
}

/// [`super::loops::Expand`]
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

/// [`super::loops::Multiply`]. Even and odd k are summed apart, as the vector kernels do, then added.
fn multiply(chunk: &Chunk<'_>, lines: &[u16], s: usize) {
    for i in 0..chunk.m {
        let [x] = chunk.f32_rows::<1>(i);
        // SAFETY: `f32_rows` gave a row of the chunk, which holds `k_padded` elements (`Chunk`, *rows*).
        let x = unsafe { std::slice::from_raw_parts(x, chunk.k_padded) };
        let (mut even, mut odd) = ([0f32; STRIP_ROWS], [0f32; STRIP_ROWS]);
        for (line, pair) in lines.chunks_exact(LINE_ELEMS_BF16).zip(x.chunks_exact(2)) {
            for j in 0..STRIP_ROWS {
                even[j] += f32::from_bits(u32::from(line[2 * j]) << 16) * pair[0];
                odd[j] += f32::from_bits(u32::from(line[2 * j + 1]) << 16) * pair[1];
            }
        }
        chunk.put(i, s, std::array::from_fn(|j| even[j] + odd[j]));
    }
}

/// Dense int8 weights, one row at a time.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn dense_i8_1x16(chunk: &Chunk<'_>, _scratch: &mut [u8]) {
    for s in chunk.strips.clone() {
        multiply_levels(chunk, chunk.dense_i8_strip(s), s);
    }
}

/// Packed int8 weights, expanded to lines of levels.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn sparse_i8_1x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let panel = bytemuck::cast_slice_mut(scratch);
    for s in chunk.strips.clone() {
        let (masks, values) = chunk.sparse_i8_strip(s);
        expand_levels(masks, values.iter().copied(), panel);
        multiply_levels(chunk, panel, s);
    }
}

/// Dense int4 weights, unpacked to lines of levels.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn dense_i4_1x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    let panel: &mut [i8] = bytemuck::cast_slice_mut(scratch);
    for s in chunk.strips.clone() {
        let pairs = chunk.dense_i4_strip(s).chunks_exact(LINE_ELEMS_I8);
        for (bytes, lines) in pairs.zip(panel.chunks_exact_mut(2 * LINE_ELEMS_I8)) {
            let (even, odd) = lines.split_at_mut(LINE_ELEMS_I8);
            for ((&codes, even), odd) in bytes.iter().zip(even).zip(odd) {
                *even = (codes & 15) as i8 - 8;
                *odd = (codes >> 4) as i8 - 8;
            }
        }
        multiply_levels(chunk, panel, s);
    }
}

/// Packed int4 weights, expanded to lines of levels.
///
/// # Safety
/// None is required; see [`Chunk`].
pub(crate) unsafe fn sparse_i4_1x16(chunk: &Chunk<'_>, scratch: &mut [u8]) {
    /// No code stands for zero, which is never stored.
    fn level(code: u8) -> i8 {
        code as i8 - if code < 8 { 8 } else { 7 }
    }
    let panel = bytemuck::cast_slice_mut(scratch);
    for s in chunk.strips.clone() {
        let (masks, values) = chunk.sparse_i4_strip(s);
        let levels = values.iter().flat_map(|v| [level(v & 15), level(v >> 4)]);
        expand_levels(masks, levels, panel);
        multiply_levels(chunk, panel, s);
    }
}

fn expand_levels(masks: &[u64], mut values: impl Iterator<Item = i8>, panel: &mut [i8]) {
    panel.fill(0);
    for (&mask, line) in masks.iter().zip(panel.chunks_exact_mut(LINE_ELEMS_I8)) {
        let mut rest = mask;
        while rest != 0 {
            line[rest.trailing_zeros() as usize] =
                values.next().expect("as many values as bits: validated");
            rest &= rest - 1;
        }
    }
}

/// All rows times a strip of levels: exact sums within a group of scales; groups are added up in f32, in order.
fn multiply_levels(chunk: &Chunk<'_>, lines: &[i8], s: usize) {
    let group = chunk.group_lines() * LINE_ELEMS_I8;
    let scales = chunk.strip_scales(s);
    for i in 0..chunk.m {
        let [row] = chunk.i8_rows::<1>(i);
        let scale = row.scale();
        // SAFETY: `i8_rows` gave a row of the chunk, which holds `k_padded` elements (`Chunk`, *rows*).
        let x = unsafe { std::slice::from_raw_parts(row.q(), chunk.k_padded) };
        let mut sums = [0f32; STRIP_ROWS];
        let groups = lines.chunks(group).zip(x.chunks(group / STRIP_ROWS));
        for (g, (lines, x)) in groups.enumerate() {
            let mut exact = [0i32; STRIP_ROWS];
            for (line, quad) in lines.chunks_exact(LINE_ELEMS_I8).zip(x.chunks_exact(4)) {
                for (exact, levels) in exact.iter_mut().zip(line.chunks_exact(4)) {
                    let products = levels.iter().zip(quad);
                    *exact += products
                        .map(|(&w, &x)| i32::from(w) * i32::from(x))
                        .sum::<i32>();
                }
            }
            for ((sum, exact), scale) in sums.iter_mut().zip(exact).zip(scales.group(g)) {
                *sum += exact as f32 * scale;
            }
        }
        chunk.put(i, s, sums.map(|sum| sum * scale));
    }
}
