//! Any bytes as a file: it is refused, or every packed weight in it can be expanded and packed to the same arrays.
//!
//! `.ci/run` fuzzes for half a minute; for longer, in a folder that git ignores:
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run container crates/format/fuzz/corpus/container crates/format/fuzz/seeds --fuzz-dir crates/format/fuzz`
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparamx_format::container::{self, PackedFormat, PackedWeight, TensorFile};
use sparamx_format::{DenseI4, DenseI8, FormatError, SparseBf16, SparseI4, SparseI8};

fuzz_target!(|bytes: &[u8]| {
    let _ = read_all(bytes);
});

fn read_all(bytes: &[u8]) -> Result<(), FormatError> {
    let file = TensorFile::from_bytes(bytes)?;
    for name in file.names() {
        let view = file.tensor(&name).expect("a name of the file");
        if let Ok(storage) = file.storage::<u32>(&name) {
            assert_eq!(size_of_val(&*storage), view.bytes.len());
        }
    }
    for packed in container::packed_weights(&file)? {
        check(&file, &packed)?;
    }
    Ok(())
}

/// A weight that passes every check is what packing makes of its elements, bit for bit.
fn check(file: &TensorFile, packed: &PackedWeight) -> Result<(), FormatError> {
    let (name, [n, k]) = (&packed.name, packed.shape);
    match packed.format {
        PackedFormat::SparseBf16 => {
            let weight = container::sparse_bf16(file, name, n, k)?;
            let again = SparseBf16::pack(&weight.decode(), n, k)?;
            assert_eq!(weight.nnz(), again.nnz());
            assert!(weight.masks() == again.masks());
            assert!(weight.values() == again.values());
            assert!(weight.offsets() == again.offsets());
        }
        PackedFormat::SparseI8 => {
            let weight = container::sparse_i8(file, name, n, k)?;
            let again = SparseI8::pack(&weight.decode(), n, k, weight.scales().clone())?;
            assert_eq!(weight.nnz(), again.nnz());
            assert!(weight.masks() == again.masks());
            assert!(weight.values() == again.values());
            assert!(weight.offsets() == again.offsets());
        }
        PackedFormat::SparseI4 => {
            let weight = container::sparse_i4(file, name, n, k)?;
            let again = SparseI4::pack(&weight.decode(), n, k, weight.scales().clone())?;
            assert_eq!(weight.nnz(), again.nnz());
            assert!(weight.masks() == again.masks());
            assert!(weight.values() == again.values());
            assert!(weight.offsets() == again.offsets());
        }
        PackedFormat::DenseI8 => {
            let weight = container::dense_i8(file, name, n, k)?;
            let again = DenseI8::from_rows(&weight.to_rows(), n, k, weight.scales().clone())?;
            assert!(weight.lines() == again.lines());
        }
        PackedFormat::DenseI4 => {
            let weight = container::dense_i4(file, name, n, k)?;
            let again = DenseI4::from_rows(&weight.to_rows(), n, k, weight.scales().clone())?;
            assert!(weight.lines() == again.lines());
        }
    }
    Ok(())
}
