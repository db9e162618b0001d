//! int8 and int4 weights in files: read back in place, and refused when damaged or contradictory.
#![cfg(not(miri))] // Miri has no file maps; `quantized_round_trip.rs` runs under it.

mod common;

use std::collections::BTreeMap;

use common::{levels, scale_values};
use sparamx_format::container::{self, Dtype, TensorFile, TensorOut};
use sparamx_format::{
    DenseI4, DenseI8, FormatError, Scales, SparseBf16, SparseI4, SparseI8, WeightFormat,
};

/// Two strips; one row more than a strip, one column more than a tile and a group, and an odd number of levels.
const N: usize = 17;
const K: usize = 65;
const FORMATS: [WeightFormat; 4] = [
    WeightFormat::SparseI8,
    WeightFormat::DenseI8,
    WeightFormat::SparseI4,
    WeightFormat::DenseI4,
];

fn row_scales() -> Scales {
    Scales::row(&scale_values(N, 1), N).unwrap()
}

fn group_scales(elems: usize) -> Scales {
    Scales::group(&scale_values(N * K.div_ceil(elems), 2), N, K, elems).unwrap()
}

/// The levels that the sample file holds in this format.
fn sample_levels(format: WeightFormat) -> Vec<i8> {
    match format {
        WeightFormat::SparseI8 | WeightFormat::DenseI8 => levels(N, K, 0.5, -127, 127, 3),
        WeightFormat::SparseI4 => levels(N, K, 0.5, -8, 8, 4),
        _ => levels(N, K, 0.9, -8, 7, 5),
    }
}

/// A file with weight `w` in this format.
fn sample(format: WeightFormat) -> Vec<u8> {
    let levels = sample_levels(format);
    match format {
        WeightFormat::SparseI8 => {
            let weight = SparseI8::pack(&levels, N, K, row_scales()).unwrap();
            file_bytes(&weight.tensors("w"), &[])
        }
        WeightFormat::DenseI8 => {
            let weight = DenseI8::from_rows(&levels, N, K, row_scales()).unwrap();
            file_bytes(&weight.tensors("w"), &[])
        }
        WeightFormat::SparseI4 => {
            let weight = SparseI4::pack(&levels, N, K, group_scales(32)).unwrap();
            file_bytes(&weight.tensors("w"), &[])
        }
        _ => {
            let weight = DenseI4::from_rows(&levels, N, K, group_scales(64)).unwrap();
            file_bytes(&weight.tensors("w"), &[])
        }
    }
}

