//! Row-major matrices of f32 that are borrowed from somebody's buffer.

use crate::KernelError;

/// `rows x cols` values to read; row `i` starts at element `i * stride`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

/// `rows x cols` values to write; row `i` starts at element `i * stride`. Elements between rows are left alone.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

fn check(len: usize, rows: usize, cols: usize, stride: usize) -> Result<(), KernelError> {
    let end = rows
        .checked_sub(1)
        .and_then(|last| last.checked_mul(stride))
        .map(|start| start.checked_add(cols));
    let fits = match end {
        None => rows == 0,
        Some(end) => end.is_some_and(|end| end <= len) && (stride >= cols || rows == 1),
    };
    if fits {
        Ok(())
    } else {
        Err(KernelError::RowsTooShort {
            rows,
            cols,
            stride,
            len,
        })
    }
}

impl<'a> Rows<'a> {
    /// Rows without gaps between them.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Rows `stride` elements apart.
    ///
    /// # Errors
    /// [`KernelError::RowsTooShort`] if they do not fit in `data` or overlap.
    pub fn with_stride(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, KernelError> {
        check(data.len(), rows, cols, stride)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.data[i * self.stride..][..self.cols]
    }

    /// From the start of row 0 on, whatever lies between the rows included.
    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }
}

impl<'a> RowsMut<'a> {
    /// Rows without gaps between them.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Rows `stride` elements apart.
    ///
    /// # Errors
    /// [`KernelError::RowsTooShort`] if they do not fit in `data` or overlap.
    pub fn with_stride(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, KernelError> {
        check(data.len(), rows, cols, stride)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        self.as_rows().row(i)
    }

    /// The same rows, to read.
    pub fn as_rows(&self) -> Rows<'_> {
        Rows {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    /// Start of row 0.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_must_fit_and_not_overlap() {
        let d = [0f32; 10];
        for (rows, cols, stride, fits) in [
            (2, 5, 5, true),
            (2, 4, 6, true),
            (2, 5, 6, false),
            (2, 5, 4, false),
            (0, 99, 99, true),
            (1, 10, 0, true),
            (3, usize::MAX, usize::MAX, false),
        ] {
            assert_eq!(
                Rows::with_stride(&d, rows, cols, stride).is_ok(),
                fits,
                "{rows} {cols} {stride}"
            );
        }
    }
}
