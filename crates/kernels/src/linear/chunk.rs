//! What a linear kernel is given: one thread's share of a call.

use std::ops::Range;

use half::bf16;
use sparamx_format::{DenseBf16, LINE_ELEMS_BF16, STRIP_ROWS, SparseBf16};

/// How a kernel wants its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// f32, as they come.
    F32,
    /// Rounded to bf16 (nearest, ties to even) in groups of [`ROW_GROUP`] rows; rows that fill up a group are zero.
    Bf16,
}

/// Rows of an AMX tile: bf16 activations come in whole tiles.
pub(crate) const ROW_GROUP: usize = 16;

impl Activation {
    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Activation::F32 => 4,
            Activation::Bf16 => 2,
        }
    }

    /// Rows that must be there for `m` rows.
    pub(crate) const fn padded_rows(self, m: usize) -> usize {
        match self {
            Activation::F32 => m,
            Activation::Bf16 => m.next_multiple_of(ROW_GROUP),
        }
    }

    /// Writes one row of a panel of activations: `row` converted, then zeros up to the end of `out`, which has room for
    /// K rounded up to what the weight has.
    pub(crate) fn write_row(self, row: &[f32], out: &mut [u8]) {
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
        }
        rest.fill(0);
    }
}

/// The bits of the nearest bf16, ties to even. Written so that a compiler turns a loop of it into vector code.
fn round_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if v.is_nan() {
        bf16::NAN.to_bits()
    } else {
        rounded
    }
}

/// Activations ready for a kernel: row `i` starts `i * stride` elements after `ptr` and holds K elements rounded up to a
/// multiple of 32; those beyond K are finite (the weight is zero there).
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    pub ptr: *const u8,
    /// Elements from one row to the next.
    pub stride: usize,
    pub kind: Activation,
}

/// Strips of a weight, in whatever form they lie in memory.
#[derive(Clone, Copy)]
pub(crate) enum Strips<'a> {
    /// All lines of all strips.
    DenseBf16(&'a [u16]),
    /// Packed.
    SparseBf16(&'a SparseBf16),
}

impl<'a> From<&'a DenseBf16> for Strips<'a> {
    fn from(w: &'a DenseBf16) -> Self {
        Strips::DenseBf16(w.lines())
    }
}

/// One thread's share of a call: `strips` of a weight for all rows of activations.
pub(crate) struct Chunk<'a> {
    pub x: Activations,
    /// Rows of activations.
    pub m: usize,
    /// K rounded up to a multiple of 32.
    pub k_padded: usize,
    pub weight: Strips<'a>,
    pub strips: Range<usize>,
    pub out: Out<'a>,
}

// SAFETY: the pointers of a chunk are to activations that nobody writes during a call and to outputs of which each strip
// belongs to one chunk only (schedule.rs cuts them so).
unsafe impl Sync for Chunk<'_> {}

impl<'a> Chunk<'a> {
    /// Lines of a strip.
    pub fn lines(&self) -> usize {
        self.k_padded / 2
    }

    /// Elements of a dense strip.
    pub fn strip_elems(&self) -> usize {
        self.lines() * LINE_ELEMS_BF16
    }

    /// The lines of dense strip `s`.
    ///
    /// # Panics
    /// If the weight is not dense or has no such strip: a row of the catalog names the wrong format.
    pub fn dense_strip(&self, s: usize) -> &'a [u16] {
        match self.weight {
            Strips::DenseBf16(lines) => &lines[s * self.strip_elems()..][..self.strip_elems()],
            Strips::SparseBf16(_) => panic!("a kernel for dense weights was given a packed one"),
        }
    }

    /// Masks and values of packed strip `s`. The values run on beyond the strip's own, to the end of the tensor, whose last
    /// 64 bytes are slack: a vector that begins at a value of the strip is inside.
    ///
    /// # Panics
    /// If the weight is not packed or has no such strip.
    pub fn sparse_strip(&self, s: usize) -> (&'a [u32], &'a [u16]) {
        match self.weight {
            Strips::SparseBf16(w) => {
                let start = w.offsets()[s * w.blocks_per_strip()] as usize;
                (
                    &w.masks()[s * self.lines()..][..self.lines()],
                    &w.values()[start..],
                )
            }
            Strips::DenseBf16(_) => panic!("a kernel for packed weights was given a dense one"),
        }
    }

    /// Pointers to `R` rows of f32 activations from row `first` on.
    pub fn f32_rows<const R: usize>(&self, first: usize) -> [*const f32; R] {
        assert!(
            self.x.kind == Activation::F32 && first + R <= self.m,
            "rows {first}..{} of {}",
            first + R,
            self.m
        );
        std::array::from_fn(|r| {
            self.x
                .ptr
                .cast::<f32>()
                .wrapping_add((first + r) * self.x.stride)
        })
    }

    /// Pointers to `R` rows of bf16 activations from row `first` on.
    pub fn bf16_rows<const R: usize>(&self, first: usize) -> [*const u16; R] {
        let rows = Activation::Bf16.padded_rows(self.m);
        assert!(
            self.x.kind == Activation::Bf16 && first + R <= rows,
            "rows {first}..{} of {rows}",
            first + R
        );
        std::array::from_fn(|r| {
            self.x
                .ptr
                .cast::<u16>()
                .wrapping_add((first + r) * self.x.stride)
        })
    }
}

/// Where results go: `y[i][j] = sum + bias[j]` for `j < n`.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a> {
    pub ptr: *mut f32,
    /// Elements from one row to the next.
    pub stride: usize,
    pub n: usize,
    pub bias: Option<&'a [f32]>,
}

impl Out<'_> {
    /// Writes the 16 sums of row `i` and strip `s`, but those beyond N.
    ///
    /// # Safety
    /// Row `i` exists, strip `s` begins below N, and nobody else touches that part of the row now.
    #[inline(always)]
    pub unsafe fn put(&self, i: usize, s: usize, sums: [f32; STRIP_ROWS]) {
        let first = s * STRIP_ROWS;
        let count = STRIP_ROWS.min(self.n - first);
        // SAFETY: by the caller's promise `count` elements are there, and this thread's alone.
        let y =
            unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.stride + first), count) };
        let mut sums = sums;
        if let Some(bias) = self.bias {
            for (sum, b) in sums.iter_mut().zip(&bias[first..][..count]) {
                *sum += b;
            }
        }
        match y.first_chunk_mut() {
            // All but the last strip of some weights: of known length, so stored without a call of memcpy.
            Some(y) => *y = sums,
            None => y.copy_from_slice(&sums[..count]),
        }
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