/// The bytes of the file that the writer makes.
fn file_bytes(tensors: &[TensorOut<'_>], metadata: &[(String, String)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let metadata: BTreeMap<_, _> = metadata.iter().cloned().collect();
    container::write(&path, tensors, &metadata).unwrap();
    std::fs::read(&path).unwrap()
}

/// Levels of weight `w`, read in `format` as `[n, k]`, and its scales.
fn read_as(
    file: &TensorFile,
    format: WeightFormat,
    n: usize,
    k: usize,
) -> Result<(Vec<i8>, Scales), FormatError> {
    Ok(match format {
        WeightFormat::SparseI8 => {
            let weight = SparseI8::read(file, "w", n, k)?;
            (weight.decode(), weight.scales().clone())
        }
        WeightFormat::DenseI8 => {
            let weight = DenseI8::read(file, "w", n, k)?;
            (weight.decode(), weight.scales().clone())
        }
        WeightFormat::SparseI4 => {
            let weight = SparseI4::read(file, "w", n, k)?;
            (weight.decode(), weight.scales().clone())
        }
        WeightFormat::DenseI4 => {
            let weight = DenseI4::read(file, "w", n, k)?;
            (weight.decode(), weight.scales().clone())
        }
        WeightFormat::SparseBf16 | WeightFormat::DenseBf16 => {
            SparseBf16::read(file, "w", n, k)?;
            unreachable!("the samples hold no bf16 weight")
        }
    })
}

/// What a reader that believes the file does with it.
fn read(bytes: &[u8]) -> Result<Vec<i8>, FormatError> {
    let file = TensorFile::from_bytes(bytes)?;
    let mut levels = Vec::new();
    for packed in container::packed_weights(&file)? {
        let [n, k] = packed.shape;
        levels.extend(read_as(&file, packed.format, n, k)?.0);
    }
    Ok(levels)
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

/// A tensor of a sample that a test may change.
#[derive(Clone)]
struct Part {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The sample of a format with other tensors and entries of `__metadata__`.
fn rebuilt(
    format: WeightFormat,
    change: impl FnOnce(&mut Vec<Part>, &mut BTreeMap<String, String>),
) -> Vec<u8> {
    let bytes = sample(format);
    let file = TensorFile::from_bytes(&bytes).unwrap();
    let part = |name: String| {
        let view = file.tensor(&name).unwrap();
        let (dtype, shape, data) = (view.dtype, view.shape, view.bytes.to_vec());
        Part {
            name,
            dtype,
            shape,
            data,
        }
    };
    let mut parts: Vec<Part> = file.names().into_iter().map(part).collect();
    let entry = |key: &str| (key.to_string(), file.metadata(key).unwrap().to_string());
    let mut metadata = file.metadata_keys().into_iter().map(entry).collect();
    change(&mut parts, &mut metadata);
    let tensors: Vec<_> = parts
        .iter()
        .map(|part| TensorOut::new(&part.name, part.dtype, part.shape.clone(), &part.data))
        .collect();
    file_bytes(&tensors, &metadata.into_iter().collect::<Vec<_>>())
}

/// The error of reading weight `w` of a file in a format.
fn error_as(bytes: &[u8], format: WeightFormat) -> (String, FormatError) {
    let file = TensorFile::from_bytes(bytes).unwrap();
    let error = read_as(&file, format, N, K).unwrap_err();
    (error.to_string(), cause(error))
}

#[test]
fn a_weight_is_read_back_from_the_map() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, sample(format)).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let weights = container::packed_weights(&file).unwrap();
        assert_eq!(weights.len(), 1, "{format:?}");
        let packed = container::packed_weight(&file, "w").unwrap();
        assert_eq!(packed.as_ref(), Some(&weights[0]));
        assert_eq!((weights[0].shape, weights[0].format), ([N, K], format));
        let (expected_group, expected_scales) = match format {
            WeightFormat::SparseI4 => (Some(32), group_scales(32)),
            WeightFormat::DenseI4 => (Some(64), group_scales(64)),
            _ => (None, row_scales()),
        };
        assert_eq!(weights[0].group_elems, expected_group);
        let (levels, scales) = read_as(&file, format, N, K).unwrap();
        assert_eq!(levels, sample_levels(format), "{format:?}");
        for s in 0..2 {
            for g in 0..expected_scales.groups() {
                assert_eq!(scales.strip(s, g), expected_scales.strip(s, g));
            }
        }
    }
    let bytes = sample(WeightFormat::SparseI8);
    let file = TensorFile::from_bytes(&bytes).unwrap();
    let weight = SparseI8::read(&file, "w", N, K).unwrap();
    let values = file.tensor("w.values").unwrap().bytes;
    assert_eq!(weight.values().as_ptr().addr(), values.as_ptr().addr());
    assert_eq!(container::packed_weight(&file, "v").unwrap(), None);
}

#[test]
fn dense_int8_with_groups_is_written_and_read() {
    let levels = levels(N, K, 0.5, -8, 8, 3);
    let weight = DenseI8::from_rows(&levels, N, K, group_scales(128)).unwrap();
    let bytes = file_bytes(&weight.tensors("w"), &[]);
    let file = TensorFile::from_bytes(&bytes).unwrap();
    let packed = container::packed_weight(&file, "w").unwrap().unwrap();
    assert_eq!(packed.group_elems, Some(128));
    let again = DenseI8::read(&file, "w", N, K).unwrap();
    let (mut a, mut b) = (vec![0.0; K], vec![1.0; K]);
    for i in 0..N {
        weight.row(i, &mut a);
        again.row(i, &mut b);
        assert_eq!(a, b);
    }
}

