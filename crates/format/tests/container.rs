//! What is written is aligned, complete and read back in place.
#![cfg(not(miri))] // Miri has no file maps.

mod common;

use std::collections::BTreeMap;

use common::rows;
use sparamx_format::container::{self, Dtype, PackedWeight, TensorFile, TensorOut};
use sparamx_format::{FormatError, SparseBf16, WeightFormat};

/// Opens what `write` made of the tensors, in a folder that lives as long as the result.
fn written(tensors: &[TensorOut<'_>]) -> (tempfile::TempDir, TensorFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    container::write(&path, tensors, &metadata).unwrap();
    (folder, TensorFile::open(&path).unwrap())
}

#[test]
fn packed_weights_are_used_from_the_map() {
    let shapes = [(1, 1), (16, 32), (17, 33), (50, 600), (130, 1030)];
    let weights: Vec<_> = shapes
        .iter()
        .map(|&(n, k)| (format!("m{n}.weight"), rows(n, k, 0.5, n as u64), n, k))
        .map(|(name, rows, n, k)| (name, SparseBf16::pack(&rows, n, k).unwrap(), rows))
        .collect();
    let tensors: Vec<_> = weights
        .iter()
        .flat_map(|(name, weight, _)| weight.tensors(name))
        .collect();
    let (_folder, file) = written(&tensors);
    let found = container::packed_weights(&file).unwrap();
    assert_eq!(found.len(), shapes.len());
    for (found, (expected, weight, rows)) in found.iter().zip(&weights) {
        let PackedWeight {
            name,
            shape: [n, k],
            format,
            group_elems,
        } = found;
        assert_eq!((name, *format), (expected, WeightFormat::SparseBf16));
        assert_eq!(*group_elems, None);
        let read = SparseBf16::read(&file, name, *n, *k).unwrap();
        assert_eq!(&read.decode(), rows);
        assert_eq!(read.nnz(), weight.nnz());
        assert_eq!(read.bytes(), weight.bytes());
        let in_file = file.tensor(&format!("{name}.values")).unwrap().bytes;
        assert_eq!(
            read.values().as_ptr().addr(),
            in_file.as_ptr().addr(),
            "no copy"
        );
        assert!(format!("{read:?}").contains("mapped"), "{read:?}");
    }
}

#[test]
fn a_view_outlives_the_file_and_the_handle() {
    let expected = rows(40, 100, 0.5, 2);
    let weight = SparseBf16::pack(&expected, 40, 100).unwrap();
    let (folder, file) = written(&weight.tensors("w"));
    let read = SparseBf16::read(&file, "w", 40, 100).unwrap();
    drop(file);
    drop(folder);
    assert_eq!(read.decode(), expected);
}

#[test]
fn whole_lines_come_first_and_everything_that_can_be_is_aligned() {
    let data = [7u8; 1024];
    let weight = SparseBf16::pack(&rows(5, 5, 0.5, 1), 5, 5).unwrap();
    let mut tensors = vec![
        TensorOut::new("bytes", Dtype::U8, vec![3], &data[..3]),
        TensorOut::new("bias", Dtype::F32, vec![5], &data[..20]),
        TensorOut::new("norm", Dtype::BF16, vec![64], &data[..128]),
        TensorOut::new("half", Dtype::F16, vec![2, 3], &data[..12]),
        TensorOut::new("scalar", Dtype::F64, vec![], &data[..8]),
        TensorOut::new("empty", Dtype::F32, vec![0, 9], &[]),
    ];
    tensors.extend(weight.tensors("w"));
    let (_folder, file) = written(&tensors);
    assert_eq!(
        file.names(),
        [
            "norm",
            "empty",
            "w.mask",
            "w.values",
            "w.offsets",
            "scalar",
            "bias",
            "half",
            "bytes"
        ]
    );
    for name in file.names() {
        let view = file.tensor(&name).unwrap();
        let wanted = match name.as_str() {
            "bias" => 4,
            "half" => 2,
            "bytes" => 1,
            _ => 64,
        };
        assert_eq!(view.bytes.as_ptr().addr() % wanted, 0, "{name}");
    }
    // Not on a 64-byte boundary, so copied to one.
    let half = file.storage::<u16>("half").unwrap();
    assert_eq!(&*half, &[0x0707; 6]);
    assert_eq!(half.as_ptr().addr() % 64, 0);
    assert_eq!(file.metadata("format"), Some("pt"));
    assert_eq!(file.metadata_keys(), ["format", "w.shape"]);
}

#[test]
fn missing_tensor_and_element_size() {
    let (_folder, file) = written(&[TensorOut::new("a", Dtype::F32, vec![2], &[0; 8])]);
    assert!(file.tensor("b").is_none());
    let error = file.storage::<u32>("b").unwrap_err().to_string();
    assert!(
        error.ends_with("tensor b is missing from the file"),
        "{error}"
    );
    let error = file.storage::<u16>("a").unwrap_err().to_string();
    assert!(
        error.ends_with("tensor a: element type F32 cannot be read as elements of 2 bytes"),
        "{error}"
    );
}

#[test]
fn what_is_taken_into_memory_is_the_same_and_no_window() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values: Vec<u8> = (0..200).collect();
    let tensor = TensorOut::new("a", Dtype::U8, vec![200], &values);
    container::write(&path, &[tensor], &BTreeMap::new()).unwrap();
    let mapped = TensorFile::open(&path).unwrap().storage::<u8>("a").unwrap();
    let owned = mapped.in_memory().unwrap();
    assert_eq!(format!("{mapped:?}"), "Storage(200 elements, mapped)");
    assert_eq!(format!("{owned:?}"), "Storage(200 elements, owned)");
    assert_eq!(*owned, *values);
    assert_eq!(owned.in_memory().unwrap().as_ptr(), owned.as_ptr());
}

