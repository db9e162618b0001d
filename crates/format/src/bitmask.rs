//! Tensors in the form `sparse-bitmask` of compressed-tensors: a bit for every element and the elements that are not zero.
//!
//! Four tensors make one up: `shape` (i64, the dense shape), `compressed` (the elements in row-major order), `bitmask` (u8
//! `[rows, ceil(cols / 8)]`, bit j of byte b is column 8 b + j, bits after the last column are 0) and `row_offsets` (i64, for
//! every row the number of elements before it). A tensor of one dimension is one row, its bitmask has one dimension and its
//! offset none. What the tensors are called depends on the version of the package; see `docs/checkpoints.md`.

use rayon::prelude::*;
use safetensors::Dtype;

use crate::FormatError;
use crate::container::{TensorOut, TensorView};

/// A tensor in this form, whose parts fit together by their sizes; the bits are checked when it is expanded.
#[derive(Clone, Debug)]
pub struct BitmaskTensor<'a> {
    shape: Vec<usize>,
    rows: usize,
    cols: usize,
    dtype: Dtype,
    element_bytes: usize,
    values: &'a [u8],
    bitmask: &'a [u8],
    offsets: Option<&'a [u8]>,
}

impl<'a> BitmaskTensor<'a> {
    /// Puts the parts together. `sparse-24-bitmask` has no `row_offsets`, and its `shape` and `compressed` have a dimension
    /// more.
    ///
    /// # Errors
    /// [`FormatError::Bitmask`] for a part whose element type or size does not follow from `shape`.
    pub fn new(
        shape: &TensorView<'a>,
        compressed: &TensorView<'a>,
        bitmask: &TensorView<'a>,
        row_offsets: Option<&TensorView<'a>>,
    ) -> Result<Self, FormatError> {
        let sizes = sizes(shape)?;
        let (rows, cols) = match sizes[..] {
            [n] => (1, n),
            [rows, cols] => (rows, cols),
            _ => return Err(bad("shape", format!("{sizes:?} has not one or two sizes"))),
        };
        let line_bytes = cols.div_ceil(8);
        let expected = rows.checked_mul(line_bytes);
        if bitmask.dtype != Dtype::U8 || Some(bitmask.bytes.len()) != expected {
            let found = format!("{:?} of type {}", bitmask.shape, bitmask.dtype);
            return Err(bad(
                "bitmask",
                format!("it is {found}, shape {sizes:?} asks for [{rows}, {line_bytes}] of U8"),
            ));
        }
        let bits = compressed.dtype.bitsize();
        if !matches!(bits, 8 | 16 | 32 | 64) {
            let reason = format!("element type {} cannot be read", compressed.dtype);
            return Err(bad("compressed", reason));
        }
        if let Some(offsets) = row_offsets.filter(|offsets| {
            offsets.dtype != Dtype::I64 || Some(offsets.bytes.len()) != rows.checked_mul(8)
        }) {
            let found = format!("{:?} of type {}", offsets.shape, offsets.dtype);
            return Err(bad(
                "row_offsets",
                format!("it is {found}, shape {sizes:?} asks for [{rows}] of I64"),
            ));
        }
        Ok(Self {
            shape: sizes,
            rows,
            cols,
            dtype: compressed.dtype,
            element_bytes: bits / 8,
            values: compressed.bytes,
            bitmask: bitmask.bytes,
            offsets: row_offsets.map(|offsets| offsets.bytes),
        })
    }

    /// The dense shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements that are stored.
    pub fn nnz(&self) -> usize {
        self.values.len() / self.element_bytes
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        let offsets = self.offsets.map_or(0, <[u8]>::len);
        self.values.len() + self.bitmask.len() + offsets + 8 * self.shape.len()
    }

