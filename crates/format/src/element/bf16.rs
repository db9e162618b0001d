//! bf16: every finite value; +0 is what is left out.

use std::ops::Range;

use safetensors::Dtype;

use super::codec::{Element, move_to_front};
use crate::{ElementKind, FormatError, scan};

/// bf16 values by their bits, two columns to a line. -0.0 has bits 0x8000 and is a stored value.
#[derive(Clone, Copy, Debug)]
pub enum Bf16 {}

/// Exponent bits: all set in infinities and NaN.
const EXPONENT: u16 = 0x7f80;

#[inline(always)]
fn is_not_finite(bits: u16) -> bool {
    bits & EXPONENT == EXPONENT
}

impl Element for Bf16 {
    type Value = u16;
    type Columns = [u16; 2];
    type Line = [u16; 32];
    type Mask = u32;
    type Unit = u16;
    type Scales = ();

    const KIND: ElementKind = ElementKind::Bf16;
    const UNIT_DTYPE: Dtype = Dtype::BF16;
    const PER_UNIT: usize = 1;
    const MOST_K: usize = usize::MAX;

    #[inline(always)]
    fn holds(bits: u16, _sparse: bool) -> bool {
        !is_not_finite(bits)
    }

    fn refused(bits: u16, row: usize, col: usize, _sparse: bool) -> FormatError {
        FormatError::NotFinite { row, col, bits }
    }

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    fn check_scales((): &(), _sparse: bool) -> Result<(), FormatError> {
        Ok(())
    }

    #[inline(always)]
    fn put(units: &mut [u16], at: usize, bits: u16) {
        units[at] = bits;
    }

    #[inline(always)]
    fn put_non_zero(units: &mut [u16], at: usize, values: &[u16]) -> usize {
        move_to_front(values, units, at)
    }

    #[inline(always)]
    fn get(units: &[u16], at: usize) -> u16 {
        units[at]
    }

    fn check_stored(units: &[u16], used: Range<usize>) -> Result<(), FormatError> {
        let first = used.start;
        match scan::first(&units[used], |bits| is_not_finite(bits) | (bits == 0)) {
            None => Ok(()),
            Some(i) => Err(FormatError::BadValue {
                index: first + i,
                bits: units[first + i],
            }),
        }
    }

    fn check_dense(strip: &[u16], first: usize) -> Result<(), FormatError> {
        match scan::first(strip, is_not_finite) {
            None => Ok(()),
            Some(i) => Err(FormatError::BadValue {
                index: first + i,
                bits: strip[i],
            }),
        }
    }

    #[inline(always)]
    fn dense_unit(l: usize, e: usize) -> usize {
        l * Self::LINE_ELEMS + e
    }

    #[inline(always)]
    fn dense_value(strip: &[u16], l: usize, e: usize) -> u16 {
        strip[Self::dense_unit(l, e)]
    }

    #[inline(always)]
    fn store_lines<R>(
        strip: &mut [u16],
        _scratch: &mut Vec<u16>,
        fill: impl FnOnce(&mut [u16]) -> R,
    ) -> R {
        fill(strip)
    }

    #[inline(always)]
    fn load_lines<'a>(strip: &'a [u16], _scratch: &'a mut Vec<u16>) -> &'a [u16] {
        strip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_is_everything_below_the_last_exponent() {
        let step = if cfg!(miri) { 61 } else { 1 };
        for bits in (0..=u16::MAX).step_by(step) {
            let finite = half::bf16::from_bits(bits).is_finite();
            assert_eq!(Bf16::holds(bits, true), finite, "{bits:#06x}");
            let stored = finite && bits != 0;
            assert_eq!(Bf16::check_stored(&[1, bits], 0..2).is_ok(), stored);
            assert_eq!(Bf16::check_dense(&[1, bits], 0).is_ok(), finite);
        }
    }
}
