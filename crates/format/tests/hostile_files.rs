//! Damaged and malicious files end in an error, never in a panic, a wild read or a huge allocation.
#![cfg(not(miri))] // Miri has no file maps; `round_trip.rs` runs under it.

mod common;

use std::collections::BTreeMap;

use common::rows;
use sparamx_format::container::{self, Dtype, TensorFile, TensorOut};
use sparamx_format::{FormatError, SparseBf16};

const N: usize = 20;
const K: usize = 70;

/// The bytes of the file that the writer makes.
fn file_bytes(tensors: &[TensorOut<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let metadata: BTreeMap<String, String> = metadata
        .iter()
        .map(|&(key, value)| (key.to_string(), value.to_string()))
        .collect();
    container::write(&path, tensors, &metadata).unwrap();
    std::fs::read(&path).unwrap()
}

/// A file with a packed weight, an aligned dense tensor and one of odd size.
fn sample() -> Vec<u8> {
    let weight = SparseBf16::pack(&rows(N, K, 0.5, 1), N, K).unwrap();
    let dense = [1u8; 128];
    let mut tensors = weight.tensors("w");
    tensors.push(TensorOut::new("odd", Dtype::F32, vec![5], &dense[..20]));
    tensors.push(TensorOut::new("dense", Dtype::BF16, vec![8, 8], &dense));
    file_bytes(&tensors, &[("format", "pt")])
}

/// Everything a reader does with a file; the number of elements it got.
fn read_all(bytes: &[u8]) -> Result<usize, FormatError> {
    let file = TensorFile::from_bytes(bytes)?;
    let mut elements = 0;
    for packed in container::packed_weights(&file)? {
        let [n, k] = packed.shape;
        elements += SparseBf16::read(&file, &packed.name, n, k)?.decode().len();
    }
    for name in file.names() {
        elements += file.tensor(&name).unwrap().bytes.len();
    }
    Ok(elements)
}

/// The error inside the names of file and tensor.
fn cause(error: FormatError) -> FormatError {
    match error {
        FormatError::InFile { source, .. } | FormatError::InTensor { source, .. } => cause(*source),
        error => error,
    }
}

/// Byte range of a tensor in the file.
fn range_of(bytes: &[u8], tensor: &str) -> std::ops::Range<usize> {
    let file = TensorFile::from_bytes(bytes).unwrap();
    let view = file.tensor(tensor).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = json[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 8 + header;
    start..start + view.bytes.len()
}

/// A file of a header as given and `data` bytes of zeros.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn header_error(bytes: &[u8]) -> String {
    match cause(read_all(bytes).unwrap_err()) {
        FormatError::Header { reason } => reason,
        error => panic!("{error}"),
    }
}

#[test]
fn the_sample_is_valid() {
    assert!(read_all(&sample()).unwrap() > N * K);
}

#[test]
fn a_pointer_of_git_lfs_is_told_from_a_damaged_file() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    let error = TensorFile::from_bytes(pointer).err().unwrap();
    assert!(matches!(error, FormatError::LfsPointer), "{error}");
    assert!(error.to_string().contains("git lfs pull"), "{error}");
}

#[test]
fn a_message_is_a_short_line_whatever_a_tensor_is_called() {
    let name = "a\n".repeat(30_000);
    let message = FormatError::LfsPointer.in_tensor(name).to_string();
    assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
}

#[test]
fn cut_short_anywhere() {
    let bytes = sample();
    for length in 0..bytes.len() {
        header_error(&bytes[..length]);
    }
}

#[test]
fn one_byte_too_long() {
    let mut bytes = sample();
    bytes.push(0);
    let reason = header_error(&bytes);
    assert!(reason.contains("bytes of data, the file has"), "{reason}");
}

#[test]
fn header_larger_than_the_file_or_the_limit() {
    for length in [1000u64, 100_000_001, 1 << 40, u64::MAX, u64::MAX - 7] {
        let mut bytes = sample();
        bytes.truncate(500);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let reason = header_error(&bytes);
        assert!(reason.contains(&length.to_string()), "{reason}");
    }
}

#[test]
fn any_flipped_bit_of_the_header() {
    let good = sample();
    let data = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for bit in 0..8 * data {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A name or a digit may change into another valid one; what must not happen is a panic.
        let _ = read_all(&bytes);
    }
}

#[test]
fn any_flipped_bit_of_masks_and_offsets() {
    let good = sample();
    for tensor in ["w.mask", "w.offsets"] {
        for byte in range_of(&good, tensor) {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[byte] ^= 1 << bit;
                let error = cause(read_all(&bytes).unwrap_err());
                // In the last block of a strip a bit more or less may keep the next strip where it is; then the
                // padding is read as a value, or a value as padding.
                use FormatError as E;
                let seen = matches!(
                    error,
                    E::Offset { .. } | E::Padding { .. } | E::BadValue { .. }
                );
                assert!(seen, "{error}");
            }
        }
    }
}

