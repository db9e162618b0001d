//! Checkpoints that are right in unusual ways, and a wrong one for each error.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Files, Tensor, runtime, write_packed, write_tensors};
use half::f16;
use safetensors::Dtype;
use serde_json::json;
use sparamx_format::WeightFormat;
use sparamx_format::container::TensorFile;
use sparamx_model::{Checkpoint, Inexact, LoadOptions, Model, ModelError};

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";
const NORM: &str = "model.layers.0.input_layernorm.weight";

/// The error that a checkpoint is refused with. Its message is one line that names the folder.
fn refused(open: Result<Checkpoint, ModelError>) -> ModelError {
    let error = open.err().expect("it should be refused");
    let message = error.to_string();
    assert!(
        message.contains("/") && !message.contains('\n'),
        "{message}"
    );
    error
}

fn load(checkpoint: &Checkpoint) -> Result<Model, ModelError> {
    Model::load(&runtime(), checkpoint, &LoadOptions::default(), &mut |_| {})
}

#[test]
fn every_tensor_is_listed_with_its_size() {
    let checkpoint = Files::new(json!({})).open().unwrap();
    let q = checkpoint.tensors().find(|t| t.name == Q_PROJ).unwrap();
    assert_eq!(
        (q.shape, q.dtype.as_str(), q.packed, q.bytes),
        (vec![12, 12], "F32", None, 12 * 12 * 4)
    );
    assert_eq!(checkpoint.tensors().count(), checkpoint.plan().len());
    // One value in sixteen is zero: (7 i + 3) % 16 == 8.
    assert_eq!(checkpoint.nnz(Q_PROJ).unwrap(), 144 - 9);
    assert_eq!(checkpoint.nnz(NORM).unwrap(), 12 - 1);
}

#[test]
fn values_are_rounded_to_nearest_even_and_counted() {
    let mut files = Files::new(json!({}));
    let mut values = vec![1.0f32; 144];
    // Halfway between two bf16 values, above and below an even one, and just off halfway.
    values[..4].copy_from_slice(&[
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.1 / 256.0,
        -0.0,
    ]);
    files
        .tensors
        .insert(Q_PROJ.to_owned(), Tensor::f32(vec![12, 12], &values));
    let checkpoint = files.open().unwrap();
    let rows = checkpoint.raw_rows(Q_PROJ).unwrap();
    assert_eq!((rows.n, rows.k, rows.inexact), (12, 12, 3));
    assert_eq!(rows.bits[..5], [0x3f80, 0x3f82, 0x3f81, 0x8000, 0x3f80]);
    let model = load(&checkpoint).unwrap();
    let values = checkpoint
        .plan()
        .iter()
        .filter(|t| t.shape.len() == 2)
        .map(|t| t.elements())
        .sum();
    assert_eq!(model.inexact(), Inexact { values, rounded: 3 });
}

#[test]
fn f16_and_bf16_are_read() {
    let mut files = Files::new(json!({}));
    let f16s: Vec<u8> = (0..144)
        .flat_map(|i| f16::from_f32(i as f32 / 8.0).to_le_bytes())
        .collect();
    files.tensors.insert(
        Q_PROJ.to_owned(),
        Tensor {
            dtype: Dtype::F16,
            shape: vec![12, 12],
            bytes: f16s,
        },
    );
    let bf16s: Vec<u8> = (0..12)
        .flat_map(|i| (0x3f80u16 + i).to_le_bytes())
        .collect();
    files.tensors.insert(
        NORM.to_owned(),
        Tensor {
            dtype: Dtype::BF16,
            shape: vec![12],
            bytes: bf16s,
        },
    );
    let checkpoint = files.open().unwrap();
    assert_eq!(checkpoint.raw_rows(Q_PROJ).unwrap().bits[8], 0x3f80);
    assert_eq!(checkpoint.vector(NORM).unwrap()[1], 1.0 + 1.0 / 128.0);
    load(&checkpoint).unwrap();
}

/// A tensor that would be refused if it were looked at.
fn odd() -> Tensor {
    Tensor {
        dtype: Dtype::I64,
        shape: vec![1],
        bytes: vec![0; 8],
    }
}

