//! Products with a page, by the kernels of [`crate::linear`].

use crate::catalog::KernelSpec;
use crate::linear::chunk::{Activations, Chunk, Out, Strips};

/// `y[rows, n] = x[rows, k] * w^T`, row after row.
pub(super) struct Product<'a> {
    /// As [`KernelSpec::activation`] says. Kernels read whole groups of rows: those after the last are there, hold anything,
    /// and have no effect.
    pub x: &'a [u8],
    pub rows: usize,
    /// A multiple of 32.
    pub k: usize,
    /// Dense lines of a weight `[n, k]`.
    pub w: &'a [u16],
    /// A multiple of 16.
    pub n: usize,
    pub y: &'a mut [f32],
}

/// Computes `p` with a kernel that the CPU has, for dense weights. `scratch` has the bytes that the kernel asks for.
///
/// # Panics
/// If a slice is too short, or the page is not `n * k` elements.
pub(super) fn multiply(kernel: &KernelSpec, p: Product<'_>, scratch: &mut [u8]) {
    let Product {
        x,
        rows,
        k,
        w,
        n,
        y,
    } = p;
    let kind = kernel.activation;
    let x_bytes = kind.padded_rows(rows) * k * kind.bytes();
    assert!(n % 16 == 0 && k % 32 == 0, "a page of {n} x {k}");
    assert_eq!(w.len(), n * k, "elements of a page of {n} x {k}");
    assert!(
        x.len() >= x_bytes && y.len() >= rows * n,
        "{} bytes times a page to {}",
        x.len(),
        y.len()
    );
    let chunk = Chunk {
        x: Activations {
            ptr: x.as_ptr(),
            stride: k,
            kind,
        },
        m: rows,
        k_padded: k,
        weight: Strips::DenseBf16(w),
        strips: 0..n / 16,
        out: Out {
            ptr: y.as_mut_ptr(),
            stride: n,
            n,
            bias: None,
        },
    };
    // SAFETY: `Plan::new` takes a kernel that the CPU has; the sizes of x, w and y are asserted, and y is borrowed for it.
    unsafe { (kernel.run)(&chunk, &mut scratch[..(kernel.scratch_bytes)(k)]) }
}
