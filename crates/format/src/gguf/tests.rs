use super::*;

/// Writes headers, right and wrong ones.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(version: u32, tensors: u64, entries: u64) -> Self {
        Bytes(MAGIC.to_vec()).u32(version).u64(tensors).u64(entries)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dims.len() as u32);
        let sized = dims.iter().fold(start, |bytes, &size| bytes.u64(size));
        sized.u32(kind).u64(offset)
    }

    fn pad(mut self, alignment: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }

    fn parse(&self) -> Result<GgufFile, FormatError> {
        GgufFile::from_bytes(&self.0)
    }

    #[track_caller]
    fn assert_refused(&self, expected: &str) {
        let message = self.parse().err().expect("it is wrong").to_string();
        assert!(
            message.contains(expected),
            "{message} instead of {expected}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

/// Every type of value, and a tensor of 2 rows of 3.
fn whole() -> Bytes {
    Bytes::header(3, 1, 8)
        .text("u8")
        .u32(0)
        .raw(&[200])
        .text("i16")
        .u32(3)
        .raw(&(-5i16).to_le_bytes())
        .text("f32")
        .u32(6)
        .raw(&1.5f32.to_le_bytes())
        .text("bool")
        .u32(7)
        .raw(&[1])
        .text("text")
        .u32(8)
        .text("väl")
        .text("texts")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("")
        .text("numbers")
        .u32(9)
        .u32(5)
        .u64(2)
        .u32(7)
        .u32(u32::MAX)
        .text("general.alignment")
        .u32(4)
        .u32(64)
        .tensor("t", &[3, 2], 0, 0)
        .pad(64)
        .raw(&[1; 24])
}

#[test]
fn values_and_tensors_are_found() {
    let file = whole().parse().unwrap();
    let value = |key| file.value(key).unwrap();
    assert_eq!(value("u8"), GgufValue::Int(200));
    assert_eq!(value("i16"), GgufValue::Int(-5));
    assert_eq!(value("f32"), GgufValue::Float(1.5));
    assert_eq!(value("bool"), GgufValue::Bool(true));
    assert_eq!(value("text"), GgufValue::Text("väl"));
    let array = |key| match value(key) {
        GgufValue::Array(array) => array,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        array("texts").texts().unwrap().collect::<Vec<_>>(),
        ["a", ""]
    );
    assert!(array("numbers").texts().is_none());
    let numbers: Vec<_> = array("numbers").values().collect();
    assert_eq!(numbers, [GgufValue::Int(7), GgufValue::Int(-1)]);
    assert_eq!(file.value("none"), None);
    assert_eq!(file.keys().len(), 8);
    let [tensor] = file.tensors() else {
        panic!("one tensor")
    };
    assert_eq!(
        (tensor.name.as_str(), &tensor.shape[..], tensor.kind),
        ("t", &[2, 3][..], GgufType::F32)
    );
    assert_eq!(file.bytes(tensor), [1; 24]);
}

#[test]
fn arrays_of_arrays_are_read() {
    let row = |bytes: Bytes, values: &[u32]| {
        let start = bytes.u32(4).u64(values.len() as u64);
        values.iter().fold(start, |bytes, &value| bytes.u32(value))
    };
    let start = Bytes::header(3, 0, 2).text("k").u32(9).u32(9).u64(3);
    let rows = row(row(row(start, &[1, 2]), &[]), &[3]);
    let file = rows.text("after").u32(7).raw(&[1]).parse().unwrap();
    assert_eq!(file.value("after"), Some(GgufValue::Bool(true)));
    let values = |value| match value {
        Some(GgufValue::Array(array)) => array.values().collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let rows = values(file.value("k"));
    let rows: Vec<_> = rows.into_iter().map(|row| values(Some(row))).collect();
    let int = GgufValue::Int;
    assert_eq!(rows, [vec![int(1), int(2)], vec![], vec![int(3)]]);
}

#[test]
fn no_prefix_of_a_file_is_a_file() {
    let bytes = whole().0;
    for length in 0..bytes.len() {
        assert!(GgufFile::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn every_flipped_bit_is_refused_or_read() {
    let bytes = whole().0;
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(file) = GgufFile::from_bytes(&bytes) else {
            continue;
        };
        for key in file.keys() {
            if let Some(GgufValue::Array(array)) = file.value(key) {
                assert_eq!(array.values().count(), array.len());
            }
        }
        file.tensors()
            .iter()
            .for_each(|tensor| assert!(file.bytes(tensor).len() <= bytes.len()));
    }
}

#[test]
fn what_is_wrong_is_named() {
    Bytes(b"GGML....".to_vec()).assert_refused("do not start with GGUF");
    Bytes::header(1, 0, 0).assert_refused("version 1");
    Bytes::header(3u32.swap_bytes(), 0, 0).assert_refused("big endian");
    Bytes::header(3, u64::MAX, 0).assert_refused("'tensor name'");
    Bytes::header(3, 0, 1)
        .text("k")
        .u32(77)
        .assert_refused("'k' in the GGUF file: type 77");
    Bytes::header(3, 0, 1)
        .text("k")
        .u32(8)
        .u64(u64::MAX)
        .assert_refused("'k' in the GGUF file: it is cut off");
    Bytes::header(3, 0, 1)
        .text("k")
        .u32(9)
        .u32(10)
        .u64(u64::MAX / 2)
        .assert_refused("'k' in the GGUF file: it is cut off");
    Bytes::header(3, 0, 1)
        .text("k")
        .u32(9)
        .u32(9)
        .u64(1)
        .assert_refused("'k' in the GGUF file: it is cut off");
    let deep = (0..20).fold(Bytes::header(3, 0, 1).text("k").u32(9), |bytes, _| {
        bytes.u32(9).u64(1)
    });
    deep.assert_refused("'k' in the GGUF file: arrays more than 8 deep");
    Bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n".to_vec())
        .assert_refused("git lfs pull");
    Bytes::header(3, 0, 1)
        .text("k")
        .u32(8)
        .u64(1)
        .raw(&[0xff])
        .assert_refused("not UTF-8");
    let entry = |bytes: Bytes| bytes.text("k").u32(0).raw(&[0]);
    entry(entry(Bytes::header(3, 0, 2)))
        .assert_refused("'k' in the GGUF file: the key is there twice");
    let tensor = |dims: &[u64], kind, offset| {
        Bytes::header(3, 1, 0)
            .tensor("t", dims, kind, offset)
            .pad(32)
            .raw(&[0; 64])
    };
    assert!(tensor(&[16], 0, 0).parse().is_ok());
    tensor(&[], 0, 0).assert_refused("0 dimensions");
    tensor(&[1, 1, 1, 1, 1], 0, 0).assert_refused("5 dimensions");
    tensor(&[0], 0, 0).assert_refused("no shape");
    tensor(&[u64::MAX, 2], 0, 0).assert_refused("no shape");
    tensor(&[17], 0, 0).assert_refused("do not fit");
    tensor(&[16], 0, 32).assert_refused("do not fit");
    tensor(&[1], 0, 4).assert_refused("multiple of 32");
    tensor(&[1], 0, u64::MAX - 31).assert_refused("do not fit");
    tensor(&[33], 8, 0).assert_refused("33 columns are not whole blocks of 32 of type Q8_0");
    let twice = Bytes::header(3, 2, 0)
        .tensor("t", &[1], 0, 0)
        .tensor("t", &[1], 0, 0);
    twice.assert_refused("'t' in the GGUF file: the tensor is there twice");
    let aligned = |alignment| {
        Bytes::header(3, 0, 1)
            .text("general.alignment")
            .u32(4)
            .u32(alignment)
    };
    for alignment in [0, 3, 1 << 17] {
        aligned(alignment).assert_refused("'general.alignment'");
    }
}

/// A type this reader does not know has no bytes here, and its name is known if ggml has one.
#[test]
fn other_types_are_named() {
    let file = Bytes::header(2, 2, 0)
        .tensor("a", &[256], 12, 0)
        .tensor("b", &[1], 99, 0)
        .parse()
        .unwrap();
    let names: Vec<_> = file
        .tensors()
        .iter()
        .map(|tensor| tensor.kind.name())
        .collect();
    assert_eq!(names, ["Q4_K", "unknown"]);
    assert!(
        file.tensors()
            .iter()
            .all(|tensor| file.bytes(tensor).is_empty())
    );
}
