//! Any bytes as a file: it is refused, or every packed weight in it can be expanded and packed to the same arrays.
//!
//! `cargo +nightly fuzz run container crates/format/fuzz/corpus/container crates/format/fuzz/seeds`
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparamx_format::container::{self, TensorFile};
use sparamx_format::{FormatError, SparseBf16};

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
    for (name, [n, k]) in container::packed_shapes(&file)? {
        let weight = container::sparse_bf16(&file, &name, n, k)?;
        let again = SparseBf16::pack(&weight.decode(), n, k)?;
        assert_eq!(weight.nnz(), again.nnz());
        assert!(weight.masks() == again.masks(), "one encoding of a weight");
        assert!(weight.values() == again.values(), "one encoding of a weight");
        assert!(weight.offsets() == again.offsets(), "one encoding of a weight");
    }
    Ok(())
}
