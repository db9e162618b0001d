//! Products with a page, by the kernels of [`crate::linear()`].

use sparamx_cpu::Cpu;

use super::{PAGE_TOKENS, Page, PageShape};
use crate::WeightFormat;
use crate::linear::activation::Activation;
use crate::linear::chunk::{Activations, Chunk, Parts, Strips};
use crate::linear::out::Out;
use crate::spec::KernelSpec;

/// A page as the weight that it is.
#[derive(Clone, Copy)]
pub(super) struct PageWeight<'a> {
    pub format: WeightFormat,
    strips: Strips<'a>,
    /// A multiple of 16.
    n: usize,
    /// Padded as the format wants it.
    pub k: usize,
    /// Where its bytes begin.
    start: *const u8,
}

impl<'a> PageWeight<'a> {
    /// # Panics
    /// If the page is not of heads of that size.
    pub fn key(page: Page<'a>, shape: PageShape) -> Self {
        Self::new(page, PAGE_TOKENS, |format| key_k(shape, format))
    }

    /// # Panics
    /// If the page is not of heads of that size.
    pub fn value(page: Page<'a>, shape: PageShape) -> Self {
        Self::new(page, shape.value_n(), |_| PAGE_TOKENS)
    }

    fn new(page: Page<'a>, n: usize, k: impl Fn(WeightFormat) -> usize) -> Self {
        let (format, strips, start) = match page {
            Page::Dense(lines) => {
                let k = k(WeightFormat::DenseBf16);
                assert_eq!(lines.len(), n * k, "elements of a page of {n} x {k}");
                let strips = Strips::DenseBf16(lines);
                (WeightFormat::DenseBf16, strips, lines.as_ptr().cast())
            }
            Page::Packed(page) => {
                assert_eq!(page.size(), (n, k(page.format())), "size of a packed page");
                (page.format(), page.strips(), page.start())
            }
        };
        Self {
            format,
            strips,
            n,
            k: k(format),
            start,
        }
    }
}

/// K of a page of keys in a format.
pub(super) fn key_k(shape: PageShape, format: WeightFormat) -> usize {
    match format {
        WeightFormat::DenseBf16 | WeightFormat::SparseBf16 => shape.key_k(),
        _ => shape.key_k_i8(),
    }
}

/// `y[rows, n] = x[rows, k] * w^T`, row after row.
pub(super) struct Product<'a> {
    /// As [`KernelSpec::activation`] says, see [`operand_bytes`]. Kernels read whole groups of rows: those after the last are
    /// there, hold anything, and have no effect.
    pub x: &'a [u8],
    pub rows: usize,
    pub w: PageWeight<'a>,
    /// The page that will be read next.
    pub next: Option<PageWeight<'a>>,
    pub y: &'a mut [f32],
}

/// Bytes of `rows` rows of `k` elements in the form `kind`.
pub(super) fn operand_bytes(kind: Activation, rows: usize, k: usize) -> usize {
    kind.padded_rows(rows) * kind.row_bytes(k)
}

/// Computes `p` with a kernel for weights of the page's format. `scratch` has the bytes that the kernel asks for.
///
/// # Panics
/// If a slice is too short, the CPU lacks what the kernel needs or the kernel reads another format.
pub(super) fn multiply(cpu: &Cpu, kernel: &KernelSpec, p: Product<'_>, scratch: &mut [u8]) {
    let Product {
        x,
        rows,
        w,
        next,
        y,
    } = p;
    let PageWeight {
        format,
        strips,
        n,
        k,
        start,
    } = w;
    let distance = |next: PageWeight<'_>| next.start.addr().wrapping_sub(start.addr()) as isize;
    let kind = kernel.activation;
    assert!(
        cpu.features().contains(kernel.features) && format == kernel.weight,
        "a page of {format} by {} on a CPU with {}",
        kernel.name,
        cpu.features()
    );
    assert!(
        y.len() >= rows * n,
        "{rows} rows times a page to {}",
        y.len()
    );
    let parts = Parts {
        cpu: *cpu,
        x: Activations {
            bytes: x,
            stride: kind.row_bytes(k) / kind.bytes(),
            kind,
        },
        m: rows,
        k_padded: k,
        weight: strips,
        strips: 0..n / 16,
        out: Out {
            ptr: y.as_mut_ptr(),
            stride: n,
            n,
            bias: None,
        },
        page: Some(next.map_or(0, distance)),
    };
    // SAFETY: only `PackedPages` makes packed pages, with a value for each bit; y is borrowed for the call and has `rows` rows
    // of `n`, asserted above.
    let chunk = unsafe { Chunk::new(parts) };
    let scratch = &mut scratch[..(kernel.scratch_bytes)(k)];
    // SAFETY: the CPU has the kernel's features, asserted above.
    unsafe { (kernel.run)(&chunk, scratch) }
}
