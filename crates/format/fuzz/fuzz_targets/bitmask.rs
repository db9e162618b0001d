//! Any bytes as a safetensors file with tensors in compressed-tensors' `sparse-bitmask` form: each is refused, or packing what it
//! expands to gives the same parts.
//!
//! `cargo +nightly fuzz run bitmask crates/format/fuzz/corpus/bitmask crates/format/fuzz/seeds`
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparamx_format::FormatError;
use sparamx_format::bitmask::{BitmaskOut, BitmaskTensor};
use sparamx_format::container::{Dtype, TensorFile};

fuzz_target!(|bytes: &[u8]| {
    let _ = read_all(bytes);
});

fn read_all(bytes: &[u8]) -> Result<(), FormatError> {
    let file = TensorFile::from_bytes(bytes)?;
    for name in file.names() {
        let Some(prefix) = name.strip_suffix(".bitmask") else {
            continue;
        };
        let part = |suffix: &str| file.tensor(&format!("{prefix}.{suffix}"));
        let (Some(shape), Some(values), Some(bitmask)) =
            (part("shape"), part("compressed"), part("bitmask"))
        else {
            continue;
        };
        let offsets = part("row_offsets");
        // One that is refused is no reason not to look at the next.
        let Ok(tensor) = BitmaskTensor::new(&shape, &values, &bitmask, offsets.as_ref()) else {
            continue;
        };
        let Ok(dense) = tensor.expand() else {
            continue;
        };
        let elements: usize = tensor.shape().iter().product();
        assert_eq!(dense.len(), elements * tensor.dtype().bitsize() / 8);
        if let (&[n, k], Dtype::BF16) = (tensor.shape(), tensor.dtype()) {
            let rows: Vec<u16> = dense
                .chunks(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
                .collect();
            // Zeros that were stored are not stored again.
            assert!(BitmaskOut::pack(&rows, n, k).nnz() <= tensor.nnz());
        }
    }
    Ok(())
}