    /// The dense tensor, row-major and little endian; rows are filled in parallel.
    ///
    /// # Errors
    /// [`FormatError::Bitmask`] if bits after the last column are set, the number of set bits is not that of the elements, or
    /// an offset is not where the bits of the rows before put it; [`FormatError::OutOfMemory`].
    pub fn expand(&self) -> Result<Vec<u8>, FormatError> {
        let starts = self.starts()?;
        // Eight elements at most for every byte of the bitmask, so a file cannot ask for much more than it has.
        let bytes = self.rows * self.cols * self.element_bytes;
        let mut dense = Vec::new();
        dense
            .try_reserve_exact(bytes)
            .map_err(|_| FormatError::OutOfMemory { bytes })?;
        dense.resize(bytes, 0);
        match self.element_bytes {
            1 => self.fill::<1>(&starts, &mut dense),
            2 => self.fill::<2>(&starts, &mut dense),
            4 => self.fill::<4>(&starts, &mut dense),
            _ => self.fill::<8>(&starts, &mut dense),
        }
        Ok(dense)
    }

    fn lines(&self) -> impl IndexedParallelIterator<Item = &[u8]> {
        self.bitmask.par_chunks_exact(self.cols.div_ceil(8))
    }

    /// Where the elements of each row start, checked.
    fn starts(&self) -> Result<Vec<usize>, FormatError> {
        // All bits of the last byte, unless columns end inside it.
        let tail = 0xffu8
            .checked_shl(self.cols as u32 % 8)
            .filter(|&tail| tail != 0xff);
        let counts: Vec<Option<usize>> = self
            .lines()
            .map(|line| {
                let clean = line
                    .last()
                    .zip(tail)
                    .is_none_or(|(last, tail)| last & tail == 0);
                clean.then(|| line.iter().map(|byte| byte.count_ones() as usize).sum())
            })
            .collect();
        let mut starts = Vec::with_capacity(self.rows);
        let mut start = 0;
        for (row, count) in counts.into_iter().enumerate() {
            let count = count.ok_or_else(|| {
                let cols = self.cols;
                bad("bitmask", format!("row {row} has bits after column {cols}"))
            })?;
            if let Some(found) = self.offset(row).filter(|&found| found != start as i64) {
                return Err(bad(
                    "row_offsets",
                    format!("that of row {row} is {found}, the bitmask puts it at {start}"),
                ));
            }
            starts.push(start);
            start += count;
        }
        if start != self.nnz() {
            let found = self.nnz();
            return Err(bad(
                "compressed",
                format!("it has {found} elements, the bitmask has {start} bits"),
            ));
        }
        Ok(starts)
    }

    fn offset(&self, row: usize) -> Option<i64> {
        let bytes = self.offsets?[row * 8..].first_chunk()?;
        Some(i64::from_le_bytes(*bytes))
    }

    /// Puts the elements of SIZE bytes where the bits are.
    fn fill<const SIZE: usize>(&self, starts: &[usize], dense: &mut [u8]) {
        let (values, _) = self.values.as_chunks::<SIZE>();
        let (dense, _) = dense.as_chunks_mut::<SIZE>();
        dense
            .par_chunks_exact_mut(self.cols)
            .zip(self.lines())
            .zip(starts)
            .for_each(|((row, line), &start)| {
                let mut values = values[start..].iter();
                for (elements, &byte) in row.chunks_mut(8).zip(line) {
                    let mut bits = byte;
                    while bits != 0 {
                        let Some(value) = values.next() else { return };
                        elements[bits.trailing_zeros() as usize] = *value;
                        bits &= bits - 1;
                    }
                }
            });
    }
}

/// The sizes in a `shape` part: none is 0 and their product fits the address space in bytes of any element type.
fn sizes(shape: &TensorView<'_>) -> Result<Vec<usize>, FormatError> {
    if shape.dtype != Dtype::I64 {
        return Err(bad(
            "shape",
            format!("element type {}, expected I64", shape.dtype),
        ));
    }
    // There are two at most: what else the bytes could hold is not read.
    if !(1..=2).contains(&(shape.bytes.len() / 8)) {
        return Err(bad(
            "shape",
            format!("it is {:?}, expected one or two sizes", shape.shape),
        ));
    }
    let (sizes, _) = shape.bytes.as_chunks::<8>();
    let sizes: Vec<i64> = sizes.iter().map(|&size| i64::from_le_bytes(size)).collect();
    let product = sizes.iter().try_fold(64usize, |all, &size| {
        let size = usize::try_from(size).ok().filter(|&size| size > 0)?;
        all.checked_mul(size)
    });
    if product.is_none() {
        return Err(bad("shape", format!("{sizes:?} is no shape of a weight")));
    }
    Ok(sizes.into_iter().map(|size| size as usize).collect())
}

