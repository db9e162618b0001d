//! The forms that kernels want activations in, and how rows of f32 are brought into them.

use half::bf16;
use sparamx_cpu::Cpu;
use sparamx_format::{LINE_BYTES, Quantizer};

/// How a kernel wants its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// f32, as they come.
    F32,
    /// Rounded to bf16 (nearest, ties to even) in groups of 16 rows; rows that fill up a group are zero.
    Bf16,
    /// Each row quantized to int8 by its own scale, in groups of 16 rows as above. Made of `x` by
    /// `scale = max |x| / 127` and `q = x * (127 / max |x|)`, rounded to the nearest integer, ties to even.
    I8,
    /// The levels of [`Activation::I8`], each in 16 bits, for multipliers that have no others.
    I16,
}

/// Rows of an AMX tile: bf16 and int8 activations come in whole tiles.
pub(crate) const ROW_GROUP: usize = 16;

/// k of one partial sum of int8 activations: the smallest group of scales.
pub(crate) const SUM_K: usize = 32;

impl Activation {
    pub(crate) const ALL: [Activation; 4] = [
        Activation::F32,
        Activation::Bf16,
        Activation::I8,
        Activation::I16,
    ];

    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Activation::F32 => 4,
            Activation::Bf16 | Activation::I16 => 2,
            Activation::I8 => 1,
        }
    }

    /// Bytes of a row of `k_padded` elements. A row of int8 goes on, after its elements, with its scale (f32) and the sums
    /// of its first 32, 64, 96 ... elements (i32), up to whole lines; one of int16 with its scale.
    pub(crate) const fn row_bytes(self, k_padded: usize) -> usize {
        match self {
            Activation::F32 | Activation::Bf16 => k_padded * self.bytes(),
            Activation::I16 => (k_padded * 2 + 4).next_multiple_of(LINE_BYTES),
            Activation::I8 => (k_padded + 4 + k_padded / SUM_K * 4).next_multiple_of(LINE_BYTES),
        }
    }

    /// Rows that must be there for `m` rows.
    pub(crate) const fn padded_rows(self, m: usize) -> usize {
        match self {
            Activation::F32 | Activation::I16 => m,
            Activation::Bf16 | Activation::I8 => m.next_multiple_of(ROW_GROUP),
        }
    }

    /// Writes one row of activations: `row` converted, then zeros up to `k_padded` elements. `out` is
    /// [`row_bytes`](Self::row_bytes) of those long. Plain Rust; inside a function for a level it becomes code of that level.
    #[inline(always)]
    pub(crate) fn write_row(self, row: &[f32], k_padded: usize, out: &mut [u8]) {
        let (filled, rest) = out.split_at_mut(row.len() * self.bytes());
        match self {
            Activation::F32 => bytemuck::cast_slice_mut::<u8, f32>(filled).copy_from_slice(row),
            Activation::Bf16 => {
                for (o, &v) in bytemuck::cast_slice_mut::<u8, u16>(filled)
                    .iter_mut()
                    .zip(row)
                {
                    *o = round_to_bf16(v);
                }
            }
            Activation::I8 => return quantize_row(row, k_padded, out),
            Activation::I16 => return quantize_row_wide(row, k_padded, out),
        }
        rest.fill(0);
    }
}

#[cfg(target_arch = "x86_64")]
sparamx_cpu::avx2_fns!(
    /// [`Activation::write_row`] in AVX2 code, several times faster than what every x86-64 can run.
    fn write_row_avx2(kind: Activation, row: &[f32], k_padded: usize, out: &mut [u8]) {
        kind.write_row(row, k_padded, out);
    }
);

/// Writes rows one after the other into `out`, as [`Activation::write_row`] does each.
pub(crate) fn write_rows<'r>(
    cpu: &Cpu,
    kind: Activation,
    rows: impl Iterator<Item = &'r [f32]>,
    k_padded: usize,
    out: &mut [u8],
) {
    let outs = out.chunks_mut(kind.row_bytes(k_padded));
    #[cfg(target_arch = "x86_64")]
    if cpu.avx2().is_some() {
        for (row, out) in rows.zip(outs) {
            // SAFETY: the token proves that the CPU has the level.
            unsafe { write_row_avx2(kind, row, k_padded, out) };
        }
        return;
    }
    let _ = cpu;
    for (row, out) in rows.zip(outs) {
        kind.write_row(row, k_padded, out);
    }
}
/// [`Activation::I8`]
#[inline(always)]
fn quantize_row(row: &[f32], k_padded: usize, out: &mut [u8]) {
    let quantizer = Quantizer::of_row(row);
    let (elements, rest) = out.split_at_mut(k_padded);
    elements[row.len()..].fill(0);
    for (q, &v) in elements.iter_mut().zip(row) {
        *q = quantizer.level(v) as u8;
    }
    let (scale, sums) = rest.split_at_mut(4);
    scale.copy_from_slice(&quantizer.scale.to_ne_bytes());
    let mut sum = 0i32;
    for (to, part) in sums.chunks_exact_mut(4).zip(elements.chunks_exact(SUM_K)) {
        sum += part.iter().map(|&q| i32::from(q as i8)).sum::<i32>();
        to.copy_from_slice(&sum.to_ne_bytes());
    }
}

/// [`Activation::I16`]
fn quantize_row_wide(row: &[f32], k_padded: usize, out: &mut [u8]) {
    let quantizer = Quantizer::of_row(row);
    let (elements, rest) = out.split_at_mut(2 * k_padded);
    let elements = bytemuck::cast_slice_mut::<u8, i16>(elements);
    elements[row.len()..].fill(0);
    for (q, &v) in elements.iter_mut().zip(row) {
        *q = i16::from(quantizer.level(v));
    }
    rest[..4].copy_from_slice(&quantizer.scale.to_ne_bytes());
}

/// The bits of the nearest bf16, ties to even. Written so that a compiler turns a loop of it into vector code.
#[inline(always)]
fn round_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if v.is_nan() {
        bf16::NAN.to_bits()
    } else {
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half() {
        for high in 0..=0xffffu32 {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let v = f32::from_bits(high << 16 | low);
                let want = bf16::from_f32(v);
                let got = bf16::from_bits(round_to_bf16(v));
                assert!(
                    got == want || got.is_nan() && want.is_nan(),
                    "{v:e}: {got:e} and not {want:e}"
                );
            }
        }
    }
}
