//! Checkpoints that the package compressed-tensors wrote (`tools/checkpoints`), and damaged ones.

mod common;

use std::path::{Path, PathBuf};

use common::{runtime, write_tensors};
use serde_json::{Value, json};
use sparamx_format::WeightFormat;
use sparamx_kernels::Weight;
use sparamx_model::{Checkpoint, LoadOptions, Model, ModelError};

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";
const ALL: [&str; 11] = [
    "dense",
    "bitmask-24",
    "bitmask-gen1",
    "bitmask-gen2",
    "int8",
    "int8-exact",
    "int8-bitmask",
    "int8-packed",
    "int4",
    "int4-asymmetric",
    "int4-index",
];

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    fixtures.join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

fn fnv1a(bytes: &[u8]) -> String {
    let value = bytes.iter().fold(0xcbf29ce484222325u64, |value, &byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100000001b3)
    });
    format!("{value:016x}")
}

/// Reads everything there is of a checkpoint.
fn read_all(checkpoint: &Checkpoint) -> Result<(), ModelError> {
    for (plan, info) in checkpoint.plan().iter().zip(checkpoint.tensors()) {
        if plan.shape.len() == 2 {
            let rows = checkpoint.raw_rows(&plan.name)?;
            assert_eq!(rows.bits.len() as u64, plan.elements(), "{}", plan.name);
            let packed = checkpoint.packed(&plan.name)?;
            assert_eq!(packed.is_some(), info.packed.is_some(), "{}", plan.name);
        } else {
            let vector = checkpoint.vector(&plan.name)?;
            assert_eq!(vector.len() as u64, plan.elements(), "{}", plan.name);
        }
        assert!(checkpoint.nnz(&plan.name)? as u64 <= plan.elements());
    }
    Ok(())
}