#[test]
fn tensors_called_values_are_no_weights() {
    let tensor = TensorOut::new("a.values", Dtype::F32, vec![1], &[0; 4]);
    let file = file_bytes(&[tensor], &[]);
    let file = TensorFile::from_bytes(&file).unwrap();
    assert_eq!(container::packed_weights(&file).unwrap(), []);
}

#[test]
fn every_flipped_bit_is_refused_or_changes_the_weight() {
    for format in FORMATS {
        let good = sample(format);
        let file = TensorFile::from_bytes(&good).unwrap();
        let (old_levels, old_scales) = read_as(&file, format, N, K).unwrap();
        for tensor in &file.names() {
            let tensor = tensor.as_str();
            for byte in range_of(&good, tensor) {
                for bit in 0..8 {
                    let mut bytes = good.clone();
                    bytes[byte] ^= 1 << bit;
                    let file = TensorFile::from_bytes(&bytes).unwrap();
                    // Each weight has one encoding: other bytes that are accepted are another weight.
                    let Ok((levels, scales)) = read_as(&file, format, N, K) else {
                        continue;
                    };
                    // In the last block of a strip nothing tells a code of 0 from padding.
                    let may_be_accepted = tensor.ends_with("values")
                        || tensor.ends_with("scale")
                        || (tensor, format) == ("w.mask", WeightFormat::SparseI4);
                    assert!(may_be_accepted, "{format:?} {tensor}");
                    let same_scales = (0..2).all(|s| {
                        (0..scales.groups()).all(|g| scales.strip(s, g) == old_scales.strip(s, g))
                    });
                    assert!(
                        levels != old_levels || !same_scales,
                        "{format:?} {tensor} {byte}"
                    );
                }
            }
        }
    }
}

#[test]
fn any_flipped_bit_of_the_header_ends_well() {
    for format in FORMATS {
        let good = sample(format);
        let data = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for bit in 0..8 * data {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A name or a digit may change into another valid one; what must not happen is a panic.
            let _ = read(&bytes);
        }
    }
}

#[test]
fn values_that_may_not_be_stored() {
    for (format, level) in [
        (WeightFormat::SparseI8, 0),
        (WeightFormat::SparseI8, -128),
        (WeightFormat::DenseI8, -128),
    ] {
        let mut bytes = sample(format);
        let range = range_of(&bytes, "w.values");
        bytes[range.start + 1] = level as u8;
        let (text, error) = error_as(&bytes, format);
        let seen = matches!(error, FormatError::BadLevel { index: 1, level: l } if l == level);
        assert!(seen, "{text}");
    }
}

#[test]
fn scales_that_may_not_be_stored() {
    for format in FORMATS {
        let row = matches!(format, WeightFormat::SparseI8 | WeightFormat::DenseI8);
        let size = if row { 4 } else { 2 };
        for (value, what) in [
            (f32::NAN, "bad"),
            (f32::INFINITY, "bad"),
            (-0.0, "bad"),
            (1.0, "padding"),
        ] {
            let mut bytes = sample(format);
            let range = range_of(&bytes, "w.scale");
            // The first scale, or that of the last row of padding in the last group.
            let at = if what == "bad" {
                range.start
            } else {
                range.end - size
            };
            let upper = &value.to_bits().to_le_bytes()[4 - size..];
            bytes[at..at + size].copy_from_slice(upper);
            let (text, error) = error_as(&bytes, format);
            let seen = match error {
                FormatError::BadScale { index: 0, .. } => what == "bad",
                FormatError::Padding { .. } => what == "padding",
                _ => false,
            };
            assert!(seen, "{format:?} {value}: {text}");
        }
    }
}

