//! Moves bf16 elements between row-major rows and the lines of a strip.

use crate::shape::{LINE_ELEMS_BF16, STRIP_ROWS, TILE_LINES};

/// Columns of a tile: a pair for each of its lines.
pub(crate) const TILE_K: usize = 2 * TILE_LINES;
/// 16 lines of 32 elements: line `l`, element `2j + p` is row `j`, column `2l + p`.
pub(crate) type Tile = [u16; TILE_LINES * LINE_ELEMS_BF16];
pub(crate) const EMPTY_TILE: Tile = [0; TILE_LINES * LINE_ELEMS_BF16];

/// Fills `tile` with columns `col..col + 32` of up to 16 `rows` of `k` elements each; what lies outside is zero.
pub(crate) fn gather_tile(rows: &[u16], k: usize, col: usize, tile: &mut Tile) {
    if rows.len() < STRIP_ROWS * k || col + TILE_K > k {
        tile.fill(0);
    }
    for (j, row) in rows.chunks_exact(k).enumerate() {
        if let Some(part) = row.get(col..col + TILE_K) {
            for (line, pair) in tile
                .chunks_exact_mut(LINE_ELEMS_BF16)
                .zip(part.chunks_exact(2))
            {
                line[2 * j] = pair[0];
                line[2 * j + 1] = pair[1];
            }
        } else {
            for (c, &bits) in row[col..].iter().enumerate() {
                tile[c / 2 * LINE_ELEMS_BF16 + 2 * j + c % 2] = bits;
            }
        }
    }
}

/// Writes the lines of a tile to columns `col..col + 32` of up to 16 `rows` of `k` elements each; padding is dropped.
pub(crate) fn scatter_tile(tile: &[u16], rows: &mut [u16], k: usize, col: usize) {
    for (j, row) in rows.chunks_exact_mut(k).enumerate() {
        let end = k.min(col + TILE_K);
        for (c, bits) in row[col..end].iter_mut().enumerate() {
            *bits = tile[c / 2 * LINE_ELEMS_BF16 + 2 * j + c % 2];
        }
    }
}

/// Writes up to 16 `rows` of `k` elements as the lines of a strip, padding included.
pub(crate) fn gather_strip(rows: &[u16], k: usize, lines: &mut [u16]) {
    let mut tile = EMPTY_TILE;
    for (t, out) in lines.chunks_exact_mut(tile.len()).enumerate() {
        gather_tile(rows, k, t * TILE_K, &mut tile);
        out.copy_from_slice(&tile);
    }
}

/// The inverse of [`gather_strip`].
pub(crate) fn scatter_strip(lines: &[u16], rows: &mut [u16], k: usize) {
    for (t, tile) in lines.chunks_exact(EMPTY_TILE.len()).enumerate() {
        scatter_tile(tile, rows, k, t * TILE_K);
    }
}

/// Row and column of the first NaN or infinity in row-major `rows` of `k` elements.
pub(crate) fn first_not_finite(rows: &[u16], k: usize) -> Option<(usize, usize)> {
    let i = rows
        .iter()
        .position(|&bits| crate::finite::is_not_finite(bits))?;
    Some((i / k, i % k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strip_holds_pairs_of_columns_of_sixteen_rows() {
        for (n, k) in [(16usize, 32usize), (16, 64), (3, 33), (16, 31), (1, 1)] {
            let rows: Vec<u16> = (1..=(n * k) as u16).collect();
            let k_padded = k.next_multiple_of(TILE_K);
            let mut lines = vec![0xffff; STRIP_ROWS * k_padded];
            gather_strip(&rows, k, &mut lines);
            for (i, &bits) in lines.iter().enumerate() {
                let (line, element) = (i / LINE_ELEMS_BF16, i % LINE_ELEMS_BF16);
                let (row, col) = (element / 2, 2 * line + element % 2);
                let inside = row < n && col < k;
                assert_eq!(bits, if inside { rows[row * k + col] } else { 0 });
            }
            let mut back = vec![0; n * k];
            scatter_strip(&lines, &mut back, k);
            assert_eq!(back, rows);
        }
    }

    #[test]
    fn the_first_not_finite_element_is_named() {
        let rows = [0x3f80, 0, 0, 0, 0x7f80, 0x7fc0];
        assert_eq!(first_not_finite(&rows, 3), Some((1, 1)));
        assert_eq!(first_not_finite(&rows[..4], 2), None);
    }
}