#[test]
fn two_tensors_of_one_name_are_not_written() {
    let tensor = TensorOut::new("a", Dtype::U8, vec![1], &[0]);
    let error = refused(&[tensor.clone(), tensor]);
    assert!(
        error.contains("tensor a: two tensors have this name"),
        "{error}"
    );
}

#[test]
fn data_of_another_size_is_not_written() {
    for (dtype, shape) in [
        (Dtype::U8, vec![5]),
        (Dtype::F32, vec![4]),
        (Dtype::F4, vec![7]),
        (Dtype::U8, vec![usize::MAX, 2]),
        (Dtype::U64, vec![usize::MAX]),
    ] {
        let error = refused(&[TensorOut::new("a", dtype, shape, &[0; 4])]);
        assert!(error.contains("tensor a: data has 4 bytes"), "{error}");
    }
}

/// The message of a refusal that left nothing behind.
fn refused(tensors: &[TensorOut<'_>]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let error = container::write(&path, tensors, &BTreeMap::new()).unwrap_err();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    error.to_string()
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none/model.safetensors");
    let error = container::write(&path, &[], &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, FormatError::Io { .. }), "{error}");
    assert!(
        error.to_string().contains("none/model.safetensors"),
        "{error}"
    );
}

#[test]
fn a_file_is_replaced_under_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let write = |byte: u8| {
        let data = [byte; 64];
        let tensor = TensorOut::new("a", Dtype::U8, vec![64], &data);
        container::write(&path, &[tensor], &BTreeMap::new()).unwrap();
    };
    write(1);
    let old = TensorFile::open(&path).unwrap();
    write(2);
    assert_eq!(old.tensor("a").unwrap().bytes, [1; 64]);
    let new = TensorFile::open(&path).unwrap();
    assert_eq!(new.tensor("a").unwrap().bytes, [2; 64]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_bad_weight_is_named_with_its_file() {
    let weight = SparseBf16::pack(&[0x3f80; 4], 2, 2).unwrap();
    let mut values = weight.values().to_vec();
    values[1] = 0x7fc0;
    let good = weight.tensors("model.layers.3.mlp.up_proj.weight");
    let (_folder, good) = written(&good);
    let tensors: Vec<_> = good
        .names()
        .into_iter()
        .map(|name| {
            let view = good.tensor(&name).unwrap();
            let data = match name.ends_with("values") {
                true => bytemuck::cast_slice(&values),
                false => view.bytes,
            };
            TensorOut::new(name, view.dtype, view.shape, data)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let key = "model.layers.3.mlp.up_proj.weight.shape".to_string();
    container::write(
        &path,
        &tensors,
        &BTreeMap::from([(key, "[2, 2]".to_string())]),
    )
    .unwrap();
    let file = TensorFile::open(&path).unwrap();
    let error = SparseBf16::read(&file, "model.layers.3.mlp.up_proj.weight", 2, 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: tensor model.layers.3.mlp.up_proj.weight: stored value 1 is nan (bf16 bits 0x7fc0); \
             stored values are finite and not +0; pack the model again",
            path.display()
        )
    );
}
