//! Sizes that follow from the shape of a weight, computed once with checked arithmetic.

use crate::FormatError;

/// Output rows of a strip: the rows of one AMX tile of B in VNNI order, and the lanes of an AVX-512 accumulator.
pub const STRIP_ROWS: usize = 16;
/// Bytes of a dense line: one row of an AMX tile, one AVX-512 register, one cache line.
pub const LINE_BYTES: usize = 64;
/// Elements of a bf16 line: 16 rows times a pair of columns.
pub const LINE_ELEMS_BF16: usize = LINE_BYTES / 2;
/// Elements of a line of int8 or int4 weights: 16 rows times four columns.
pub const LINE_ELEMS_I8: usize = LINE_BYTES;
/// Columns covered by one entry of the offsets.
pub const BLOCK_K: usize = 512;
/// Most columns of a quantized weight: sums of int8 products are exact in 32 bits up to `127 * 127 * 2^17`.
pub(crate) const MOST_LEVELS_K: usize = 1 << 17;
/// Readable zero bytes after the last value, so that a 64-byte load from any value stays inside.
pub const SLACK_BYTES: usize = 64;
/// Lines of a tile: K is padded so that a strip is a whole number of tiles.
pub(crate) const TILE_LINES: usize = 16;

/// The strip16 sizes of an `[n, k]` weight whose lines hold `line_elems` elements.
///
/// Made by [`Geometry::new`], which proves that `dense_elems` elements plus the slack fit the address space;
/// no product of these fields overflows after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub n: usize,
    pub k: usize,
    pub k_padded: usize,
    pub strips: usize,
    pub line_elems: usize,
    pub lines_per_strip: usize,
    pub lines_per_block: usize,
    pub blocks_per_strip: usize,
}

impl Geometry {
    /// # Errors
    /// [`FormatError::TooManyColumns`] if there are more than `most_k` columns, [`FormatError::EmptyShape`] if a size is 0,
    /// [`FormatError::ShapeTooLarge`] if the padded weight does not fit the address space.
    pub fn new(n: usize, k: usize, line_elems: usize, most_k: usize) -> Result<Self, FormatError> {
        if k > most_k {
            return Err(FormatError::TooManyColumns {
                found: k,
                most: most_k,
            });
        }
        if n == 0 || k == 0 {
            return Err(FormatError::EmptyShape { n, k });
        }
        let too_large = FormatError::ShapeTooLarge { n, k };
        let columns_per_line = line_elems / STRIP_ROWS;
        let strips = n.div_ceil(STRIP_ROWS);
        let Some(k_padded) = k.checked_next_multiple_of(columns_per_line * TILE_LINES) else {
            return Err(too_large);
        };
        let lines_per_strip = k_padded / columns_per_line;
        let dense_bytes = strips
            .checked_mul(lines_per_strip)
            .and_then(|lines| lines.checked_mul(LINE_BYTES))
            .and_then(|bytes| bytes.checked_add(SLACK_BYTES));
        if dense_bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(too_large);
        }
        Ok(Self {
            n,
            k,
            k_padded,
            strips,
            line_elems,
            lines_per_strip,
            lines_per_block: BLOCK_K / columns_per_line,
            blocks_per_strip: k_padded.div_ceil(BLOCK_K),
        })
    }

    /// The sizes of a quantized weight.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn for_levels(n: usize, k: usize) -> Result<Self, FormatError> {
        Self::new(n, k, LINE_ELEMS_I8, MOST_LEVELS_K)
    }

    /// Elements of one strip, padding included.
    pub fn strip_elems(&self) -> usize {
        self.lines_per_strip * self.line_elems
    }

    /// Elements of the whole weight, padding included.
    pub fn dense_elems(&self) -> usize {
        self.strips * self.strip_elems()
    }

    /// Logical rows of strip `strip`: 16, or fewer in the last one.
    pub fn rows_in_strip(&self, strip: usize) -> usize {
        STRIP_ROWS.min(self.n - strip * STRIP_ROWS)
    }

    /// Entries of the offsets that mean something: one for every (strip, block).
    pub fn offset_count(&self) -> usize {
        self.strips * self.blocks_per_strip
    }

    /// Entries of the offsets as stored: rounded up to whole 64-byte lines.
    pub fn offset_count_padded(&self) -> usize {
        self.offset_count()
            .next_multiple_of(LINE_BYTES / size_of::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_padded_to_strips_and_tiles() {
        let shape = Geometry::new(17, 513, LINE_ELEMS_BF16, usize::MAX).unwrap();
        assert_eq!(
            shape,
            Geometry {
                n: 17,
                k: 513,
                k_padded: 544,
                strips: 2,
                line_elems: 32,
                lines_per_strip: 272,
                lines_per_block: 256,
                blocks_per_strip: 2,
            }
        );
        assert_eq!(shape.dense_elems(), 32 * 544);
        assert_eq!(shape.rows_in_strip(0), 16);
        assert_eq!(shape.rows_in_strip(1), 1);
        assert_eq!(shape.offset_count(), 4);
        assert_eq!(shape.offset_count_padded(), 8);
    }

    #[test]
    fn wide_lines_pad_k_to_64() {
        let shape = Geometry::new(16, 65, 64, usize::MAX).unwrap();
        assert_eq!((shape.k_padded, shape.lines_per_strip), (128, 32));
        assert_eq!(shape.lines_per_block, 128);
    }

    #[test]
    fn too_many_columns_of_levels() {
        const { assert!(127 * 127 * MOST_LEVELS_K < 1 << 31) };
        assert!(Geometry::for_levels(1, MOST_LEVELS_K).is_ok());
        let error = Geometry::for_levels(1, MOST_LEVELS_K + 1).unwrap_err();
        assert!(
            matches!(error, FormatError::TooManyColumns { .. }),
            "{error}"
        );
    }

    #[test]
    fn empty_shape() {
        for (n, k) in [(0, 1), (1, 0), (0, 0)] {
            let error = Geometry::new(n, k, LINE_ELEMS_BF16, usize::MAX).unwrap_err();
            assert!(matches!(error, FormatError::EmptyShape { .. }), "{error}");
        }
    }

    #[test]
    fn shape_too_large() {
        for (n, k) in [
            (usize::MAX, 1),
            (1, usize::MAX),
            (usize::MAX, usize::MAX),
            (1 << 40, 1 << 40),
            (1 << 31, 1 << 31),
        ] {
            let error = Geometry::new(n, k, LINE_ELEMS_BF16, usize::MAX).unwrap_err();
            assert!(
                matches!(error, FormatError::ShapeTooLarge { .. }),
                "{error}"
            );
        }
    }
}