#[test]
fn tables_that_old_programs_wrote_beside_the_model_are_left_out_in_silence() {
    let mut files = Files::new(json!({}));
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.embeddings.position_ids",
        "model.layers.0.self_attn.masked_bias",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
    ] {
        files.tensors.insert(name.to_owned(), odd());
    }
    let checkpoint = files.open().unwrap();
    assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    load(&checkpoint).unwrap();
}

#[test]
fn tensors_that_make_no_difference_are_left_out_and_told_once() {
    let mut files = Files::new(json!({}));
    for name in [
        "model.layers.0.self_attn.k_proj.k_scale",
        "model.layers.1.self_attn.v_scale",
        "model.layers.1.mlp.down_proj.input_scale",
        "model.layers.1.self_attn.prob_output_scale",
        "model.layers.2.eh_proj.weight",
        "model.layers.17.mlp.up_proj.weight",
        "mtp.fc.weight",
        "model.mtp.0.weight",
        "score.weight",
        "model.value_head.weight",
        "v_head.summary.bias",
        "vision_tower.layers.0.weight",
        "model.visual.patch_embed.weight",
    ] {
        files.tensors.insert(name.to_owned(), odd());
    }
    let checkpoint = files.open().unwrap();
    let [note] = checkpoint.notes() else {
        panic!("{:?}", checkpoint.notes())
    };
    for part in [
        "4 scales of activations or of a KV cache ('model.layers.0.self_attn.k_proj.k_scale')",
        "2 in layers after the last one",
        "2 of multi-token prediction",
        "5 of modules beside the language model",
    ] {
        assert!(note.contains(part), "{note} lacks {part}");
    }
    load(&checkpoint).unwrap();
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The elements of what the output head multiplies with, and of the embedding.
fn head_and_embedding(checkpoint: &Checkpoint) -> (Vec<u16>, Vec<u16>) {
    let tied = checkpoint.config().tie_word_embeddings;
    let rows = |name| checkpoint.raw_rows(name).unwrap().bits.into_owned();
    let head = rows(if tied { EMBEDDING } else { HEAD });
    (head, rows(EMBEDDING))
}

#[test]
fn a_head_of_its_own_is_used_though_the_config_ties_it() {
    let untied = Files::new(json!({}));
    let mut files = Files::new(json!({"tie_word_embeddings": true}));
    let copy = files.tensors[EMBEDDING].clone();
    files.tensors.insert(HEAD.to_owned(), copy);
    let tied = files.open().unwrap();
    assert!(tied.config().tie_word_embeddings && tied.notes().is_empty());
    let values: Vec<f32> = (0..40 * 12).map(|i| (i % 7) as f32).collect();
    let head = Tensor::f32(vec![40, 12], &values);
    files.tensors.insert(HEAD.to_owned(), head.clone());
    let checkpoint = files.open().unwrap();
    assert!(!checkpoint.config().tie_word_embeddings);
    assert!(
        checkpoint.notes()[0].contains(HEAD),
        "{:?}",
        checkpoint.notes()
    );
    let (head_bits, embedding) = head_and_embedding(&checkpoint);
    assert_eq!(head_bits[..3], [0, 0x3f80, 0x4000]);
    assert_eq!(embedding, head_and_embedding(&untied.open().unwrap()).1);
    load(&checkpoint).unwrap();
    // Packed, and with a config that still says that they are one.
    let dir = tempfile::tempdir().unwrap();
    write_packed(&checkpoint, files.config.clone(), dir.path());
    let packed = Checkpoint::open(dir.path()).unwrap();
    assert!(!packed.config().tie_word_embeddings);
    assert_eq!(head_and_embedding(&packed), (head_bits, embedding));
    // A head that is no head of this model is not passed over.
    files.tensors.insert(HEAD.to_owned(), odd());
    let error = refused(files.open());
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
}

#[test]
fn a_head_without_an_embedding_is_the_embedding() {
    let mut files = Files::new(json!({"tie_word_embeddings": true}));
    let expected = head_and_embedding(&files.open().unwrap());
    let embedding = files.tensors.remove(EMBEDDING).unwrap();
    files.tensors.insert(HEAD.to_owned(), embedding);
    let checkpoint = files.open().unwrap();
    assert!(checkpoint.config().tie_word_embeddings);
    assert_eq!(head_and_embedding(&checkpoint), expected);
    let info = checkpoint.tensors().next().unwrap();
    assert_eq!((info.name.as_str(), info.bytes), (EMBEDDING, 40 * 12 * 4));
    load(&checkpoint).unwrap();
    // Where they are two, one of them is missing.
    files.config["tie_word_embeddings"] = json!(false);
    assert!(matches!(
        refused(files.open()),
        ModelError::MissingTensor { tensor, .. } if tensor == EMBEDDING
    ));
    let mut files = Files::new(json!({}));
    files.tensors.remove(HEAD);
    let message = refused(files.open()).to_string();
    assert!(message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn f64_is_rounded_as_pytorch_does() {
    let mut files = Files::new(json!({}));
    let mut values = vec![1.0f64; 144];
    // A tie of bf16 only once it is an f32, and a value that is one only as f64.
    values[..3].copy_from_slice(&[1.0 + 1.0 / 256.0 + 1e-12, 0.1, -2.5]);
    let wide = |shape: Vec<usize>, values: &[f64]| Tensor {
        dtype: Dtype::F64,
        shape,
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let tensors = &mut files.tensors;
    tensors.insert(Q_PROJ.to_owned(), wide(vec![12, 12], &values));
    tensors.insert(NORM.to_owned(), wide(vec![12], &values[..12]));
    let checkpoint = files.open().unwrap();
    let rows = checkpoint.raw_rows(Q_PROJ).unwrap();
    assert_eq!(rows.bits[..4], [0x3f80, 0x3dcd, 0xc020, 0x3f80]);
    assert_eq!(rows.inexact, 2);
    assert_eq!(checkpoint.vector(NORM).unwrap()[1], 0.1);
    load(&checkpoint).unwrap();
    values[5] = 1e300;
    files
        .tensors
        .insert(Q_PROJ.to_owned(), wide(vec![12, 12], &values));
    let error = load(&files.open().unwrap()).err().unwrap();
    assert!(
        matches!(error, ModelError::NotFinite { element: 5, .. }),
        "{error}"
    );
}

#[test]
fn names_that_are_no_tensors_of_the_model_are_refused() {
    let checkpoint = Files::new(json!({})).open().unwrap();
    assert!(matches!(
        checkpoint.raw_rows("x"),
        Err(ModelError::MissingTensor { .. })
    ));
    assert!(matches!(
        checkpoint.raw_rows(NORM),
        Err(ModelError::MissingTensor { .. })
    ));
    assert!(matches!(
        checkpoint.vector("x"),
        Err(ModelError::MissingTensor { .. })
    ));
    assert!(matches!(
        checkpoint.packed("x"),
        Err(ModelError::MissingTensor { .. })
    ));
    assert!(checkpoint.packed(Q_PROJ).unwrap().is_none());
}

#[test]
fn a_missing_folder_or_config_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for dir in [dir.path(), &dir.path().join("nowhere")] {
        let error = refused(Checkpoint::open(dir));
        assert!(
            matches!(&error, ModelError::Io { path, .. } if path.ends_with("config.json")),
            "{error}"
        );
        assert!(error.to_string().contains("Hugging Face"), "{error}");
    }
}

#[test]
fn a_folder_without_safetensors_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    Files::new(json!({})).write_config(dir.path());
    let message = refused(Checkpoint::open(dir.path())).to_string();
    assert!(message.contains("neither model.safetensors"), "{message}");
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let message = refused(Checkpoint::open(dir.path())).to_string();
    assert!(message.contains("safe_serialization"), "{message}");
}

#[test]
fn a_missing_tensor_is_named() {
    let mut files = Files::new(json!({}));
    files.tensors.remove(Q_PROJ);
    let error = refused(files.open());
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == Q_PROJ),
        "{error}"
    );
}

