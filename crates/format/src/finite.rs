//! Tests of bf16 bits that must run at memory speed.

/// Exponent bits of bf16: all set in infinities and NaN.
const EXPONENT: u16 = 0x7f80;

/// True if the bits are an infinity or NaN.
pub(crate) fn is_not_finite(bits: u16) -> bool {
    bits & EXPONENT == EXPONENT
}

/// True if no element is infinite or NaN. No early exit: the loop is to become vector code.
pub(crate) fn all_finite(values: &[u16]) -> bool {
    !values
        .iter()
        .fold(false, |bad, &bits| bad | is_not_finite(bits))
}

/// Index of the first element that may not be stored as a value: not finite, or +0.
pub(crate) fn first_bad_value(values: &[u16]) -> Option<usize> {
    let is_bad = |bits: u16| is_not_finite(bits) | (bits == 0);
    // Without an early exit inside a chunk the common case, nothing found, is vector code.
    const CHUNK: usize = 1024;
    let chunk = values
        .chunks(CHUNK)
        .position(|chunk| chunk.iter().fold(false, |bad, &bits| bad | is_bad(bits)))?;
    let start = chunk * CHUNK;
    values[start..]
        .iter()
        .position(|&bits| is_bad(bits))
        .map(|i| start + i)
}

/// Index of the first element that is not zero.
pub(crate) fn first_non_zero<T: Copy + PartialEq + Default>(values: &[T]) -> Option<usize> {
    values.iter().position(|&value| value != T::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_is_everything_below_the_last_exponent() {
        let step = if cfg!(miri) { 61 } else { 1 };
        for bits in (0..=u16::MAX).step_by(step) {
            let finite = half::bf16::from_bits(bits).is_finite();
            assert_eq!(all_finite(&[0, bits, 0]), finite, "{bits:#06x}");
            let stored = finite && bits != 0;
            assert_eq!(first_bad_value(&[1, bits]), (!stored).then_some(1));
        }
    }

    #[test]
    fn the_first_bad_value_is_found_in_any_chunk() {
        for at in [0, 1023, 1024, 2999] {
            let mut values = vec![0x3f80; 3000];
            values[at] = 0;
            values[2999] = 0x7fc0;
            assert_eq!(first_bad_value(&values), Some(at));
        }
        assert_eq!(first_bad_value(&[]), None);
    }
}
