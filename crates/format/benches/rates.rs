//! Rates of packing, checking and expanding one large weight at 50 % sparsity, in GB of dense bf16 a second and in
//! GB of packed bytes a second. Every result is checked before the time is printed.
//!
//! `cargo bench -p sparamx-format -- [N K]`

use std::time::Instant;

use sparamx_format::container::{self, TensorFile};
use sparamx_format::{DenseBf16, SparseBf16};

const REPEATS: usize = 5;

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let (n, k) = match sizes[..] {
        [n, k] => (n, k),
        _ => (8192, 16384),
    };
    let rows = rows(n * k);
    let sparse = SparseBf16::pack(&rows, n, k).expect("finite rows");
    assert!(sparse.decode() == rows, "decode gives the rows back");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("w.safetensors");
    container::write(
        &path,
        &container::sparse_bf16_tensors("w", &sparse),
        &Default::default(),
    )
    .expect("room for the file");
    let file = TensorFile::open(&path).expect("the file just written");
    let mapped = container::sparse_bf16(&file, "w", n, k).expect("a valid file");
    assert!(
        mapped.values() == sparse.values(),
        "the file holds the values"
    );

    let packed_bytes = sparse.packed_bytes();
    println!(
        "[{n}, {k}] bf16, {:.1} % kept, {} MB dense, {} MB packed, {} threads",
        100.0 * sparse.density(),
        size_of_val(&rows[..]) / 1_000_000,
        packed_bytes / 1_000_000,
        rayon::current_num_threads()
    );
    let report = |name: &str, seconds: f64| {
        println!(
            "{name:24} {:8.1} ms  {:6.2} GB/s dense  {:6.2} GB/s packed",
            1e3 * seconds,
            size_of_val(&rows[..]) as f64 / seconds / 1e9,
            packed_bytes as f64 / seconds / 1e9
        );
    };
    report(
        "pack",
        best(|| SparseBf16::pack(&rows, n, k).map(|w| w.nnz())),
    );
    report(
        "validate, mapped file",
        best(|| container::sparse_bf16(&file, "w", n, k).map(|w| w.nnz())),
    );
    report("decode to rows", best(|| sparse.decode().len()));
    report(
        "expand to dense lines",
        best(|| DenseBf16::from_sparse(&sparse).map(|w| w.bytes())),
    );
    report(
        "rows to dense lines",
        best(|| DenseBf16::from_rows(&rows, n, k).map(|w| w.bytes())),
    );
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