#[test]
fn a_tensor_without_a_place_is_named() {
    for name in [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_proj.weight_scale",
        "model.layers.1.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.1.self_attn.q_proj.lora_A.weight",
        "model.norm.bias",
        "model.embed_positions.weight",
        "lm_head.bias",
        "model.extra",
        "logit_scale",
    ] {
        let mut files = Files::new(json!({}));
        files
            .tensors
            .insert(name.to_owned(), Tensor::f32(vec![12], &[0.0; 12]));
        let error = refused(files.open());
        assert!(
            matches!(&error, ModelError::UnexpectedTensor { tensor, .. } if tensor == name),
            "{error}"
        );
    }
}

#[test]
fn packed_and_dense_tensors_mix() {
    let files = Files::new(json!({}));
    let dense = files.open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_packed(&dense, files.config.clone(), dir.path());
    let packed = Checkpoint::open(dir.path()).unwrap();
    for tensor in packed.tensors() {
        let plan = packed
            .plan()
            .iter()
            .find(|t| t.name == tensor.name)
            .unwrap();
        let packed_bf16 = Some(WeightFormat::SparseBf16);
        let expected = packed_bf16.filter(|_| plan.role.may_be_packed());
        assert_eq!(tensor.packed, expected, "{tensor:?}");
        assert_eq!(
            tensor.dtype,
            if tensor.packed.is_some() {
                "BF16"
            } else {
                "F32"
            },
            "{tensor:?}"
        );
        assert_eq!(
            packed.nnz(&tensor.name).unwrap(),
            dense.nnz(&tensor.name).unwrap(),
            "{tensor:?}"
        );
        if tensor.shape.len() == 2 {
            let (found, expected) = (packed.raw_rows(&tensor.name), dense.raw_rows(&tensor.name));
            assert_eq!(found.unwrap().bits, expected.unwrap().bits, "{tensor:?}");
        }
    }
    assert!(Model::required_bytes(&packed) < Model::required_bytes(&dense));
    load(&packed).unwrap();
}