fn bad(part: &'static str, reason: String) -> FormatError {
    FormatError::Bitmask { part, reason }
}

/// A bf16 matrix in this form, to be written.
#[derive(Clone, Debug)]
pub struct BitmaskOut {
    shape: [i64; 2],
    values: Vec<u16>,
    bitmask: Vec<u8>,
    offsets: Vec<i64>,
}

impl BitmaskOut {
    /// Takes `n` rows of `k` bf16 values. Zeros are left out, negative ones too, as compressed-tensors does.
    ///
    /// # Panics
    /// If `rows` has not `n * k` elements.
    pub fn pack(rows: &[u16], n: usize, k: usize) -> Self {
        assert_eq!(rows.len(), n * k, "{n} rows of {k}");
        let line_bytes = k.div_ceil(8);
        let mut bitmask = vec![0u8; n * line_bytes];
        let values: Vec<Vec<u16>> = rows
            .par_chunks(k.max(1))
            .zip(bitmask.par_chunks_mut(line_bytes.max(1)))
            .map(|(row, line)| {
                let mut values = Vec::new();
                for (column, &bits) in row.iter().enumerate() {
                    // All bits but the sign.
                    if bits & 0x7fff != 0 {
                        line[column / 8] |= 1 << (column % 8);
                        values.push(bits);
                    }
                }
                values
            })
            .collect();
        let offsets = values.iter().scan(0, |start, row| {
            let offset = *start;
            *start += row.len() as i64;
            Some(offset)
        });
        Self {
            shape: [n as i64, k as i64],
            offsets: offsets.collect(),
            values: values.concat(),
            bitmask,
        }
    }