#[test]
fn padding_of_levels_and_of_groups() {
    // Byte offsets of: column 65 of row 0, row 1 of strip 1, each in the first line that has it.
    for (format, places) in [
        (WeightFormat::DenseI8, [16 * 64 + 1, 32 * 64 + 4]),
        (WeightFormat::DenseI4, [8 * 64 + 1, 16 * 64 + 4]),
    ] {
        for place in places {
            let mut bytes = sample(format);
            let range = range_of(&bytes, "w.values");
            bytes[range.start + place] ^= 1;
            let (text, error) = error_as(&bytes, format);
            let FormatError::Padding { index, .. } = error else {
                panic!("{text}");
            };
            assert_eq!(index, place, "{format:?}");
        }
    }
    // Group 3 of 4 holds columns 96 to 127, all padding.
    let mut bytes = sample(WeightFormat::SparseI4);
    let range = range_of(&bytes, "w.scale");
    bytes[range.start + 2 * 3 * 16] = 1;
    let (text, error) = error_as(&bytes, WeightFormat::SparseI4);
    assert!(
        matches!(error, FormatError::Padding { index: 48, .. }),
        "{text}"
    );
}

#[test]
fn the_other_half_of_the_last_byte_is_padding() {
    let levels = [1i8, 0, 2, 3];
    let scales = Scales::group(&[1.0], 1, 4, 32).unwrap();
    let weight = SparseI4::pack(&levels, 1, 4, scales).unwrap();
    let mut bytes = file_bytes(&weight.tensors("w"), &[]);
    let range = range_of(&bytes, "w.values");
    assert_eq!(bytes[range.start..range.start + 2], [0x98, 0x0a]);
    bytes[range.start + 1] = 0x1a;
    let error = cause(read(&bytes).unwrap_err());
    assert!(
        matches!(error, FormatError::Padding { index: 1, .. }),
        "{error}"
    );
}

#[test]
fn values_of_another_length() {
    for format in [WeightFormat::SparseI8, WeightFormat::SparseI4] {
        let full = range_of(&sample(format), "w.values").len();
        for bytes in [0, 63, 64, full - 64, full + 64] {
            let bytes = rebuilt(format, |parts, _| {
                let part = parts.iter_mut().find(|p| p.name == "w.values").unwrap();
                part.data.resize(bytes, 0);
                part.shape = vec![bytes];
            });
            let (text, error) = error_as(&bytes, format);
            use FormatError as E;
            assert!(
                matches!(error, E::Length { .. } | E::Offset { .. }),
                "{text}"
            );
        }
    }
}

#[test]
fn missing_tensors_wrong_types_and_shapes_are_named() {
    for format in FORMATS {
        let names = TensorFile::from_bytes(&sample(format)).unwrap().names();
        for name in names {
            let bytes = rebuilt(format, |parts, _| parts.retain(|part| part.name != name));
            // Without masks or offsets the file may look like one of a dense weight that lacks other things.
            let (text, error) = error_as(&bytes, format);
            assert!(matches!(error, FormatError::MissingTensor { .. }), "{text}");
            assert!(text.contains(&name), "{text}");

            let change = |with: fn(&mut Part)| {
                rebuilt(format, |parts, _| {
                    with(parts.iter_mut().find(|part| part.name == name).unwrap());
                })
            };
            let bytes = change(|part| {
                part.dtype = match part.dtype {
                    Dtype::U64 => Dtype::I64,
                    Dtype::I8 => Dtype::U8,
                    Dtype::U8 => Dtype::I8,
                    Dtype::F32 => Dtype::U32,
                    _ => Dtype::F16,
                }
            });
            let (text, error) = error_as(&bytes, format);
            assert!(matches!(error, FormatError::Dtype { .. }), "{text}");
            assert!(text.contains(&name), "{text}");

            let bytes = change(|part| part.shape.insert(0, 1));
            let (text, error) = error_as(&bytes, format);
            assert!(matches!(error, FormatError::Shape { .. }), "{text}");
            assert!(text.contains(&name), "{text}");
        }
    }
}