#[test]
fn damaged_packed_weights_are_refused_by_name() {
    let files = Files::new(json!({}));
    let dir = tempfile::tempdir().unwrap();
    write_packed(&files.open().unwrap(), files.config.clone(), dir.path());
    let path = dir.path().join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let file = TensorFile::from_bytes(&good).unwrap();
    for part in [".mask", ".offsets"] {
        let view = file.tensor(&format!("{Q_PROJ}{part}")).unwrap();
        let at = good
            .windows(view.bytes.len())
            .position(|w| w == view.bytes)
            .unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = load(&Checkpoint::open(dir.path()).unwrap()).err().unwrap();
        let message = error.to_string();
        assert!(matches!(error, ModelError::Format(_)), "{message}");
        assert!(
            message.contains("q_proj.weight") && !message.contains('\n'),
            "{message}"
        );
    }
}

#[test]
fn a_packed_weight_of_another_shape_is_refused() {
    let files = Files::new(json!({}));
    let dir = tempfile::tempdir().unwrap();
    let mut config = files.config.clone();
    config["intermediate_size"] = json!(21);
    write_packed(&files.open().unwrap(), config, dir.path());
    let message = load(&Checkpoint::open(dir.path()).unwrap())
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("mlp.gate_proj.weight") && message.contains("21"),
        "{message}"
    );
}

#[test]
fn packed_tensors_need_a_config_that_announces_them() {
    let mut files = Files::new(json!({}));
    files.tensors.remove(Q_PROJ);
    let mask = format!("{Q_PROJ}.mask");
    files.tensors.insert(
        mask.clone(),
        Tensor {
            dtype: Dtype::U32,
            shape: vec![1],
            bytes: vec![0; 4],
        },
    );
    let error = refused(files.open());
    assert!(
        matches!(&error, ModelError::UnexpectedTensor { tensor, .. } if *tensor == mask),
        "{error}"
    );
}

#[test]
fn a_tensor_cannot_be_dense_and_packed() {
    let packed = json!({"quant_method": "sparamx", "layout": "strip16", "version": 1});
    let mut files = Files::new(json!({"quantization_config": packed}));
    let mask = format!("{Q_PROJ}.mask");
    files.tensors.insert(
        mask.clone(),
        Tensor {
            dtype: Dtype::U32,
            shape: vec![1],
            bytes: vec![0; 4],
        },
    );
    let error = refused(files.open());
    assert!(
        matches!(&error, ModelError::UnexpectedTensor { tensor, .. } if *tensor == mask),
        "{error}"
    );
}

