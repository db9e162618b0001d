//! Moves elements between row-major rows and the lines of a strip.
//!
//! With `P` columns to a line, 2 of bf16 and 4 of levels, element `P j + p` of line `l` is row `j`, column `P l + p`; a tile is
//! 16 lines, so `16 P` columns.

use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use rayon::prelude::*;

use crate::element::Element;
use crate::error::check_length;
use crate::shape::{Geometry, STRIP_ROWS, TILE_LINES};
use crate::{Field, FormatError};

/// The values of a tile.
pub(crate) struct Tile<E: Element>([E::Line; TILE_LINES]);

impl<E: Element> Tile<E> {
    /// Columns of a tile.
    pub const COLUMNS: usize = E::COLUMNS * TILE_LINES;

    /// Of zeros.
    pub fn zeroed() -> Self {
        Self(Zeroable::zeroed())
    }

    /// Its values, line after line.
    pub fn values(&self) -> &[E::Value] {
        cast_slice(&self.0)
    }

    /// Takes columns from `col` on of up to 16 `rows` of `k` elements each; what lies outside is zero.
    pub fn gather(&mut self, rows: &[E::Value], k: usize, col: usize) {
        gather_tile::<E>(rows, k, col, cast_slice_mut(&mut self.0));
    }
}

/// Fills `tile` with columns `col..col + 16 P` of up to 16 `rows` of `k` elements each; what lies outside is zero.
fn gather_tile<E: Element>(rows: &[E::Value], k: usize, col: usize, tile: &mut [E::Value]) {
    let tile_k = Tile::<E>::COLUMNS;
    if rows.len() < STRIP_ROWS * k || col + tile_k > k {
        tile.fill(E::Value::default());
    }
    for (j, row) in rows.chunks_exact(k).enumerate() {
        if let Some(part) = row.get(col..col + tile_k) {
            let columns: &[E::Columns] = cast_slice(part);
            for (line, columns) in tile.chunks_exact_mut(E::LINE_ELEMS).zip(columns) {
                cast_slice_mut::<_, E::Columns>(line)[j] = *columns;
            }
        } else {
            for (c, &element) in row[col..].iter().enumerate() {
                tile[c / E::COLUMNS * E::LINE_ELEMS + E::COLUMNS * j + c % E::COLUMNS] = element;
            }
        }
    }
}

/// Writes up to 16 `rows` of `k` elements as the lines of a strip, padding included.
pub(crate) fn gather_strip<E: Element>(rows: &[E::Value], k: usize, lines: &mut [E::Value]) {
    let tiles = lines.chunks_exact_mut(E::LINE_ELEMS * TILE_LINES);
    for (t, tile) in tiles.enumerate() {
        gather_tile::<E>(rows, k, t * Tile::<E>::COLUMNS, tile);
    }
}

/// The inverse of [`gather_strip`]; padding is dropped.
pub(crate) fn scatter_strip<E: Element>(lines: &[E::Value], rows: &mut [E::Value], k: usize) {
    let tiles = lines.chunks_exact(E::LINE_ELEMS * TILE_LINES);
    for (t, tile) in tiles.enumerate() {
        let col = t * Tile::<E>::COLUMNS;
        let end = k.min(col + Tile::<E>::COLUMNS);
        for (j, row) in rows.chunks_exact_mut(k).enumerate() {
            for (c, element) in row[col..end].iter_mut().enumerate() {
                *element = tile[c / E::COLUMNS * E::LINE_ELEMS + E::COLUMNS * j + c % E::COLUMNS];
            }
        }
    }
}

/// The rows of strip `s`, row-major, of what `decode` makes of it.
pub(crate) fn rows_of_strip<E: Element>(
    shape: &Geometry,
    s: usize,
    decode: impl FnOnce(&mut [E::Value]),
) -> Vec<E::Value> {
    let mut lines = vec![E::Value::default(); shape.strip_elems()];
    decode(&mut lines);
    let mut rows = vec![E::Value::default(); shape.rows_in_strip(s) * shape.k];
    scatter_strip::<E>(&lines, &mut rows, shape.k);
    rows
}

/// The rows of a weight, row-major `[n, k]`, of what `decode` makes of each strip.
pub(crate) fn rows_of_strips<E: Element>(
    shape: &Geometry,
    decode: impl Fn(usize, &mut [E::Value]) + Sync,
) -> Vec<E::Value> {
    let mut rows = vec![E::Value::default(); shape.n * shape.k];
    rows.par_chunks_mut(STRIP_ROWS * shape.k)
        .enumerate()
        .for_each_init(
            || vec![E::Value::default(); shape.strip_elems()],
            |lines, (s, rows)| {
                decode(s, lines);
                scatter_strip::<E>(lines, rows, shape.k);
            },
        );
    rows
}

/// Checks that `rows` has the logical size.
pub(crate) fn check_rows<T>(rows: &[T], shape: &Geometry) -> Result<(), FormatError> {
    check_length(Field::Rows, shape.n * shape.k, rows.len())
}

/// The error for the first value of `rows` that no such weight has, of which there is one.
pub(crate) fn refused<E: Element>(rows: &[E::Value], k: usize, sparse: bool) -> FormatError {
    let bad = |&value: &E::Value| !E::holds(value, sparse);
    let i = rows.iter().position(bad);
    let i = i.expect("a strip with a value that is refused was seen");
    E::refused(rows[i], i / k, i % k, sparse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Bf16, Int8};

    /// Every element of a strip is where the specification says, and comes back.
    fn check<E: Element>(n: usize, k: usize, value: impl Fn(usize) -> E::Value) {
        let p = E::COLUMNS;
        let rows: Vec<E::Value> = (1..=n * k).map(value).collect();
        let k_padded = k.next_multiple_of(p * TILE_LINES);
        let mut lines = vec![rows[0]; STRIP_ROWS * k_padded];
        gather_strip::<E>(&rows, k, &mut lines);
        for (i, &element) in lines.iter().enumerate() {
            let (line, e) = (i / (p * STRIP_ROWS), i % (p * STRIP_ROWS));
            let (row, col) = (e / p, p * line + e % p);
            let inside = row < n && col < k;
            let expected = if inside {
                rows[row * k + col]
            } else {
                E::Value::default()
            };
            assert_eq!(element, expected);
        }
        let mut back = vec![E::Value::default(); n * k];
        scatter_strip::<E>(&lines, &mut back, k);
        assert_eq!(back, rows);
    }

    #[test]
    fn a_strip_holds_groups_of_columns_of_sixteen_rows() {
        for (n, k) in [(16, 32), (16, 64), (3, 33), (3, 67), (16, 31), (1, 1)] {
            check::<Bf16>(n, k, |i| i as u16);
            check::<Int8>(n, k, |i| (i % 251) as i8);
        }
    }

    #[test]
    fn the_first_value_that_is_refused_is_named() {
        let rows = [0x3f80, 0, 0, 0, 0x7f80, 0x7fc0];
        let error = refused::<Bf16>(&rows, 3, true);
        assert!(
            matches!(
                error,
                FormatError::NotFinite {
                    row: 1,
                    col: 1,
                    bits: 0x7f80
                }
            ),
            "{error}"
        );
        let error = refused::<Int8>(&[1, -127, -128], 2, false);
        assert!(
            matches!(error, FormatError::Level { row: 1, col: 0, .. }),
            "{error}"
        );
    }
}
