//! Memory of tensors, by address.

use half::{bf16, f16};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use sparamx_format::container::Dtype;

/// The numbers of activations.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Float {
    F32,
    Bf16,
    F16,
}

impl Float {
    /// By the code that Python passes.
    pub fn from_code(code: u8) -> PyResult<Self> {
        match code {
            0 => Ok(Self::F32),
            1 => Ok(Self::Bf16),
            2 => Ok(Self::F16),
            _ => Err(PyTypeError::new_err(format!("no dtype has code {code}"))),
        }
    }

    /// Reads `out.len()` numbers from `from` on.
    ///
    /// # Safety
    /// They are there, aligned, and nobody writes them meanwhile.
    pub unsafe fn read(self, from: usize, out: &mut [f32]) {
        // SAFETY: so many elements of this dtype are there, aligned and unwritten, as required.
        unsafe {
            match self {
                Self::F32 => out.copy_from_slice(slice(from, out.len())),
                Self::Bf16 => widen(slice::<bf16>(from, out.len()), out, bf16::to_f32),
                Self::F16 => widen(slice::<f16>(from, out.len()), out, f16::to_f32),
            }
        }
    }

    /// Rounds `numbers` to where `to` is.
    ///
    /// # Safety
    /// There is aligned room, which nobody else uses meanwhile.
    pub unsafe fn write(self, numbers: &[f32], to: usize) {
        // SAFETY: room for so many elements of this dtype is there, aligned and nobody else's, as required.
        unsafe {
            match self {
                Self::F32 => slice_mut(to, numbers.len()).copy_from_slice(numbers),
                Self::Bf16 => widen(
                    numbers,
                    slice_mut::<bf16>(to, numbers.len()),
                    bf16::from_f32,
                ),
                Self::F16 => widen(numbers, slice_mut::<f16>(to, numbers.len()), f16::from_f32),
            }
        }
    }
}

fn widen<A: Copy, B>(from: &[A], to: &mut [B], convert: fn(A) -> B) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to = convert(*from));
}

/// `len` elements from `address` on; none need an address.
///
/// # Safety
/// They are there, aligned and initialized, for as long as the slice is used, and nobody writes them meanwhile.
pub(crate) unsafe fn slice<'a, T>(address: usize, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: so many elements are there, aligned, initialized and unwritten, as required.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), len) }
}

/// As [`slice`], for writing.
///
/// # Safety
/// As [`slice`], and nobody reads them either.
pub(crate) unsafe fn slice_mut<'a, T>(address: usize, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`, and nobody else uses them, as required.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), len) }
}

/// Names of element types as files have them and as `torch` has them.
const DTYPES: [(Dtype, &str); 11] = [
    (Dtype::F32, "float32"),
    (Dtype::BF16, "bfloat16"),
    (Dtype::F16, "float16"),
    (Dtype::F64, "float64"),
    (Dtype::U8, "uint8"),
    (Dtype::I8, "int8"),
    (Dtype::U32, "uint32"),
    (Dtype::U64, "uint64"),
    (Dtype::I32, "int32"),
    (Dtype::I64, "int64"),
    (Dtype::BOOL, "bool"),
];

/// The name that `torch` has for an element type.
pub(crate) fn torch_name(dtype: Dtype) -> PyResult<&'static str> {
    let found = DTYPES.iter().find(|(known, _)| *known == dtype);
    found
        .map(|(_, name)| *name)
        .ok_or_else(|| PyTypeError::new_err(format!("tensors of {dtype:?} are not supported")))
}

/// The element type of that name.
pub(crate) fn dtype(name: &str) -> PyResult<Dtype> {
    let found = DTYPES.iter().find(|(_, known)| *known == name);
    found
        .map(|(dtype, _)| *dtype)
        .ok_or_else(|| PyTypeError::new_err(format!("tensors of {name} are not supported")))
}