#[test]
fn a_wrong_shape_is_told_with_the_right_one() {
    let mut files = Files::new(json!({}));
    files.config["num_key_value_heads"] = json!(3);
    let error = refused(files.open());
    let message = error.to_string();
    assert!(matches!(error, ModelError::Shape { .. }), "{message}");
    assert!(
        message.contains(
            "k_proj.weight' has shape [4, 12], the model's configuration asks for [12, 12]"
        ),
        "{message}"
    );
}

#[test]
fn other_element_types_are_named() {
    let mut files = Files::new(json!({}));
    let int8 = Tensor {
        dtype: Dtype::I8,
        shape: vec![12, 12],
        bytes: vec![0; 144],
    };
    files.tensors.insert(Q_PROJ.to_owned(), int8);
    let error = refused(files.open());
    let message = error.to_string();
    assert!(matches!(error, ModelError::Dtype { .. }), "{message}");
    assert!(
        message.contains(Q_PROJ) && message.contains("I8"),
        "{message}"
    );
}

#[test]
fn values_that_are_no_numbers_in_bf16_are_named() {
    // The last is a finite f32 that rounds to infinity.
    for (name, shape) in [(Q_PROJ, vec![12, 12]), (NORM, vec![12])] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut values = vec![0.5; shape.iter().product()];
            values[7] = value;
            let mut files = Files::new(json!({}));
            files
                .tensors
                .insert(name.to_owned(), Tensor::f32(shape.clone(), &values));
            let loaded = load(&files.open().unwrap());
            if value == f32::MAX && name == NORM {
                // Norms stay f32.
                assert!(loaded.is_ok());
                continue;
            }
            let error = loaded.err().unwrap();
            assert!(
                matches!(&error, ModelError::NotFinite { tensor, element: 7, .. } if tensor == name),
                "{error}"
            );
        }
    }
}

/// The files of a sharded checkpoint in a folder.
fn shards(dir: &Path, index: &str) {
    let files = Files::new(json!({}));
    files.write_config(dir);
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    for (i, (name, tensor)) in files.tensors.into_iter().enumerate() {
        if i % 2 == 0 { &mut first } else { &mut second }.insert(name, tensor);
    }
    write_tensors(&first, &dir.join("a.safetensors"));
    write_tensors(&second, &dir.join("b.safetensors"));
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("a.safetensors", &first), ("b.safetensors", &second)] {
        map.extend(tensors.keys().map(|name| (name.clone(), json!(file))));
    }
    let index = index.replace("MAP", &json!(map).to_string());
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn shards_are_found_through_the_index() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), r#"{"metadata": {}, "weight_map": MAP}"#);
    load(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    std::fs::remove_file(dir.path().join("b.safetensors")).unwrap();
    let error = refused(Checkpoint::open(dir.path()));
    let message = error.to_string();
    assert!(
        matches!(&error, ModelError::MissingShard { shard, .. } if shard == "b.safetensors"),
        "{message}"
    );
    assert!(
        message.contains("model.safetensors.index.json"),
        "{message}"
    );
}

/// What is in a file its header says: an index may name what is not there, leave out what is, and put it elsewhere.
#[test]
fn an_index_that_is_wrong_about_tensors_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), r#"{"weight_map": MAP}"#);
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    map.insert("mtp.fc.weight".to_owned(), json!("b.safetensors"));
    map.insert(
        "mtp.norm.weight".to_owned(),
        json!("not-downloaded.safetensors"),
    );
    map.insert(EMBEDDING.to_owned(), json!("b.safetensors"));
    map.shift_remove(Q_PROJ);
    std::fs::write(&path, index.to_string()).unwrap();
    load(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    // Where two files have one, the index decides, or nobody can.
    let copy: BTreeMap<String, Tensor> =
        BTreeMap::from([(Q_PROJ.to_owned(), Tensor::f32(vec![12, 12], &[0.0; 144]))]);
    write_tensors(&copy, &dir.path().join("c.safetensors"));
    index["weight_map"]["mtp.norm.weight"] = json!("c.safetensors");
    std::fs::write(&path, index.to_string()).unwrap();
    let message = refused(Checkpoint::open(dir.path())).to_string();
    assert!(
        message.contains(Q_PROJ) && message.contains("no index says"),
        "{message}"
    );
    index["weight_map"][Q_PROJ] = json!("c.safetensors");
    std::fs::write(&path, index.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.nnz(Q_PROJ).unwrap(), 0);
}

