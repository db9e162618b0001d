//! Looking for the first element that must not be there, at the speed of memory.

/// Elements that are looked at together. Without an early exit inside a chunk the common case, nothing found, is vector code.
const CHUNK: usize = 1024;

/// Index of the first bad element.
#[inline]
pub(crate) fn first<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<usize> {
    let any_bad = |chunk: &[T]| chunk.iter().fold(false, |any, &value| any | bad(value));
    let chunk = values.chunks(CHUNK).position(any_bad)?;
    let start = chunk * CHUNK;
    let in_chunk = values[start..].iter().position(|&value| bad(value))?;
    Some(start + in_chunk)
}

/// Whether all elements are good.
#[inline]
pub(crate) fn all<T: Copy>(values: &[T], good: impl Fn(T) -> bool) -> bool {
    values.iter().fold(true, |all, &value| all & good(value))
}

/// Index of the first element that is not zero.
pub(crate) fn first_non_zero<T: Copy + PartialEq + Default>(values: &[T]) -> Option<usize> {
    values.iter().position(|&value| value != T::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_element_is_found_in_any_chunk() {
        for at in [0, 1023, 1024, 20_000] {
            let mut values = vec![1i8; 20_001];
            values[at] = i8::MIN;
            values[20_000] = i8::MIN;
            assert_eq!(first(&values, |value| value == i8::MIN), Some(at));
            assert!(!all(&values, |value| value != i8::MIN));
        }
        assert_eq!(first(&[], |_: u16| true), None);
        assert_eq!(first(&[1u16, 2], |value| value > 2), None);
        assert!(all(&[1u16, 2], |value| value <= 2));
    }
}
