//! Levels of 4 or 8 bits packed into 32-bit words, as compressed-tensors' `pack-quantized` and its zero points have them.
//!
//! A level is stored plus `2^(bits - 1)`, the first one of a word in its lowest bits. Every line of levels starts a new word;
//! what is left over of its last one is not read.

/// Words that a line of `levels` levels takes.
///
/// # Panics
/// If `bits` is neither 4 nor 8.
pub fn words(levels: usize, bits: u32) -> usize {
    levels.div_ceil(per_word(bits))
}

/// Level `i` of the line that starts at byte 0 of `line`, little-endian words.
///
/// # Panics
/// If `bits` is neither 4 nor 8 or the line is too short.
pub fn level(line: &[u8], i: usize, bits: u32) -> i8 {
    match bits {
        // A word is little-endian, so its levels are in the order of its bytes, and of the nibbles from low to high.
        4 => ((line[i / 2] >> (4 * (i % 2))) & 15) as i8 - 8,
        8 => (line[i] ^ 0x80) as i8,
        other => panic!("levels of {other} bits"),
    }
}

fn per_word(bits: u32) -> usize {
    assert!(bits == 4 || bits == 8, "levels of {bits} bits");
    (32 / bits) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of `pack_to_int32` of compressed-tensors: `[1, 2]` in 8 bits is 33409.
    #[test]
    fn the_example_of_the_package_unpacks() {
        let line = 33409i32.to_le_bytes();
        assert_eq!([0, 1].map(|i| level(&line, i, 8)), [1, 2]);
        assert_eq!(words(2, 8), 1);
    }

    #[test]
    fn all_levels_of_both_widths_come_back() {
        for bits in [4u32, 8] {
            let lowest = -(1i32 << (bits - 1));
            let levels: Vec<i32> = (lowest..-lowest).collect();
            let mut line = vec![0u32; words(levels.len(), bits)];
            for (i, &level) in levels.iter().enumerate() {
                let per_word = 32 / bits as usize;
                line[i / per_word] |= ((level - lowest) as u32) << (bits as usize * (i % per_word));
            }
            let bytes: Vec<u8> = line.iter().flat_map(|word| word.to_le_bytes()).collect();
            for (i, &expected) in levels.iter().enumerate() {
                assert_eq!(i32::from(level(&bytes, i, bits)), expected, "{bits} bits");
            }
        }
        assert_eq!((words(9, 4), words(8, 4), words(5, 8)), (2, 1, 2));
    }
}