/// The elements are those that the package itself takes out of the form, as bf16.
#[test]
fn every_element_is_what_the_package_says() {
    for name in ALL {
        let checkpoint = open(name);
        let expected = std::fs::read(fixture(name).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        assert_eq!(checkpoint.plan().len(), expected.as_object().unwrap().len());
        for plan in checkpoint.plan() {
            let hash = if plan.shape.len() == 2 {
                let rows = checkpoint.raw_rows(&plan.name).unwrap();
                fnv1a(bytemuck::cast_slice(&rows.bits))
            } else {
                fnv1a(checkpoint.view(&plan.name).unwrap().bytes)
            };
            assert_eq!(hash, expected[&plan.name], "{name}: {}", plan.name);
        }
        read_all(&checkpoint).unwrap();
        Model::load(
            &runtime(),
            &checkpoint,
            &LoadOptions::default(),
            &mut |_| {},
        )
        .unwrap();
    }
}

/// Both generations and the dense file hold the same model.
#[test]
fn bitmasks_are_the_dense_model() {
    let dense = open("dense");
    for name in ["bitmask-gen1", "bitmask-gen2"] {
        let sparse = open(name);
        for plan in dense.plan().iter().filter(|plan| plan.shape.len() == 2) {
            let [a, b] =
                [&dense, &sparse].map(|checkpoint| checkpoint.raw_rows(&plan.name).unwrap());
            assert!(a.bits == b.bits, "{name}: {}", plan.name);
            let [a, b] = [&dense, &sparse].map(|checkpoint| checkpoint.nnz(&plan.name).unwrap());
            assert_eq!(a, b, "{name}: {}", plan.name);
        }
    }
}

#[test]
fn what_kernels_can_hold_stays_levels_and_what_gains_stays_sparse() {
    for (name, form, encoding) in [
        ("dense", None, "dense"),
        (
            "bitmask-24",
            Some(WeightFormat::SparseBf16),
            "sparse-bitmask",
        ),
        (
            "bitmask-gen1",
            Some(WeightFormat::SparseBf16),
            "sparse-bitmask",
        ),
        (
            "bitmask-gen2",
            Some(WeightFormat::SparseBf16),
            "sparse-bitmask",
        ),
        ("int8", None, "int-quantized"),
        ("int8-exact", Some(WeightFormat::DenseI8), "int-quantized"),
        (
            "int8-bitmask",
            Some(WeightFormat::SparseI8),
            "sparse-bitmask",
        ),
        ("int8-packed", Some(WeightFormat::DenseI8), "pack-quantized"),
        ("int4", Some(WeightFormat::DenseI4), "pack-quantized"),
        ("int4-asymmetric", None, "pack-quantized"),
        ("int4-index", Some(WeightFormat::DenseI4), "pack-quantized"),
    ] {
        let checkpoint = open(name);
        let info = |wanted: &str| {
            checkpoint
                .tensors()
                .find(|t| t.name == format!("{wanted}.weight"))
                .unwrap()
        };
        let q_proj = info(Q_PROJ);
        assert_eq!(
            (q_proj.packed, q_proj.encoding.name()),
            (form, encoding),
            "{name}"
        );
        // The head has no zeros, so a bitmask of it gains nothing.
        assert_eq!(info("lm_head").packed, None, "{name}");
    }
    // One group in a row is in order whatever the index; down_proj has two, mixed.
    let mixed = open("int4-index")
        .packed("model.layers.0.mlp.down_proj.weight")
        .unwrap();
    assert!(mixed.is_none());
}

#[test]
fn what_became_bf16_is_said() {
    let said = |name| open(name).dequantized();
    assert_eq!(said("int8"), Some((7, "levels of -128")));
    assert_eq!(said("int4-asymmetric"), Some((7, "zero points")));
    assert_eq!(
        said("int4-index"),
        Some((1, "groups of columns by an index"))
    );
    for name in ["dense", "bitmask-gen1", "int8-exact", "int4"] {
        assert_eq!(said(name), None, "{name}");
    }
}

/// All elements of a weight of levels.
fn elements(weight: Weight) -> Vec<f32> {
    assert!(weight.scales().is_some(), "{:?}", weight.format());
    let strips = 0..weight.strips();
    strips.flat_map(|s| weight.strip_to_f32(s)).collect()
}

/// Levels times scales, rounded, are what the rows say.
#[test]
fn levels_are_worth_the_rows() {
    for name in ["int8-exact", "int8-bitmask", "int8-packed", "int4"] {
        let checkpoint = open(name);
        let projections = checkpoint
            .plan()
            .iter()
            .filter(|plan| plan.name.contains("_proj"));
        for plan in projections {
            let weight = checkpoint.packed(&plan.name).unwrap();
            let rows = checkpoint.raw_rows(&plan.name).unwrap();
            let elements = elements(weight.expect("it has levels")).into_iter();
            let bits: Vec<u16> = elements
                .map(|v| half::bf16::from_f32(v).to_bits())
                .collect();
            assert!(bits == *rows.bits, "{name}: {}", plan.name);
        }
    }
}

/// A fixture with one thing changed.
fn changed(
    name: &str,
    config: impl Fn(&mut Value),
    tensors: impl Fn(&mut common::Tensors),
) -> Result<(), ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let read = |file| std::fs::read(fixture(name).join(file)).unwrap();
    let mut json: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config(&mut json);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let mut found = common::read_tensors(&fixture(name).join("model.safetensors"));
    tensors(&mut found);
    write_tensors(&found, &dir.path().join("model.safetensors"));
    read_all(&Checkpoint::open(dir.path())?)
}

#[track_caller]
fn assert_refused(result: Result<(), ModelError>, expected: &str) {
    let message = result.expect_err("it should be refused").to_string();
    assert!(
        message.contains(expected) && !message.contains('\n'),
        "{message} instead of {expected}"
    );
}