    /// Elements that are not zero.
    pub fn nnz(&self) -> usize {
        self.values.len()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.values) + self.bitmask.len() + size_of_val(&*self.offsets) + 16
    }

    /// The tensors, named `prefix.shape` and so on.
    pub fn tensors(&self, prefix: &str) -> Vec<TensorOut<'_>> {
        let (n, k) = (self.offsets.len(), self.shape[1] as usize);
        let part = |suffix: &str, dtype, shape, data| {
            TensorOut::new(format!("{prefix}.{suffix}"), dtype, shape, data)
        };
        let bytes = bytemuck::cast_slice(&self.shape);
        vec![
            part("shape", Dtype::I64, vec![2], bytes),
            part(
                "compressed",
                Dtype::BF16,
                vec![self.values.len()],
                bytemuck::cast_slice(&self.values),
            ),
            part("bitmask", Dtype::U8, vec![n, k.div_ceil(8)], &self.bitmask),
            part(
                "row_offsets",
                Dtype::I64,
                vec![n],
                bytemuck::cast_slice(&self.offsets),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, shape: &[usize], bytes: &'static [u8]) -> TensorView<'static> {
        TensorView {
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    fn leak<const N: usize>(values: &[i64; N]) -> &'static [u8] {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.leak()
    }

    type Parts = [TensorView<'static>; 4];
    type Change<'a> = &'a dyn Fn(&mut Parts);

    /// A 2 x 10 matrix: columns 0 and 9 of row 0, column 3 of row 1.
    fn parts() -> Parts {
        [
            view(Dtype::I64, &[2], leak(&[2, 10])),
            view(Dtype::BF16, &[3], &[1, 0, 2, 0, 3, 0]),
            view(Dtype::U8, &[2, 2], &[0b0000_0001, 0b10, 0b0000_1000, 0]),
            view(Dtype::I64, &[2], leak(&[0, 2])),
        ]
    }

    fn expand(
        [shape, compressed, bitmask, offsets]: &[TensorView<'static>; 4],
    ) -> Result<Vec<u8>, FormatError> {
        BitmaskTensor::new(shape, compressed, bitmask, Some(offsets))?.expand()
    }

    #[test]
    fn elements_are_where_the_bits_are() {
        let dense = expand(&parts()).unwrap();
        let elements: Vec<u8> = dense.chunks(2).map(|e| e[0]).collect();
        assert_eq!(
            elements,
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn one_dimension_is_one_row() {
        let shape = view(Dtype::I64, &[1], leak(&[3]));
        let values = view(Dtype::F32, &[1], &[0, 0, 128, 63]);
        let bitmask = view(Dtype::U8, &[1], &[0b100]);
        let offsets = view(Dtype::I64, &[], leak(&[0]));
        let tensor = BitmaskTensor::new(&shape, &values, &bitmask, Some(&offsets)).unwrap();
        assert_eq!((tensor.shape(), tensor.nnz()), (&[3][..], 1));
        assert_eq!(
            tensor.expand().unwrap(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63]
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let rows: Vec<u16> = (0..5 * 19)
            .map(|i| if i % 3 == 0 { 0x8000 * (i % 2) } else { i })
            .collect();
        let out = BitmaskOut::pack(&rows, 5, 19);
        let written = out.tensors("m");
        let sum: usize = written.iter().map(TensorOut::bytes).sum();
        assert_eq!(sum, out.bytes());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        crate::container::write(&path, &written, &Default::default()).unwrap();
        let file = crate::container::TensorFile::open(&path).unwrap();
        let part = |suffix: &str| file.tensor(&format!("m.{suffix}")).unwrap();
        let offsets = part("row_offsets");
        let (shape, values, bitmask) = (part("shape"), part("compressed"), part("bitmask"));
        let tensor = BitmaskTensor::new(&shape, &values, &bitmask, Some(&offsets)).unwrap();
        assert_eq!((tensor.bytes(), tensor.nnz()), (out.bytes(), out.nnz()));
        let expected: Vec<u8> = rows
            .iter()
            .map(|&v| if v == 0x8000 { 0 } else { v })
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(tensor.expand().unwrap(), expected);
    }

    #[test]
    fn every_contradiction_is_refused_by_its_part() {
        let refused = |change: Change| {
            let mut parts = parts();
            change(&mut parts);
            expand(&parts)
                .expect_err("it contradicts itself")
                .to_string()
        };
        let cases: [(&str, Change); 12] = [
            ("'shape': element type", &|p| p[0].dtype = Dtype::I32),
            ("'shape': it is [0]", &|p| {
                p[0] = view(Dtype::I64, &[0], &[])
            }),
            ("'shape': [-2, 10]", &|p| p[0].bytes = leak(&[-2, 10])),
            ("'shape': [0, 10]", &|p| p[0].bytes = leak(&[0, 10])),
            ("'shape': [4611686018427387904, 4]", &|p| {
                p[0].bytes = leak(&[1 << 62, 4])
            }),
            ("'bitmask': it is [2, 2]", &|p| p[0].bytes = leak(&[2, 17])),
            ("'bitmask': it is [2, 2] of type I8", &|p| {
                p[2].dtype = Dtype::I8
            }),
            ("'bitmask': row 1 has bits after column 10", &|p| {
                p[2].bytes = &[1, 2, 8, 4]
            }),
            ("'compressed': it has 3 elements, the bitmask has 4", &|p| {
                p[2].bytes = &[1, 2, 8, 1]
            }),
            ("'compressed': element type", &|p| p[1].dtype = Dtype::F4),
            ("'row_offsets': that of row 1 is 1", &|p| {
                p[3].bytes = leak(&[0, 1])
            }),
            ("'row_offsets': it is [3]", &|p| {
                p[3] = view(Dtype::I64, &[3], leak(&[0, 2, 3]))
            }),
        ];
        for (expected, change) in cases {
            let message = refused(change);
            assert!(
                message.contains(expected),
                "{message} instead of {expected}"
            );
        }
    }
}
