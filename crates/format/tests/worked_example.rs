//! The worked example of `docs/weight-format.md` is what the code writes, byte for byte.
#![cfg(not(miri))] // Reads and maps files.

use sparamx_format::container::{self, TensorFile};
use sparamx_format::{DenseI4, DenseI8, Scales, SparseBf16, SparseI4, SparseI8, Storage};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/weight-format.md");
const NAME: &str = "up.weight";

/// The text of the fenced block with this info string.
fn block(info: &str) -> String {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let start = format!("\n```{info}\n");
    assert_eq!(document.matches(&start).count(), 1, "one block {info:?}");
    let (_, rest) = document.split_once(&start).unwrap();
    let (text, _) = rest.split_once("\n```\n").unwrap();
    text.to_string()
}

/// The bytes of a block of hexadecimal pairs.
fn bytes(info: &str) -> Vec<u8> {
    let byte = |pair| u8::from_str_radix(pair, 16).unwrap();
    block(info).split_whitespace().map(byte).collect()
}

/// The bytes of a block that leaves out the padding at the end, as many as it says.
fn padded_bytes(info: &str, size: usize, padding: u8) -> Vec<u8> {
    let mut bytes = bytes(&format!("hex {info} of {size} padded with {padding:02x}"));
    assert_ne!(bytes.last(), Some(&padding), "{info}: shown to the end");
    bytes.resize(size, padding);
    bytes
}

/// The levels of an `[2, 8]` weight.
fn levels(info: &str) -> Vec<i8> {
    let text = block(info);
    let levels: Vec<i8> = text
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    assert_eq!((levels.len(), text.lines().count()), (16, 2));
    levels
}

/// The weight as bf16 bits, row-major, N and K.
fn weight() -> (Vec<u16>, usize, usize) {
    let rows: Vec<Vec<u16>> = block("text weight")
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(|number| half::bf16::from_f32(number.parse().unwrap()).to_bits())
                .collect()
        })
        .collect();
    (rows.concat(), rows.len(), rows[0].len())
}

#[test]
fn packing_gives_the_documented_arrays() {
    let (rows, n, k) = weight();
    assert_eq!((n, k), (2, 8));
    let packed = SparseBf16::pack(&rows, n, k).unwrap();
    assert_eq!(
        bytemuck::cast_slice::<_, u8>(packed.masks()),
        bytes("hex masks")
    );
    assert_eq!(
        bytemuck::cast_slice::<_, u8>(packed.values()),
        bytes("hex values")
    );
    for tensor in packed.tensors(NAME) {
        let suffix = tensor.name().strip_prefix("up.weight.").unwrap();
        let block = if suffix == "mask" { "masks" } else { suffix };
        assert_eq!(
            tensor.bytes(),
            bytes(&format!("hex {block}")).len(),
            "{block}"
        );
    }
}

#[test]
fn the_documented_arrays_give_the_weight() {
    fn storage<T: bytemuck::Pod>(info: &str) -> Storage<T> {
        let values: Vec<T> = bytes(info)
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect();
        Storage::from_slice(&values).unwrap()
    }
    let (rows, n, k) = weight();
    let packed = SparseBf16::from_parts(
        n,
        k,
        storage("hex masks"),
        storage("hex values"),
        storage("hex offsets"),
    )
    .unwrap();
    assert_eq!(packed.decode(), rows);
}

#[test]
fn a_file_has_the_documented_bytes() {
    let (rows, n, k) = weight();
    let packed = SparseBf16::pack(&rows, n, k).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = packed.tensors(NAME);
    container::write(&path, &tensors, &Default::default()).unwrap();

    let file = std::fs::read(&path).unwrap();
    let (length, rest) = file.split_at(8);
    assert_eq!(length, bytes("hex length"));
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    let documented = json(block("json header").as_bytes());
    assert_eq!(json(header), documented);
    let compact = documented.to_string();
    assert_eq!(
        std::str::from_utf8(header).unwrap().trim_end(),
        compact,
        "and in this order"
    );
    assert_eq!(
        data,
        [
            bytes("hex masks"),
            bytes("hex values"),
            bytes("hex offsets")
        ]
        .concat()
    );

    let read = SparseBf16::read(&TensorFile::open(&path).unwrap(), NAME, n, k).unwrap();
    assert_eq!(read.decode(), rows);
}

#[test]
fn int8_has_the_documented_bytes() {
    let levels = levels("text int8 levels");
    let scales = Scales::row(&[0.5, 0.25], 2).unwrap();
    let packed = SparseI8::pack(&levels, 2, 8, scales.clone()).unwrap();
    let dense = DenseI8::from_rows(&levels, 2, 8, scales).unwrap();
    let mask = padded_bytes("int8 mask", 128, 0);
    let values = padded_bytes("int8 values", 128, 0);
    let scale = padded_bytes("int8 scale", 64, 0);
    let lines = padded_bytes("int8 dense", 1024, 0);
    check_file(
        &packed.tensors(NAME),
        &[
            ("mask", &mask),
            ("values", &values),
            ("offsets", &[0; 64]),
            ("scale", &scale),
        ],
        &[("format", "int8"), ("shape", "[2, 8]")],
    );
    check_file(
        &dense.tensors(NAME),
        &[("values", &lines), ("scale", &scale)],
        &[("format", "int8"), ("shape", "[2, 8]")],
    );
}

#[test]
fn int4_has_the_documented_bytes() {
    let mut levels = levels("text int4 levels");
    let scales = Scales::group(&[0.5, -0.25], 2, 8, 32).unwrap();
    let packed = SparseI4::pack(&levels, 2, 8, scales.clone()).unwrap();
    let seven = levels.iter_mut().find(|level| **level == 8).unwrap();
    *seven = 7;
    let dense = DenseI4::from_rows(&levels, 2, 8, scales).unwrap();
    let mask = padded_bytes("int8 mask", 128, 0);
    let values = padded_bytes("int4 values", 128, 0);
    let scale = padded_bytes("int4 scale", 64, 0);
    let lines = padded_bytes("int4 dense", 512, 0x88);
    check_file(
        &packed.tensors(NAME),
        &[
            ("mask", &mask),
            ("values", &values),
            ("offsets", &[0; 64]),
            ("scale", &scale),
        ],
        &[("format", "int4"), ("group", "32"), ("shape", "[2, 8]")],
    );
    check_file(
        &dense.tensors(NAME),
        &[("values", &lines), ("scale", &scale)],
        &[("format", "int4"), ("group", "32"), ("shape", "[2, 8]")],
    );
}

/// Checks that a file of the weight has these tensors and entries of `__metadata__` and no others.
fn check_file(
    tensors: &[container::TensorOut<'_>],
    expected: &[(&str, &[u8])],
    metadata: &[(&str, &str)],
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    container::write(&path, tensors, &Default::default()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let names: Vec<_> = expected
        .iter()
        .map(|(suffix, _)| format!("{NAME}.{suffix}"))
        .collect();
    assert_eq!(file.names(), names);
    for (name, (_, bytes)) in names.iter().zip(expected) {
        assert_eq!(&file.tensor(name).unwrap().bytes, bytes, "{name}");
    }
    let keys: Vec<_> = metadata
        .iter()
        .map(|(key, _)| format!("{NAME}.{key}"))
        .collect();
    assert_eq!(file.metadata_keys(), keys);
    for (key, (_, text)) in keys.iter().zip(metadata) {
        assert_eq!(file.metadata(key), Some(*text));
    }
}