#[test]
fn other_methods_and_formats_are_named() {
    let config = |path: &'static str, value: Value| {
        changed(
            "int4",
            |json| *json.pointer_mut(path).unwrap() = value.clone(),
            |_| {},
        )
    };
    assert_refused(
        config("/quantization_config/quant_method", json!("gptq")),
        "quantized with 'gptq' are not supported",
    );
    assert_refused(
        config("/quantization_config/quant_method", json!("gptq")),
        "pack-quantized",
    );
    assert_refused(
        config("/quantization_config", json!({"bits": 4})),
        "that quantization_config does not name",
    );
    assert_refused(
        config("/quantization_config/format", json!("float-quantized")),
        "format 'float-quantized'",
    );
    let group = "/quantization_config/config_groups/group_0";
    let weights = |field: &str, value: Value| {
        let path = format!("{group}/weights/{field}");
        changed(
            "int4",
            |json| *json.pointer_mut(&path).unwrap() = value.clone(),
            |_| {},
        )
    };
    assert_refused(weights("num_bits", json!(3)), "in 3 bits");
    assert_refused(weights("type", json!("float")), "type 'float'");
    assert_refused(
        config(
            "/quantization_config/sparsity_config",
            json!({"format": "marlin-24"}),
        ),
        "format 'marlin-24'",
    );
}

/// Versions 0.3 to 0.6 had other keys.
#[test]
fn old_keys_of_the_configuration_are_read() {
    let moved = |key: Option<&str>| {
        changed(
            "bitmask-gen1",
            |json| {
                let config = json
                    .as_object_mut()
                    .unwrap()
                    .remove("quantization_config")
                    .unwrap();
                match key {
                    Some(key) => json[key] = json!({"sparsity_config": config["sparsity_config"]}),
                    None => json["sparsity_config"] = json!({"format": "sparse_bitmask"}),
                }
            },
            |_| {},
        )
    };
    moved(Some("compression_config")).unwrap();
    moved(Some("quantization_config")).unwrap();
    moved(None).unwrap();
}

/// Opens a checkpoint with a tensor of its first layer's q_proj changed.
fn with_part(
    fixture: &str,
    name: &str,
    change: impl Fn(&mut common::Tensor),
) -> Result<(), ModelError> {
    let name = format!("{Q_PROJ}.{name}");
    changed(
        fixture,
        |_| {},
        |tensors| change(tensors.get_mut(&name).unwrap()),
    )
}

#[test]
fn missing_parts_are_named() {
    let remove = |fixture: &str, name: &str| {
        let name = format!("{Q_PROJ}.{name}");
        changed(fixture, |_| {}, |tensors| drop(tensors.remove(&name)))
    };
    // Without its offsets a bitmask is whole all the same.
    remove("bitmask-gen2", "row_offsets").unwrap();
    assert_refused(remove("bitmask-gen2", "shape"), "q_proj.shape' is missing");
    assert_refused(
        remove("bitmask-gen2", "bitmask"),
        "q_proj.weight' is missing",
    );
    assert_refused(
        remove("bitmask-gen1", "weight.compressed"),
        "q_proj.weight.compressed' is missing",
    );
    assert_refused(
        remove("int8", "weight_scale"),
        "q_proj.weight_scale' is missing",
    );
    assert_refused(
        remove("int4", "weight_shape"),
        "q_proj.weight_shape' is missing",
    );
}

