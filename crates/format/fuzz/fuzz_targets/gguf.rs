//! Any bytes as a GGUF file: it is refused, or all of its metadata and tensors can be read.
//!
//! `cargo +nightly fuzz run gguf crates/format/fuzz/corpus/gguf crates/format/fuzz/seeds`
#![no_main]

use libfuzzer_sys::fuzz_target;
use sparamx_format::FormatError;
use sparamx_format::gguf::{self, GgufArray, GgufFile, GgufType, GgufValue};

fuzz_target!(|bytes: &[u8]| {
    let _ = read_all(bytes);
});

fn read_all(bytes: &[u8]) -> Result<(), FormatError> {
    let file = GgufFile::from_bytes(bytes)?;
    for key in file.keys() {
        if let Some(GgufValue::Array(array)) = file.value(key) {
            read_array(array);
        }
    }
    for tensor in file.tensors() {
        let data = file.bytes(tensor);
        let levels = match tensor.kind {
            GgufType::Q8_0 => gguf::q8_0(data)?.levels.len(),
            GgufType::Q4_0 => gguf::q4_0(data)?.levels.len(),
            GgufType::Q4_1 => gguf::q4_1(data)?.len(),
            GgufType::Q6K => gguf::q6_k(data)?.levels.len(),
            GgufType::F32 => data.len() / 4,
            // Its size is not known, so its shape may be any.
            GgufType::Other(_) => continue,
            GgufType::F16 | GgufType::Bf16 => data.len() / 2,
        };
        assert_eq!(levels, tensor.shape.iter().product::<usize>());
    }
    Ok(())
}

fn read_array(array: GgufArray<'_>) {
    assert_eq!(array.values().count(), array.len());
    if let Some(texts) = array.texts() {
        assert_eq!(texts.count(), array.len());
    }
    for value in array.values() {
        if let GgufValue::Array(array) = value {
            read_array(array);
        }
    }
}
