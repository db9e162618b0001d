//! Blocks of quantized tensors: consecutive elements of a row with common scales; an element is its level times its scale, and in Q4_1
//! the minimum of its block more.

use half::f16;
use rayon::prelude::*;

use crate::FormatError;

/// Elements of a block of Q8_0, Q4_0 or Q4_1, and how many share a scale.
pub(super) const ELEMS: usize = 32;
/// Scale (f16) and 32 levels of 8 bits.
pub(super) const Q8_0_BYTES: usize = 2 + ELEMS;
/// Scale (f16) and 16 pairs of levels: byte i has element i in its low and element i + 16 in its high nibble, plus 8.
pub(super) const Q4_0_BYTES: usize = 2 + ELEMS / 2;
/// Scale and minimum (f16 each) and 16 pairs of levels of 0 to 15, in the order of Q4_0.
pub(super) const Q4_1_BYTES: usize = 4 + ELEMS / 2;
/// Elements of a block of Q6_K.
pub(super) const Q6_K_ELEMS: usize = 256;
/// How many of them share a scale.
const Q6_K_GROUP: usize = 16;
/// Low 4 bits of the levels, their high 2 bits, a factor of 8 bits for every 16 elements, and the f16 that it multiplies.
pub(super) const Q6_K_BYTES: usize = Q6_K_ELEMS / 2 + Q6_K_ELEMS / 4 + Q6_K_ELEMS / Q6_K_GROUP + 2;

/// The blocks of a tensor, decoded.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Row-major.
    pub levels: Vec<i8>,
    /// One for every 32 levels, or 16 of Q6_K.
    pub scales: Vec<f32>,
}

/// Decodes blocks of type Q8_0. A rest that is no whole block is left out, here and below.
///
/// # Errors
/// [`FormatError::OutOfMemory`].
pub fn q8_0(bytes: &[u8]) -> Result<Blocks, FormatError> {
    decode::<Q8_0_BYTES, ELEMS, 1>(bytes, |block, levels, scales| {
        scales[0] = scale(block[0], block[1]);
        for (level, &byte) in levels.iter_mut().zip(&block[2..]) {
            *level = byte as i8;
        }
    })
}

/// Decodes blocks of type Q4_0; levels are -8 to 7.
///
/// # Errors
/// [`FormatError::OutOfMemory`].
pub fn q4_0(bytes: &[u8]) -> Result<Blocks, FormatError> {
    decode::<Q4_0_BYTES, ELEMS, 1>(bytes, |block, levels, scales| {
        scales[0] = scale(block[0], block[1]);
        let (low, high) = levels.split_at_mut(ELEMS / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
            *low = (byte & 15) as i8 - 8;
            *high = (byte >> 4) as i8 - 8;
        }
    })
}

/// Decodes blocks of type Q4_1 to elements, as no form of levels here has minimums.
///
/// # Errors
/// [`FormatError::OutOfMemory`].
pub fn q4_1(bytes: &[u8]) -> Result<Vec<f32>, FormatError> {
    let (blocks, _) = bytes.as_chunks::<Q4_1_BYTES>();
    let mut values = zeroed(blocks.len() * ELEMS)?;
    let (value_blocks, _) = values.as_chunks_mut::<ELEMS>();
    value_blocks
        .par_iter_mut()
        .zip(blocks)
        .for_each(|(values, block)| {
            let (d, min) = (scale(block[0], block[1]), scale(block[2], block[3]));
            let (low, high) = values.split_at_mut(ELEMS / 2);
            for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
                *low = f32::from(byte & 15) * d + min;
                *high = f32::from(byte >> 4) * d + min;
            }
        });
    Ok(values)
}

/// Decodes blocks of type Q6_K, which files of Q4_0 have for the output head; levels are -32 to 31.
///
/// Of every 128 elements, the low nibbles of 64 bytes are elements 0 to 63 and their high nibbles 64 to 127; the two bits of
/// 32 more bytes at shift 2 s belong to elements 32 s to 32 s + 31.
///
/// # Errors
/// [`FormatError::OutOfMemory`].
pub fn q6_k(bytes: &[u8]) -> Result<Blocks, FormatError> {
    const GROUPS: usize = Q6_K_ELEMS / Q6_K_GROUP;
    decode::<Q6_K_BYTES, Q6_K_ELEMS, GROUPS>(bytes, |block, levels, scales| {
        let (low, rest) = block.split_at(Q6_K_ELEMS / 2);
        let (high, rest) = rest.split_at(Q6_K_ELEMS / 4);
        let common = scale(rest[GROUPS], rest[GROUPS + 1]);
        for (scale, &factor) in scales.iter_mut().zip(rest) {
            *scale = common * f32::from(factor as i8);
        }
        for (element, level) in levels.iter_mut().enumerate() {
            let (half, element) = (element / 128, element % 128);
            let low = low[64 * half + element % 64] >> (4 * (element / 64));
            let high = high[32 * half + element % 32] >> (2 * (element / 32));
            *level = (low & 15 | (high & 3) << 4) as i8 - 32;
        }
    })
}