#[test]
fn contradictions_are_named_with_their_tensor() {
    let offset = with_part("bitmask-gen2", "row_offsets", |t| t.bytes[8] ^= 1);
    assert_refused(
        offset,
        "q_proj: sparse-bitmask part 'row_offsets': that of row 1",
    );
    let bit = with_part("bitmask-gen1", "weight.bitmask", |t| t.bytes[0] ^= 1);
    assert_refused(bit, "q_proj.weight: sparse-bitmask part");
    let shape = with_part("bitmask-gen2", "shape", |t| t.bytes.rotate_left(8));
    assert!(shape.is_ok(), "32 x 32 turned round is 32 x 32");
    let shape = with_part("bitmask-gen2", "shape", |t| t.bytes[0] = 16);
    assert_refused(shape, "part 'bitmask'");
    let nan = with_part("bitmask-gen2", "compressed", |t| {
        t.bytes[..2].copy_from_slice(&[0xc0, 0x7f])
    });
    assert_refused(nan, "NaN");
    let scale = with_part("int8", "weight_scale", |t| {
        t.bytes[..2].copy_from_slice(&[0xc0, 0x7f])
    });
    assert_refused(scale, "q_proj.weight_scale");
    let scale = with_part("int8", "weight_scale", |t| t.shape = vec![4, 8]);
    assert_refused(scale, "shape [4, 8] gives no scale");
    let words = with_part("int4", "weight_packed", |t| t.shape = vec![16, 8]);
    assert_refused(words, "[32, 4] (4 bits) or [32, 8] (8 bits)");
    let shape = with_part("int4", "weight_shape", |t| t.bytes[8] = 31);
    assert_refused(shape, "[32, 31], config.json asks for [32, 32]");
    let zero = with_part("int4-asymmetric", "weight_zero_point", |t| {
        t.shape = vec![2, 2]
    });
    assert!(zero.is_ok(), "as many words");
}

#[test]
fn tensors_without_a_place_are_named() {
    let both = changed(
        "bitmask-gen2",
        |_| {},
        |tensors| {
            let whole = common::Tensor::f32(vec![32, 32], &[0.0; 1024]);
            tensors.insert(format!("{Q_PROJ}.weight"), whole);
        },
    );
    assert_refused(
        both,
        "no place for tensor 'model.layers.0.self_attn.q_proj'",
    );
    let index = changed(
        "int4-index",
        |_| {},
        |tensors| {
            let index = tensors
                .get_mut("model.layers.0.mlp.down_proj.weight_g_idx")
                .unwrap();
            index.bytes[0] = 2;
        },
    );
    assert_refused(index, "names a group that is not in 0 to 1");
    let stranger = changed(
        "int8",
        |_| {},
        |tensors| {
            tensors.insert(
                "model.layers.0.x".to_owned(),
                common::Tensor::f32(vec![1], &[1.0]),
            );
        },
    );
    assert_refused(stranger, "'model.layers.0.x'");
    // What belongs to activations and caches is no business of ours.
    changed(
        "int8",
        |_| {},
        |tensors| {
            tensors.insert(
                format!("{Q_PROJ}.input_scale"),
                common::Tensor::f32(vec![1], &[1.0]),
            );
            tensors.insert(
                "model.layers.0.self_attn.k_scale".to_owned(),
                common::Tensor::f32(vec![1], &[1.0]),
            );
        },
    )
    .unwrap();
    // A dense checkpoint has no levels.
    let plain = changed(
        "int8",
        |json| drop(json.as_object_mut().unwrap().remove("quantization_config")),
        |_| {},
    );
    assert_refused(plain, "I8");
}

/// Any byte of a file may be wrong: it is refused or read, and nothing panics.
#[test]
fn damaged_files_are_refused_or_read() {
    let mut random = 1u64;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    for name in ALL {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(
            fixture(name).join("config.json"),
            dir.path().join("config.json"),
        )
        .unwrap();
        let path = dir.path().join("model.safetensors");
        let whole = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut read = 0;
        for round in 0..120 {
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes.truncate(next(whole.len())),
                // Digits of the header are sizes and offsets.
                1 => bytes[next(header)] = b'0' + next(10) as u8,
                _ => bytes[next(whole.len())] ^= 1 << next(8),
            }
            std::fs::write(&path, bytes).unwrap();
            read += usize::from(Checkpoint::open(dir.path()).is_ok_and(|c| read_all(&c).is_ok()));
        }
        assert!(read > 0, "{name}: a flipped bit of a value is a value");
    }
}