#[test]
fn numbered_shards_need_no_index() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), r#"{"weight_map": MAP}"#);
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    let numbered = |i| {
        dir.path()
            .join(format!("model-0000{i}-of-00002.safetensors"))
    };
    std::fs::rename(dir.path().join("a.safetensors"), numbered(1)).unwrap();
    let error = refused(Checkpoint::open(dir.path()));
    assert!(
        matches!(&error, ModelError::MissingShard { shard, .. } if shard == "model-00002-of-00002.safetensors"),
        "{error}"
    );
    std::fs::rename(dir.path().join("b.safetensors"), numbered(2)).unwrap();
    // Nor one that says something.
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    load(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    std::fs::remove_file(index).unwrap();
    let other = dir.path().join("model-00001-of-00003.safetensors");
    std::fs::write(&other, "").unwrap();
    let message = refused(Checkpoint::open(dir.path())).to_string();
    assert!(message.contains("files of several series"), "{message}");
    std::fs::remove_file(other).unwrap();
    load(&Checkpoint::open(dir.path()).unwrap()).unwrap();
}

#[test]
fn what_a_clone_or_a_download_left_in_place_of_a_file_is_told() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    for name in [
        "model.safetensors",
        "config.json",
        "model.safetensors.index.json",
    ] {
        let dir = tempfile::tempdir().unwrap();
        if name == "model.safetensors.index.json" {
            Files::new(json!({})).write_config(dir.path());
        } else {
            Files::new(json!({})).write(dir.path());
        }
        let path = dir.path().join(name);
        std::fs::write(&path, pointer).unwrap();
        let message = refused(Checkpoint::open(dir.path())).to_string();
        assert!(
            message.contains("git lfs pull") && message.contains(name),
            "{message}"
        );
    }
}

#[cfg(unix)]
#[test]
fn links_to_nothing_pipes_and_devices_are_told_and_not_opened() {
    use std::os::unix::fs::symlink;
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        let dir = tempfile::tempdir().unwrap();
        Files::new(json!({})).write(dir.path());
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        symlink("../../blobs/gone", &path).unwrap();
        let message = refused(Checkpoint::open(dir.path())).to_string();
        assert!(
            message.contains(name) && message.contains("a link to ../../blobs/gone"),
            "{message}"
        );
        std::fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        let message = refused(Checkpoint::open(dir.path())).to_string();
        assert!(message.contains("not a regular file"), "{message}");
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let message = refused(Checkpoint::open(dir.path())).to_string();
        assert!(message.contains("not a regular file"), "{message}");
    }
}

#[test]
fn the_mark_of_utf_8_and_numbers_of_python_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(json!({}));
    files.write(dir.path());
    let path = dir.path().join("config.json");
    let config = files
        .config
        .to_string()
        .replacen('{', "\u{feff}{\"initializer_range\": NaN, ", 1);
    std::fs::write(&path, &config).unwrap();
    Checkpoint::open(dir.path()).unwrap();
    let config = config.replacen('{', "{\"rope_theta\": Infinity, ", 1);
    std::fs::write(&path, config).unwrap();
    let message = refused(Checkpoint::open(dir.path())).to_string();
    assert!(
        message.contains("field 'rope_theta' is \"Infinity\", expected a number"),
        "{message}"
    );
}

#[test]
fn a_name_of_any_length_makes_a_short_message() {
    let mut files = Files::new(json!({}));
    let name = format!("model.{}", "x\n".repeat(20_000));
    files.tensors.insert(name, odd());
    assert!(refused(files.open()).to_string().len() < 1000);
    files.config["architectures"] = json!(["y".repeat(40_000)]);
    assert!(refused(files.open()).to_string().len() < 1000);
}