#[test]
fn any_flipped_bit_of_values() {
    let good = sample();
    let range = range_of(&good, "w.values");
    let (mut refused, mut kept) = (0, 0);
    for byte in range.clone() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[byte] ^= 1 << bit;
            let at = range.start + (byte - range.start) / 2 * 2;
            let element = |file: &[u8]| u16::from_le_bytes([file[at], file[at + 1]]);
            let (old, new) = (element(&good), element(&bytes));
            let must_fail = old == 0 || new == 0 || new & 0x7f80 == 0x7f80;
            match read_all(&bytes) {
                Ok(_) => kept += usize::from(!must_fail),
                Err(error) => {
                    let error = cause(error);
                    assert!(must_fail, "{old:#06x} to {new:#06x}: {error}");
                    assert!(
                        matches!(
                            error,
                            FormatError::BadValue { .. } | FormatError::Padding { .. }
                        ),
                        "{error}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused + kept, 8 * range.len());
    assert!(refused > 8 * 64, "at least the slack");
}

#[test]
fn headers_that_are_no_headers() {
    for header in [
        "",
        "{",
        "[]",
        "null",
        "{}x",
        "{\"a\":1}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}",
        "{\"a\":{\"dtype\":\"X\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}",
        "{\"__metadata__\":{\"a\":1}}",
    ] {
        header_error(&with_header(header, 4));
    }
    let deep = "[".repeat(100_000);
    header_error(&with_header(&deep, 0));
    let mut not_utf8 = with_header("{\"a\":0}", 0);
    not_utf8[10] = 0xff;
    header_error(&not_utf8);
}

/// A header of two tensors of bytes with these sizes and places.
fn two_tensors(a: (usize, usize, usize), b: (usize, usize, usize)) -> String {
    let tensor = |(size, start, end)| {
        format!("{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{start},{end}]}}")
    };
    format!("{{\"a\":{},\"b\":{}}}", tensor(a), tensor(b))
}

#[test]
fn tensors_that_overlap_leave_gaps_or_run_backwards() {
    let good = two_tensors((8, 0, 8), (8, 8, 16));
    assert_eq!(read_all(&with_header(&good, 16)).unwrap(), 16);
    for (a, b) in [
        ((8, 0, 8), (8, 4, 12)),
        ((8, 0, 8), (8, 0, 8)),
        ((8, 0, 8), (4, 12, 16)),
        ((8, 8, 16), (8, 8, 16)),
        ((8, 8, 0), (8, 8, 16)),
        ((8, 1, 9), (7, 9, 16)),
        ((9, 0, 8), (8, 8, 16)),
    ] {
        header_error(&with_header(&two_tensors(a, b), 16));
    }
}

#[test]
fn one_name_twice() {
    let tensor = "{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}";
    let second = tensor.replace("[0,8]", "[8,16]");
    header_error(&with_header(
        &format!("{{\"a\":{tensor},\"a\":{second}}}"),
        16,
    ));
}

#[test]
fn sizes_that_overflow() {
    let max = u64::MAX;
    for (shape, end) in [
        (format!("[{max}]"), max),
        (format!("[{max}]"), max - 7),
        (format!("[{max},{max}]"), 8),
        (format!("[{},{}]", 1u64 << 32, 1u64 << 32), 0),
        (format!("[{max},{max},0]"), 0),
        (format!("[{}]", 1u64 << 61), 0),
        (format!("[{max}0]"), 0),
    ] {
        for dtype in ["U8", "F64", "F4"] {
            let header = format!(
                "{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}"
            );
            header_error(&with_header(&header, 8));
        }
    }
    // Chosen so that data, header and its length add up to the size of the file modulo 2^64.
    let header = |end: u64| {
        format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{end}],\"data_offsets\":[0,{end}]}}}}")
    };
    let length = header(max).len() as u64;
    header_error(&with_header(&header(max - 7 - length), 0));
}

/// The sample's weight with other tensors or another logical shape.
fn rebuilt(
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<(Dtype, Vec<usize>, Vec<u8>)>,
    shape: Option<&str>,
) -> Vec<u8> {
    let bytes = sample();
    let file = TensorFile::from_bytes(&bytes).unwrap();
    let tensors: Vec<_> = ["w.mask", "w.values", "w.offsets"]
        .into_iter()
        .filter_map(|name| {
            let view = file.tensor(name).unwrap();
            let changed = change(name, view.dtype, view.shape, view.bytes.to_vec())?;
            Some((name, changed))
        })
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| TensorOut::new(*name, *dtype, shape.clone(), data))
        .collect();
    let metadata: Vec<_> = shape.map(|shape| ("w.shape", shape)).into_iter().collect();
    file_bytes(&tensors, &metadata)
}

fn unchanged(
    _: &str,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
    Some((dtype, shape, data))
}

/// The error of reading the rebuilt weight as `[N, K]`.
fn weight_error(bytes: &[u8]) -> (String, FormatError) {
    let file = TensorFile::from_bytes(bytes).unwrap();
    let error = SparseBf16::read(&file, "w", N, K).unwrap_err();
    (error.to_string(), cause(error))
}