#[test]
fn descriptions_that_are_missing_unknown_or_contradict() {
    let with = |format, key: &'static str, text: Option<&'static str>| {
        rebuilt(format, |_, metadata| {
            metadata.remove(key);
            metadata.extend(text.map(|text| (key.to_string(), text.to_string())));
        })
    };
    for format in FORMATS {
        for text in ["", "int", "INT8", "int16", "bf16"] {
            let (text, error) = error_as(&with(format, "w.format", Some(text)), format);
            assert!(matches!(error, FormatError::Description { .. }), "{text}");
        }
        for text in ["", "0", "16", "256", "-32", "32.0", "[32]"] {
            let (text, error) = error_as(&with(format, "w.group", Some(text)), format);
            assert!(matches!(error, FormatError::Description { .. }), "{text}");
        }
        for text in [None, Some("17, 65"), Some("[17]"), Some("[17, -65]")] {
            let (text, error) = error_as(&with(format, "w.shape", text), format);
            assert!(matches!(error, FormatError::MissingShape { .. }), "{text}");
        }
        for text in ["[17, 66]", "[16, 65]", "[65, 17]"] {
            let (text, error) = error_as(&with(format, "w.shape", Some(text)), format);
            assert!(matches!(error, FormatError::LogicalShape { .. }), "{text}");
        }
        // Without a format it would be bf16, which has no groups and other element types.
        use FormatError as E;
        let bytes = with(format, "w.format", None);
        let (text, error) = error_as(&bytes, format);
        assert!(
            matches!(error, E::WeightFormat { .. } | E::Description { .. }),
            "{text}"
        );
        let (text, error) = error_as(&bytes, WeightFormat::SparseBf16);
        assert!(
            matches!(error, E::Dtype { .. } | E::Description { .. }),
            "{text}"
        );
    }
    use WeightFormat as P;
    for (format, group) in [
        (P::SparseI8, Some("32")),
        (P::SparseI4, None),
        (P::DenseI4, None),
    ] {
        let (text, error) = error_as(&with(format, "w.group", group), format);
        assert!(matches!(error, FormatError::Description { .. }), "{text}");
    }
    // Another group than the scales are for.
    for format in [P::SparseI4, P::DenseI4] {
        let (text, error) = error_as(&with(format, "w.group", Some("128")), format);
        assert!(matches!(error, FormatError::Shape { .. }), "{text}");
    }
    // int8 is not int4.
    for (format, text) in [
        (P::SparseI8, "int4"),
        (P::DenseI8, "int4"),
        (P::SparseI4, "int8"),
    ] {
        let (text, error) = error_as(&with(format, "w.format", Some(text)), format);
        use FormatError as E;
        assert!(
            matches!(error, E::WeightFormat { .. } | E::Description { .. }),
            "{text}"
        );
    }
}

#[test]
fn a_reader_of_another_format_is_told() {
    let all = [&[WeightFormat::SparseBf16], &FORMATS[..]].concat();
    for format in FORMATS {
        let bytes = sample(format);
        for &other in all.iter().filter(|&&other| other != format) {
            let (text, error) = error_as(&bytes, other);
            assert!(matches!(error, FormatError::WeightFormat { .. }), "{text}");
            let expected = format!(
                "the file holds {}, not {}",
                format.name_in_files(),
                other.name_in_files()
            );
            assert!(text.contains(&expected), "{text}");
        }
    }
}

#[test]
fn a_model_that_agrees_with_a_wrong_logical_shape() {
    use FormatError as E;
    for format in FORMATS {
        for (n, k) in [
            (0, K),
            (N, 0),
            (16, K),
            (N, 64),
            (usize::MAX, K),
            (1 << 50, 1 << 10),
        ] {
            let bytes = rebuilt(format, |_, metadata| {
                metadata.insert("w.shape".to_string(), format!("[{n}, {k}]"));
            });
            let file = TensorFile::from_bytes(&bytes).unwrap();
            let error = cause(read_as(&file, format, n, k).unwrap_err());
            let seen = match (n, k) {
                (0, _) | (_, 0) => matches!(error, E::EmptyShape { .. }),
                (usize::MAX, _) => matches!(error, E::ShapeTooLarge { .. }),
                _ => matches!(error, E::Shape { .. } | E::Padding { .. }),
            };
            assert!(seen, "[{n}, {k}] {format:?}: {error}");
        }
    }
}
