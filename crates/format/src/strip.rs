//! Moves elements between row-major rows and the lines of a strip.
//!
//! `P` is the number of columns of a line: 2 for bf16, 4 for bytes and levels. A line has `16 P` elements, element
//! `P j + p` of line `l` is row `j`, column `P l + p`; a tile is 16 lines, so `16 P` columns.

use crate::shape::{STRIP_ROWS, TILE_LINES};

/// Fills `tile` with columns `col..col + 16 P` of up to 16 `rows` of `k` elements each; what lies outside is zero.
pub(crate) fn gather_tile<const P: usize, T: Copy + Default>(
    rows: &[T],
    k: usize,
    col: usize,
    tile: &mut [T],
) {
    let tile_k = P * TILE_LINES;
    if rows.len() < STRIP_ROWS * k || col + tile_k > k {
        tile.fill(T::default());
    }
    for (j, row) in rows.chunks_exact(k).enumerate() {
        if let Some(part) = row.get(col..col + tile_k) {
            let (columns, _) = part.as_chunks::<P>();
            for (line, columns) in tile.chunks_exact_mut(P * STRIP_ROWS).zip(columns) {
                line.as_chunks_mut::<P>().0[j] = *columns;
            }
        } else {
            for (c, &element) in row[col..].iter().enumerate() {
                tile[c / P * P * STRIP_ROWS + P * j + c % P] = element;
            }
        }
    }
}

/// Writes the lines of a tile to columns `col..col + 16 P` of up to 16 `rows` of `k` elements each; padding is dropped.
fn scatter_tile<const P: usize, T: Copy>(tile: &[T], rows: &mut [T], k: usize, col: usize) {
    for (j, row) in rows.chunks_exact_mut(k).enumerate() {
        let end = k.min(col + P * TILE_LINES);
        for (c, element) in row[col..end].iter_mut().enumerate() {
            *element = tile[c / P * P * STRIP_ROWS + P * j + c % P];
        }
    }
}

/// Writes up to 16 `rows` of `k` elements as the lines of a strip, padding included.
pub(crate) fn gather_strip<const P: usize, T: Copy + Default>(
    rows: &[T],
    k: usize,
    lines: &mut [T],
) {
    let tile_elems = P * STRIP_ROWS * TILE_LINES;
    for (t, tile) in lines.chunks_exact_mut(tile_elems).enumerate() {
        gather_tile::<P, T>(rows, k, t * P * TILE_LINES, tile);
    }
}

/// The inverse of [`gather_strip`].
pub(crate) fn scatter_strip<const P: usize, T: Copy>(lines: &[T], rows: &mut [T], k: usize) {
    let tile_elems = P * STRIP_ROWS * TILE_LINES;
    for (t, tile) in lines.chunks_exact(tile_elems).enumerate() {
        scatter_tile::<P, T>(tile, rows, k, t * P * TILE_LINES);
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

    /// Every element of a strip is where the specification says, and comes back.
    fn check<const P: usize>(n: usize, k: usize) {
        let rows: Vec<u16> = (1..=(n * k) as u16).collect();
        let k_padded = k.next_multiple_of(P * TILE_LINES);
        let mut lines = vec![0xffff; STRIP_ROWS * k_padded];
        gather_strip::<P, _>(&rows, k, &mut lines);
        for (i, &element) in lines.iter().enumerate() {
            let (line, e) = (i / (P * STRIP_ROWS), i % (P * STRIP_ROWS));
            let (row, col) = (e / P, P * line + e % P);
            let inside = row < n && col < k;
            assert_eq!(element, if inside { rows[row * k + col] } else { 0 });
        }
        let mut back = vec![0; n * k];
        scatter_strip::<P, _>(&lines, &mut back, k);
        assert_eq!(back, rows);
    }

    #[test]
    fn a_strip_holds_groups_of_columns_of_sixteen_rows() {
        for (n, k) in [(16, 32), (16, 64), (3, 33), (3, 67), (16, 31), (1, 1)] {
            check::<2>(n, k);
            check::<4>(n, k);
        }
    }

    #[test]
    fn the_first_not_finite_element_is_named() {
        let rows = [0x3f80, 0, 0, 0, 0x7f80, 0x7fc0];
        assert_eq!(first_not_finite(&rows, 3), Some((1, 1)));
        assert_eq!(first_not_finite(&rows[..4], 2), None);
    }
}
