//! Any bytes as a file: it is refused, or every packed weight in it can be expanded and packed to the same arrays.
//!
//! `.ci/run` fuzzes for half a minute; for longer, in a folder that git ignores:
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run container crates/format/fuzz/corpus/container crates/format/fuzz/seeds --fuzz-dir crates/format/fuzz`
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparamx_format::container::{self, PackedWeight, TensorFile};
use sparamx_format::{Elements, FormatError, Weight};

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
    let weight = Weight::read(file, name, n, k)?;
    assert_eq!(weight.format(), packed.format);
    let again = match weight.decode() {
        Elements::Bf16(bits) => Weight::of_bits(&bits, n, k, true)?,
        Elements::Levels(levels, scales) => {
            Weight::of_levels(packed.format, &levels, n, k, scales)?
        }
    };
    assert_eq!(weight.nnz(), again.nnz());
    let (tensors, made) = (weight.tensors(name), again.tensors(name));
    assert_eq!(tensors.len(), made.len());
    for (tensor, made) in tensors.iter().zip(&made) {
        assert!(tensor.data() == made.data(), "{}", made.name());
    }
    Ok(())
}