fn scale(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Decodes blocks of `BYTES` bytes to `ELEMS` levels and `SCALES` scales.
fn decode<const BYTES: usize, const ELEMS: usize, const SCALES: usize>(
    bytes: &[u8],
    block: impl Fn(&[u8; BYTES], &mut [i8; ELEMS], &mut [f32; SCALES]) + Sync,
) -> Result<Blocks, FormatError> {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let mut levels = zeroed(blocks.len() * ELEMS)?;
    let mut scales = zeroed(blocks.len() * SCALES)?;
    let (level_blocks, _) = levels.as_chunks_mut::<ELEMS>();
    let (scale_blocks, _) = scales.as_chunks_mut::<SCALES>();
    level_blocks
        .par_iter_mut()
        .zip(scale_blocks)
        .zip(blocks)
        .for_each(|((levels, scales), bytes)| block(bytes, levels, scales));
    Ok(Blocks { levels, scales })
}

/// Zeros, or an error where memory is refused: a file decides how many.
fn zeroed<T: Copy + Default>(len: usize) -> Result<Vec<T>, FormatError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| FormatError::OutOfMemory {
            bytes: len.saturating_mul(size_of::<T>()),
        })?;
    values.resize(len, T::default());
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_is_a_scale_and_levels() {
        let mut bytes = f16::from_f32(1.5).to_le_bytes().to_vec();
        bytes.extend((0..32u8).map(|i| i.wrapping_sub(16)));
        bytes.extend([0xff; 20]);
        let blocks = q8_0(&bytes).unwrap();
        assert_eq!(blocks.scales, [1.5]);
        assert_eq!(blocks.levels, (-16..16).collect::<Vec<i8>>());
    }

    #[test]
    fn q4_0_has_the_second_half_in_high_nibbles() {
        let mut bytes = f16::from_f32(-2.0).to_le_bytes().to_vec();
        bytes.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let blocks = q4_0(&bytes).unwrap();
        let expected: Vec<i8> = (-8..8).chain((-8..8).rev()).collect();
        assert_eq!((blocks.levels, blocks.scales), (expected, vec![-2.0]));
    }

    #[test]
    fn q4_1_adds_the_minimum_of_its_block() {
        let mut bytes = Vec::new();
        for (scale, min) in [(0.5, -3.0), (-1.0, 0.25)] {
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(f16::from_f32(min).to_le_bytes());
            bytes.extend((0..16u8).map(|i| i | (15 - i) << 4));
        }
        bytes.extend([0xff; Q4_1_BYTES - 1]);
        let values = q4_1(&bytes).unwrap();
        let levels = || (0..16).chain((0..16).rev()).map(|level| level as f32);
        let first = levels().map(|level| level * 0.5 - 3.0);
        let expected: Vec<f32> = first.chain(levels().map(|level| 0.25 - level)).collect();
        assert_eq!(values, expected);
    }

    /// Two blocks of arbitrary bytes; the hash is that of what `gguf.quants.dequantize` of the Python package makes of them, in
    /// f32.
    #[test]
    fn q6_k_is_what_the_package_says() {
        let mut bytes: Vec<u8> = (0..2 * Q6_K_BYTES)
            .map(|i| (i * 37 + i / 7 + 11) as u8)
            .collect();
        for block in bytes.chunks_mut(Q6_K_BYTES) {
            block[Q6_K_BYTES - 2..].copy_from_slice(&f16::from_f32(0.0625).to_le_bytes());
        }
        let blocks = q6_k(&bytes).unwrap();
        let values = blocks.levels.iter().enumerate();
        let values =
            values.map(|(i, &level)| f32::from(level) * blocks.scales[i / Q6_K_GROUP] + 0.0);
        let hash = values
            .flat_map(f32::to_le_bytes)
            .fold(0xcbf29ce484222325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3)
            });
        assert_eq!(hash, 0x441c28c652065c11);
    }
}