#[test]
fn ids_of_another_tokenizer_are_passed_over() {
    let files =
        Files::new(json!({"bos_token_id": 40, "eos_token_id": [7, 999], "pad_token_id": -1}));
    let checkpoint = files.open().unwrap();
    let config = checkpoint.config();
    assert_eq!(
        (config.bos_token_id, &config.eos_token_id[..]),
        (None, &[7][..])
    );
    let notes = checkpoint.notes();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes[0].starts_with("bos_token_id 40 is not below vocab_size 40"),
        "{notes:?}"
    );
    let none = Files::new(json!({"eos_token_id": -1})).open().unwrap();
    assert!(none.config().eos_token_id.is_empty() && none.notes().is_empty());
}

#[test]
fn an_index_that_is_wrong_is_refused() {
    type Check = fn(&ModelError) -> bool;
    let cases: [(&str, Check); 7] = [
        ("", |e| matches!(e, ModelError::Json { .. })),
        ("[]", |e| matches!(e, ModelError::Json { .. })),
        ("{}", |e| matches!(e, ModelError::MissingField { .. })),
        (r#"{"weight_map": {"x": "a.safetensors"}}"#, |e| {
            matches!(e, ModelError::MissingTensor { .. })
        }),
        (r#"{"weight_map": {"x": "../a.safetensors"}}"#, |e| {
            matches!(e, ModelError::BadField { .. })
        }),
        (r#"{"weight_map": {"x": "/etc/passwd"}}"#, |e| {
            matches!(e, ModelError::BadField { .. })
        }),
        (r#"{"weight_map": {"x": 1}}"#, |e| {
            matches!(e, ModelError::BadField { .. })
        }),
    ];
    for (index, check) in cases {
        let dir = tempfile::tempdir().unwrap();
        shards(dir.path(), index);
        let error = refused(Checkpoint::open(dir.path()));
        assert!(check(&error), "{index}: {error}");
    }
}

#[test]
fn a_damaged_container_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Files::new(json!({})).write(dir.path());
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let error = refused(Checkpoint::open(dir.path()));
        assert!(matches!(error, ModelError::Format(_)), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_read() {
    let checkpoint = Files::new(json!({})).open().unwrap();
    let needed = Model::required_bytes(&checkpoint);
    let load = |available| {
        let options = LoadOptions {
            available_bytes: Some(available),
        };
        let mut calls = 0;
        let model = Model::load(&runtime(), &checkpoint, &options, &mut |_| calls += 1);
        (model, calls)
    };
    assert!(load(needed).0.is_ok());
    let (model, calls) = load(needed - 1);
    let error = model.err().unwrap();
    assert_eq!(calls, 0);
    let ModelError::NotEnoughMemory {
        needed_bytes,
        available_bytes,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((needed_bytes, available_bytes), (needed, needed - 1));
    assert!(
        error.to_string().contains(&format!("needs {needed} bytes")),
        "{error}"
    );
}

#[test]
fn required_memory_is_that_of_padded_weights() {
    let checkpoint = Files::new(json!({})).open().unwrap();
    // Matrices of N x K padded to 16 x 32 in bf16: embedding and head 48 x 32; in each layer q, k, v, o of 16 x 32, gate and up
    // 32 x 32, down 16 x 32. Norms in f32. The largest once more.
    let matrices = 2 * 48 * 32 + 2 * (4 * 16 * 32 + 2 * 32 * 32 + 16 * 32);
    assert_eq!(
        Model::required_bytes(&checkpoint),
        (matrices + 48 * 32) * 2 + 5 * 12 * 4
    );
}

#[test]
fn progress_goes_from_the_first_tensor_to_the_last() {
    let checkpoint = Files::new(json!({"attention_bias": true})).open().unwrap();
    let mut steps: Vec<(String, u64, u64)> = Vec::new();
    Model::load(&runtime(), &checkpoint, &LoadOptions::default(), &mut |p| {
        steps.push((p.tensor.to_owned(), p.done_bytes, p.total_bytes));
    })
    .unwrap();
    assert_eq!(steps.len(), checkpoint.plan().len());
    assert!(
        steps
            .windows(2)
            .all(|w| w[0].1 < w[1].1 && w[0].2 == w[1].2)
    );
    let (_, done, total) = steps.last().unwrap();
    assert_eq!(done, total);
}