#[test]
fn a_missing_tensor_is_named() {
    for missing in ["w.mask", "w.values", "w.offsets"] {
        let bytes = rebuilt(
            |name, dtype, shape, data| (name != missing).then_some((dtype, shape, data)),
            Some("[20, 70]"),
        );
        let (text, error) = weight_error(&bytes);
        assert!(matches!(error, FormatError::MissingTensor { .. }), "{text}");
        assert!(text.contains(missing), "{text}");
    }
}

#[test]
fn a_wrong_element_type_is_named() {
    for (tensor, dtype) in [
        ("w.mask", Dtype::F32),
        ("w.mask", Dtype::I32),
        ("w.values", Dtype::F16),
        ("w.values", Dtype::U16),
        ("w.offsets", Dtype::I64),
        ("w.offsets", Dtype::F64),
    ] {
        let bytes = rebuilt(
            |name, old, shape, data| Some((if name == tensor { dtype } else { old }, shape, data)),
            Some("[20, 70]"),
        );
        let (text, error) = weight_error(&bytes);
        assert!(
            matches!(error, FormatError::Dtype { found, .. } if found == dtype),
            "{text}"
        );
        assert!(text.contains(tensor), "{text}");
    }
}

#[test]
fn a_wrong_shape_is_named() {
    for tensor in ["w.mask", "w.values", "w.offsets"] {
        let bytes = rebuilt(
            |name, dtype, shape, data| {
                let elements: usize = shape.iter().product();
                let shape = if name == tensor {
                    vec![1, elements]
                } else {
                    shape
                };
                Some((dtype, shape, data))
            },
            Some("[20, 70]"),
        );
        let (text, error) = weight_error(&bytes);
        assert!(matches!(error, FormatError::Shape { .. }), "{text}");
        assert!(text.contains(tensor), "{text}");
    }
}

#[test]
fn values_of_another_length() {
    for elements in [0, 31, 32, 64] {
        let bytes = rebuilt(
            |name, dtype, shape, data| match name {
                "w.values" => Some((dtype, vec![elements], data[..2 * elements].to_vec())),
                _ => Some((dtype, shape, data)),
            },
            Some("[20, 70]"),
        );
        let (text, error) = weight_error(&bytes);
        assert!(
            matches!(
                error,
                FormatError::Length { .. } | FormatError::Offset { .. }
            ),
            "{text}"
        );
    }
}

#[test]
fn a_logical_shape_that_is_missing_or_no_shape() {
    let texts = [
        None,
        Some(""),
        Some("20, 70"),
        Some("[20]"),
        Some("[20, 70, 1]"),
        Some("[20, -70]"),
        Some("[2e1, 70]"),
    ];
    for shape in texts {
        let (text, error) = weight_error(&rebuilt(unchanged, shape));
        assert!(matches!(error, FormatError::MissingShape { .. }), "{text}");
        assert!(read_all(&rebuilt(unchanged, shape)).is_err());
    }
}

#[test]
fn a_logical_shape_that_is_not_the_models() {
    for shape in [
        "[20, 71]",
        "[19, 70]",
        "[70, 20]",
        "[0, 0]",
        "[18446744073709551615, 70]",
    ] {
        let bytes = rebuilt(unchanged, Some(shape));
        let (text, error) = weight_error(&bytes);
        assert!(matches!(error, FormatError::LogicalShape { .. }), "{text}");
    }
}

#[test]
fn a_model_that_agrees_with_a_wrong_logical_shape() {
    for (n, k) in [
        (0, 70),
        (20, 0),
        (19, 70),
        (20, 69),
        (usize::MAX, 70),
        (20, usize::MAX),
        (1 << 50, 1 << 10),
        (1 << 50, 1 << 20),
    ] {
        let bytes = rebuilt(unchanged, Some(&format!("[{n}, {k}]")));
        let file = TensorFile::from_bytes(&bytes).unwrap();
        let error = cause(SparseBf16::read(&file, "w", n, k).unwrap_err());
        match (n, k) {
            (19, 70) | (20, 69) => assert!(matches!(error, FormatError::Padding { .. }), "{error}"),
            (0, _) | (_, 0) => assert!(matches!(error, FormatError::EmptyShape { .. }), "{error}"),
            (_, 1024) => assert!(matches!(error, FormatError::Shape { .. }), "{error}"),
            _ => assert!(
                matches!(error, FormatError::ShapeTooLarge { .. }),
                "{error}"
            ),
        }
    }
}

#[test]
fn files_on_disk_that_are_no_tensor_files() {
    let folder = tempfile::tempdir().unwrap();
    let error = TensorFile::open(folder.path()).err().unwrap();
    assert!(error.to_string().ends_with("not a regular file"), "{error}");
    let error = TensorFile::open(folder.path().join("none")).err().unwrap();
    assert!(matches!(error, FormatError::Io { .. }), "{error}");
    for content in [&b""[..], b"1234567", b"12345678", &sample()[..900]] {
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, content).unwrap();
        let error = TensorFile::open(&path).err().unwrap();
        assert!(error.to_string().contains("x.safetensors"), "{error}");
        assert!(matches!(cause(error), FormatError::Header { .. }));
    }
}
