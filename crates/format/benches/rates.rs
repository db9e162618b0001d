//! Rates of packing, checking and expanding one large weight at 50 % sparsity in every format, in GB of its dense form
//! a second and in GB of packed bytes a second. Every result is checked before the time is printed.
//!
//! `cargo bench -p sparamx-format -- [N K]`

use std::time::Instant;

use sparamx_format::container::{self, TensorFile, TensorOut};
use sparamx_format::{DenseBf16, DenseI4, DenseI8, Scales, SparseBf16, SparseI4, SparseI8};

const REPEATS: usize = 5;

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let (n, k) = match sizes[..] {
        [n, k] => (n, k),
        _ => (8192, 16384),
    };
    bf16(n, k);
    int8(n, k);
    int4(n, k);
}

fn bf16(n: usize, k: usize) {
    let rows = rows(n * k);
    let sparse = SparseBf16::pack(&rows, n, k).expect("finite rows");
    assert!(sparse.decode() == rows, "decode gives the rows back");
    let (_folder, file) = written(&sparse.tensors("w"));
    let mapped = SparseBf16::read(&file, "w", n, k).expect("a valid file");
    assert!(
        mapped.values() == sparse.values(),
        "the file holds the values"
    );
    let report = Report {
        dense_bytes: 2 * n * k,
        packed_bytes: sparse.bytes(),
    };
    report.title(&format!("[{n}, {k}] bf16"), sparse.density());
    report.row("pack", || SparseBf16::pack(&rows, n, k));
    report.row("validate, mapped file", || {
        SparseBf16::read(&file, "w", n, k)
    });
    report.row("decode to rows", || sparse.decode());
    report.row("expand to dense lines", || DenseBf16::from_sparse(&sparse));
    report.row("rows to dense lines", || DenseBf16::from_rows(&rows, n, k));
}

fn int8(n: usize, k: usize) {
    let rows: Vec<i8> = rows(n * k).iter().map(|&bits| bits as i8 >> 1).collect();
    let scales = Scales::row(&vec![0.01; n], n).expect("finite scales");
    let sparse = SparseI8::pack(&rows, n, k, scales.clone()).expect("no level of -128");
    assert!(sparse.decode() == rows, "decode gives the rows back");
    let (_folder, file) = written(&sparse.tensors("w"));
    let dense = DenseI8::from_rows(&rows, n, k, scales.clone()).expect("enough memory");
    let (_folder, dense_file) = written(&dense.tensors("w"));
    let report = Report {
        dense_bytes: n * k,
        packed_bytes: sparse.bytes(),
    };
    report.title(&format!("[{n}, {k}] int8"), sparse.density());
    let pack = || SparseI8::pack(&rows, n, k, scales.clone());
    report.row("pack", pack);
    report.row("validate, mapped file", || SparseI8::read(&file, "w", n, k));
    report.row("validate dense file", || {
        DenseI8::read(&dense_file, "w", n, k)
    });
    report.row("decode to rows", || sparse.decode());
    report.row("expand to dense lines", || DenseI8::from_sparse(&sparse));
    let from_rows = || DenseI8::from_rows(&rows, n, k, scales.clone());
    report.row("rows to dense lines", from_rows);
}

fn int4(n: usize, k: usize) {
    let rows: Vec<i8> = rows(n * k).iter().map(|&bits| bits as i8 >> 5).collect();
    let groups = n * k.div_ceil(128);
    let scales = Scales::group(&vec![0.01; groups], n, k, 128).expect("finite scales");
    let sparse = SparseI4::pack(&rows, n, k, scales.clone()).expect("levels of 3 bits");
    assert!(sparse.decode() == rows, "decode gives the rows back");
    let (_folder, file) = written(&sparse.tensors("w"));
    let report = Report {
        dense_bytes: n * k / 2,
        packed_bytes: sparse.bytes(),
    };
    report.title(&format!("[{n}, {k}] int4"), sparse.density());
    let pack = || SparseI4::pack(&rows, n, k, scales.clone());
    report.row("pack", pack);
    report.row("validate, mapped file", || SparseI4::read(&file, "w", n, k));
    report.row("decode to rows", || sparse.decode());
    report.row("expand to int8 lines", || DenseI8::from_sparse(&sparse));
    let from_rows = || DenseI4::from_rows(&rows, n, k, scales.clone());
    report.row("rows to dense lines", from_rows);
}

/// A file of the tensors, in a folder that lives as long as the result.
fn written(tensors: &[TensorOut<'_>]) -> (tempfile::TempDir, TensorFile) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("w.safetensors");
    container::write(&path, tensors, &Default::default()).expect("room for the file");
    let file = TensorFile::open(&path).expect("the file just written");
    (folder, file)
}

/// Sizes of a weight that rates refer to.
struct Report {
    dense_bytes: usize,
    packed_bytes: usize,
}

impl Report {
    fn title(&self, what: &str, density: f64) {
        println!(
            "{what}, {:.1} % kept, {} MB dense, {} MB packed, {} threads",
            100.0 * density,
            self.dense_bytes / 1_000_000,
            self.packed_bytes / 1_000_000,
            rayon::current_num_threads()
        );
    }

    /// Prints the rates of the fastest of a few calls.
    fn row<T>(&self, name: &str, f: impl FnMut() -> T) {
        let seconds = best(f);
        println!(
            "{name:24} {:8.1} ms  {:6.2} GB/s dense  {:6.2} GB/s packed",
            1e3 * seconds,
            self.dense_bytes as f64 / seconds / 1e9,
            self.packed_bytes as f64 / seconds / 1e9
        );
    }
}

/// Seconds of the fastest of a few calls.
fn best<T>(mut f: impl FnMut() -> T) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(f());
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Finite elements, half of them zero at random.
fn rows(len: usize) -> Vec<u16> {
    let mut state = 1u64;
    (0..len)
        .map(|_| {
            // An LCG whose high bits are good enough for a bitmap nobody can predict.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bits = (state >> 48) as u16 & 0xbfff | 1;
            if state >> 63 == 0 { 0 } else { bits }
        })
        .collect()
}
