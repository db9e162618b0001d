//! int4: levels by codes of half a byte, other ones in packed than in dense weights.

use std::ops::Range;

use safetensors::Dtype;

use super::codec::{Element, Quantized};
use crate::shape::{LINE_BYTES, MOST_LEVELS_K, TILE_LINES};
use crate::{ElementKind, Field, FormatError, Scales};

/// Levels by codes of half a byte, four columns to a line; the scales are of groups of columns.
///
/// Packed: -8 to -1 and 1 to 8 by 16 codes, two to a byte, the low nibble first: code `c` is level `c - 8` below 8 and
/// `c - 7` from 8 on. Dense: -8 to 7 by the level plus 8; two lines share 64 bytes: byte `i` of bytes `64t..64t + 64` of a
/// strip holds the code of element `i` of line `2t` in its low and of line `2t + 1` in its high nibble.
#[derive(Clone, Copy, Debug)]
pub enum Int4 {}

impl Int4 {
    /// The highest level; the lowest is -8.
    const fn highest(sparse: bool) -> i8 {
        if sparse { 8 } else { 7 }
    }

    /// The code of a level of a packed weight.
    #[inline(always)]
    fn code(level: i8) -> u8 {
        (level + if level < 0 { 8 } else { 7 }) as u8
    }

    /// The level of the dense code in the low nibble of `byte`.
    #[inline(always)]
    fn dense_level(byte: u8) -> i8 {
        (byte & 15) as i8 - 8
    }
}

impl Quantized for Int4 {}

impl Element for Int4 {
    type Value = i8;
    type Columns = [i8; 4];
    type Line = [i8; 64];
    type Mask = u64;
    type Unit = u8;
    type Scales = Scales;

    const KIND: ElementKind = ElementKind::Int4;
    const UNIT_DTYPE: Dtype = Dtype::U8;
    const PER_UNIT: usize = 2;
    const MOST_K: usize = MOST_LEVELS_K;
    const DENSE_HOLDS_ALL: bool = false;

    #[inline(always)]
    fn holds(level: i8, sparse: bool) -> bool {
        (level >= -8) & (level <= Self::highest(sparse))
    }

    fn refused(level: i8, row: usize, col: usize, sparse: bool) -> FormatError {
        FormatError::Level {
            row,
            col,
            level,
            lowest: -8,
            highest: Self::highest(sparse),
        }
    }

    #[inline(always)]
    fn to_f32(level: i8) -> f32 {
        f32::from(level)
    }

    fn check_scales(scales: &Scales, _sparse: bool) -> Result<(), FormatError> {
        scales.must_be_groups()
    }

    #[inline(always)]
    fn put(units: &mut [u8], at: usize, level: i8) {
        units[at / 2] |= Self::code(level) << (4 * (at % 2));
    }

    fn put_non_zero(units: &mut [u8], at: usize, levels: &[i8]) -> usize {
        // A tile at a time.
        let mut front = [0; Self::LINE_ELEMS * TILE_LINES];
        let mut at = at;
        for levels in levels.chunks(front.len()) {
            let mut count = 0;
            for &level in levels {
                // As in `move_to_front`.
                front[count] = level;
                count += usize::from(level != 0);
            }
            // A level that completes a byte, whole bytes, and one that begins the next.
            let (first, rest) = front[..count].split_at(count.min(at % 2));
            let (pairs, last) = rest.as_chunks::<2>();
            for &level in first {
                Self::put(units, at, level);
            }
            at += first.len();
            for (unit, &[low, high]) in units[at / 2..].iter_mut().zip(pairs) {
                *unit = Self::code(low) | Self::code(high) << 4;
            }
            at += 2 * pairs.len();
            for &level in last {
                Self::put(units, at, level);
            }
            at += last.len();
        }
        at
    }

    #[inline(always)]
    fn get(units: &[u8], at: usize) -> i8 {
        let code = units[at / 2] >> (4 * (at % 2)) & 15;
        code as i8 - if code < 8 { 8 } else { 7 }
    }

    /// Every nibble is a level, so there is only padding to check.
    fn check_stored(units: &[u8], used: Range<usize>) -> Result<(), FormatError> {
        let end = used.end;
        if end % 2 == 1 && units[end / 2] >> 4 != 0 {
            return Err(FormatError::Padding {
                field: Field::Values,
                index: end / 2,
            });
        }
        Ok(())
    }

    /// Every code is a level.
    fn check_dense(_strip: &[u8], _first: usize) -> Result<(), FormatError> {
        Ok(())
    }

    #[inline(always)]
    fn dense_unit(l: usize, e: usize) -> usize {
        l / 2 * LINE_BYTES + e
    }

    #[inline(always)]
    fn dense_value(strip: &[u8], l: usize, e: usize) -> i8 {
        Self::dense_level(strip[Self::dense_unit(l, e)] >> (4 * (l % 2)))
    }

    fn store_lines<R>(
        strip: &mut [u8],
        scratch: &mut Vec<i8>,
        fill: impl FnOnce(&mut [i8]) -> R,
    ) -> R {
        scratch.resize(2 * strip.len(), 0);
        let result = fill(scratch);
        // Levels out of range come here, too, and are refused after it.
        let code = |level: i8| level.wrapping_add(8) as u8;
        let pairs = scratch.chunks_exact(2 * Self::LINE_ELEMS);
        for (out, pair) in strip.chunks_exact_mut(LINE_BYTES).zip(pairs) {
            let (even, odd) = pair.split_at(Self::LINE_ELEMS);
            for ((byte, &even), &odd) in out.iter_mut().zip(even).zip(odd) {
                *byte = code(even) | code(odd) << 4;
            }
        }
        result
    }

    fn load_lines<'a>(strip: &'a [u8], scratch: &'a mut Vec<i8>) -> &'a [i8] {
        scratch.resize(2 * strip.len(), 0);
        let pairs = strip.chunks_exact(LINE_BYTES);
        for (out, pair) in scratch.chunks_exact_mut(2 * Self::LINE_ELEMS).zip(pairs) {
            let (even, odd) = out.split_at_mut(Self::LINE_ELEMS);
            for ((even, odd), &byte) in even.iter_mut().zip(odd).zip(pair) {
                (*even, *odd) = (Self::dense_level(byte), Self::dense_level(byte >> 4));
            }
        }
        scratch
    }
}
