//! GGUF files that the package gguf wrote (`tools/checkpoints`), and damaged ones.

mod common;

use std::path::{Path, PathBuf};

use common::runtime;
use serde_json::Value;
use sparamx_format::WeightFormat;
use sparamx_model::{Arch, Checkpoint, LoadOptions, Model, ModelError, RopeScaling, model_file};

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/gguf");
    fixtures.join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(&format!("{name}.gguf"))).unwrap_or_else(|e| panic!("{e}"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The hash of elements as bf16.
fn fnv1a(elements: &[u16]) -> String {
    let bytes = elements.iter().flat_map(|bits| bits.to_le_bytes());
    let value = bytes.fold(0xcbf29ce484222325u64, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100000001b3)
    });
    format!("{value:016x}")
}

/// The elements are those that the package dequantizes to, in Hugging Face's order of rows.
#[test]
fn every_element_is_what_the_package_says() {
    for name in ["llama", "qwen2"] {
        let checkpoint = open(name);
        let expected = json(&fixture(&format!("{name}.expected.json")));
        assert_eq!(checkpoint.plan().len(), expected.as_object().unwrap().len());
        for plan in checkpoint.plan() {
            let bits = if plan.shape.len() == 2 {
                checkpoint.raw_rows(&plan.name).unwrap().bits.into_owned()
            } else {
                let values = checkpoint.vector(&plan.name).unwrap();
                values
                    .into_iter()
                    .map(|v| half::bf16::from_f32(v).to_bits())
                    .collect()
            };
            assert_eq!(fnv1a(&bits), expected[&plan.name], "{name}: {}", plan.name);
        }
        let model = Model::load(
            &runtime(),
            &checkpoint,
            &LoadOptions::default(),
            &mut |_| {},
        );
        assert!(
            model.unwrap().inexact().rounded > 0,
            "f32 and f16 are rounded"
        );
    }
}

#[test]
fn metadata_become_the_configuration() {
    let llama = open("llama");
    let config = llama.config();
    assert_eq!(
        (config.arch, config.hidden_size, config.intermediate_size),
        (Arch::Llama, 32, 64)
    );
    assert_eq!(
        (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim
        ),
        (4, 2, 8)
    );
    assert_eq!(
        (config.vocab_size, config.max_position_embeddings),
        (48, 64)
    );
    assert_eq!((config.rope_theta, config.rms_norm_eps), (500_000.0, 1e-5));
    assert!(!config.tie_word_embeddings && !config.layers[0].qkv_bias);
    assert_eq!(
        (config.bos_token_id, &config.eos_token_id[..]),
        (Some(1), &[2][..])
    );
    // The divisors of frequencies are Llama 3.1's.
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope_scaling, scaling);
    let qwen = open("qwen2");
    let config = qwen.config();
    assert_eq!(
        (config.arch, config.rope_scaling.clone()),
        (Arch::Qwen2, RopeScaling::None)
    );
    assert!(
        config.tie_word_embeddings
            && config.layers[0].qkv_bias
            && config.layers[0].window.is_none()
    );
}

/// Blocks of 32 with a scale that bf16 holds stay levels; other blocks do not, and that is said.
#[test]
fn levels_with_scales_of_bf16_stay_levels() {
    let checkpoint = open("llama");
    let info = |module: &str| {
        checkpoint
            .tensors()
            .find(|t| t.name.ends_with(&format!("{module}.weight")))
            .unwrap()
    };
    for (module, dtype, form) in [
        ("up_proj", "Q4_0", Some(WeightFormat::DenseI4)),
        ("down_proj", "Q8_0", Some(WeightFormat::DenseI8)),
        ("gate_proj", "Q4_0", None),
        ("q_proj", "Q8_0", Some(WeightFormat::DenseI8)),
        ("v_proj", "BF16", None),
        ("embed_tokens", "F16", None),
        ("lm_head", "Q4_1", None),
    ] {
        let info = info(module);
        assert_eq!(
            (info.dtype.as_str(), info.packed, info.encoding.name()),
            (dtype, form, "gguf"),
            "{module}"
        );
    }
    assert_eq!(info("up_proj").bytes, 64 * 32 / 32 * 18);
    assert_eq!(
        checkpoint.dequantized(),
        Some((2, "scales that bf16 cannot hold"))
    );
}

#[test]
fn small_files_are_made_of_metadata() {
    let file = |name: &str, file: &str| {
        let bytes = model_file(&fixture(&format!("{name}.gguf")), file).unwrap()?;
        Some(serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let config = file("qwen2", "tokenizer_config.json").unwrap();
    assert_eq!(
        (&config["eos_token"], &config["pad_token"]),
        (&"<|im_end|>".into(), &"<|endoftext|>".into())
    );
    assert!(
        config["chat_template"]
            .as_str()
            .unwrap()
            .contains("messages")
    );
    assert!(config.get("bos_token").is_none());
    let tokenizer = file("llama", "tokenizer.json").unwrap();
    assert_eq!(tokenizer["model"]["vocab"].as_object().unwrap().len(), 48);
    assert_eq!(tokenizer["added_tokens"].as_array().unwrap().len(), 4);
    // The best score first; "he" is worth more than "▁the", which is made of it.
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    assert_eq!(merges[0], serde_json::json!(["▁", "t"]));
    assert!(
        merges
            .iter()
            .any(|merge| *merge == serde_json::json!(["▁t", "he"]))
    );
    assert_eq!(
        file("llama", "generation_config.json").unwrap()["eos_token_id"],
        serde_json::json!([2])
    );
    assert_eq!(file("llama", "vocab.json"), None);
}

/// A copy of a fixture with some bytes replaced by others of the same length.
fn replaced(name: &str, from: &[u8], to: &[u8]) -> Result<Checkpoint, ModelError> {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .expect("it is in the file");
    bytes[at..at + to.len()].copy_from_slice(to);
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Checkpoint::open(file.path())
}

/// A copy of a fixture with entries more in its metadata.
fn extended(name: &str, entries: &[(&str, u32, Vec<u8>)]) -> Result<Checkpoint, ModelError> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let entry = |key: &str, kind: u32, value: &[u8]| {
        [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    };
    let mut added: Vec<u8> = entries
        .iter()
        .flat_map(|(key, kind, value)| entry(key, *kind, value))
        .collect();
    // Data keep their alignment.
    let entry_bytes = entry("padding", 8, &text("")).len();
    let missing = (added.len() + entry_bytes).next_multiple_of(32) - added.len() - entry_bytes;
    added.extend(entry("padding", 8, &text(&" ".repeat(missing))));
    let mut bytes = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
    bytes[16] += entries.len() as u8 + 1;
    bytes.splice(24..24, added);
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Checkpoint::open(file.path())
}

fn float(key: &str, value: f32) -> (&str, u32, Vec<u8>) {
    (key, 6, value.to_le_bytes().to_vec())
}

fn text<'k>(key: &'k str, value: &str) -> (&'k str, u32, Vec<u8>) {
    let length = (value.len() as u64).to_le_bytes();
    (key, 8, [&length, value.as_bytes()].concat())
}

#[test]
fn positions_are_scaled_as_llama_cpp_does() {
    const FACTOR: &str = "qwen2.rope.scaling.factor";
    const TYPE: &str = "qwen2.rope.scaling.type";
    const OLD: &str = "qwen2.rope.scale_linear";
    let linear = RopeScaling::Linear { factor: 4.0 };
    for (entries, expected) in [
        (vec![float(FACTOR, 4.0)], linear.clone()),
        (vec![float(OLD, 4.0)], linear.clone()),
        (vec![float(FACTOR, 4.0), float(OLD, 2.0)], linear.clone()),
        (vec![float(FACTOR, 4.0), text(TYPE, "linear")], linear),
        (
            vec![float(FACTOR, 4.0), text(TYPE, "none")],
            RopeScaling::None,
        ),
        (vec![float(FACTOR, 0.0)], RopeScaling::None),
        (vec![text(TYPE, "linear")], RopeScaling::None),
    ] {
        let checkpoint = extended("qwen2", &entries).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(checkpoint.config().rope_scaling, expected, "{entries:?}");
    }
    let yarn = [
        text(TYPE, "yarn"),
        float(FACTOR, 4.0),
        float("qwen2.rope.scaling.attn_factor", 0.5),
    ];
    let checkpoint = extended("qwen2", &yarn).unwrap();
    let RopeScaling::Yarn {
        factor,
        attention_factor,
        original_max_position_embeddings,
        ..
    } = checkpoint.config().rope_scaling
    else {
        panic!("{:?}", checkpoint.config())
    };
    let positions = checkpoint.config().max_position_embeddings;
    assert_eq!((factor, original_max_position_embeddings), (4.0, positions));
    assert!((attention_factor - 0.5 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    assert_refused(
        extended("qwen2", &[text(TYPE, "longrope")]),
        "field 'qwen2.rope.scaling.type' is longrope, expected none, linear or yarn",
    );
    assert_refused(
        extended("llama", &[float("llama.rope.scale_linear", 4.0)]),
        "divisors of frequencies",
    );
    assert_refused(
        extended("qwen2", &[float(FACTOR, 0.5)]),
        "field 'qwen2.rope.scaling.factor' is 0.5, expected at least 1",
    );
}

#[test]
fn faults_are_told_by_the_keys_of_the_file() {
    let kv = ("qwen2.attention.head_count_kv".to_owned(), 3u32);
    let mut from = kv.0.clone().into_bytes();
    from.extend(4u32.to_le_bytes());
    let to = [from.clone(), kv.1.to_le_bytes().to_vec()].concat();
    from.extend(2u32.to_le_bytes());
    assert_refused(
        replaced("qwen2", &from, &to),
        "field 'qwen2.attention.head_count_kv' is 3, expected a divisor of qwen2.attention.head_count 4",
    );
}

#[test]
fn ends_are_found_by_name_and_ids_without_a_token_are_passed_over() {
    let qwen = open("qwen2");
    let tokens = &qwen.config().eos_token_id;
    assert_eq!(
        tokens.len(),
        2,
        "{tokens:?}: <|im_end|>, the EOS, and <|endoftext|>"
    );
    assert!(qwen.notes().is_empty(), "{:?}", qwen.notes());
    let id = |id: u32| id.to_le_bytes().to_vec();
    let checkpoint = extended(
        "qwen2",
        &[
            ("tokenizer.ggml.bos_token_id", 4, id(9999)),
            ("tokenizer.ggml.eom_token_id", 4, id(3)),
        ],
    )
    .unwrap();
    assert!(checkpoint.config().eos_token_id.contains(&3));
    assert_eq!(checkpoint.config().bos_token_id, None);
    let [note] = checkpoint.notes() else {
        panic!("{:?}", checkpoint.notes())
    };
    assert!(
        note.starts_with("tokenizer.ggml.bos_token_id is 9999"),
        "{note}"
    );
}

#[test]
fn a_file_that_does_not_say_how_to_cut_a_text_is_read_with_a_note() {
    let unsaid = replaced("qwen2", b"tokenizer.ggml.pre", b"tokenizer.ggml.xxx").unwrap();
    let [note] = unsaid.notes() else {
        panic!("{:?}", unsaid.notes())
    };
    assert!(note.starts_with("tokenizer.ggml.pre is missing"), "{note}");
    assert!(
        extended(
            "qwen2",
            &[("general.layout", 9, {
                let row = [
                    4u32.to_le_bytes().to_vec(),
                    1u64.to_le_bytes().to_vec(),
                    id_bytes(7),
                ]
                .concat();
                let head = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
                [head, row].concat()
            })]
        )
        .is_ok()
    );
}

fn id_bytes(id: u32) -> Vec<u8> {
    id.to_le_bytes().to_vec()
}

#[track_caller]
fn assert_refused(result: Result<Checkpoint, ModelError>, expected: &str) {
    let message = result.err().expect("it should be refused").to_string();
    assert!(
        message.contains(expected) && message.contains(".gguf:") && !message.contains('\n'),
        "{message} instead of {expected}"
    );
}

#[test]
fn what_is_not_supported_is_named() {
    assert_refused(
        replaced("llama", b"llama", b"gemma"),
        "field 'general.architecture' is gemma, expected one of llama, qwen2, qwen3",
    );
    assert_refused(
        replaced("llama", b"llama.block_count", b"llama.block_xxxxx"),
        "field 'llama.block_count' is missing",
    );
    assert_refused(
        replaced("llama", b"blk.0.attn_v.weight", b"blk.1.attn_v.weight"),
        "tensor 'blk.0.attn_v.weight' is missing",
    );
    assert_refused(
        replaced("qwen2", b"blk.0.attn_q.bias", b"blk.0.attn_q.bxxx"),
        "tensor 'blk.0.attn_q.bias' is missing",
    );
    // q_proj: its name, two dimensions of 32, then the type: Q8_0 becomes Q4_K.
    let tensor = |kind: u32, n: u64| {
        let mut bytes = b"blk.0.attn_q.weight".to_vec();
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(32u64.to_le_bytes());
        bytes.extend(n.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes
    };
    assert_refused(
        replaced("llama", &tensor(8, 32), &tensor(12, 32)),
        "type Q4_K is not supported",
    );
    assert_refused(
        replaced("llama", &tensor(8, 32), &tensor(12, 32)),
        "llama-quantize",
    );
    assert_refused(
        replaced("llama", &tensor(8, 32), &tensor(8, 16)),
        "has shape [16, 32], the model's configuration asks for [32, 32]",
    );
    let not = std::env::temp_dir().join("sparamx-not.gguf");
    std::fs::write(&not, "text").unwrap();
    assert_refused(Checkpoint::open(&not), "do not start with GGUF");
}

#[test]
fn tokenizers_that_are_not_known_are_named() {
    let mut bytes = std::fs::read(fixture("qwen2.gguf")).unwrap();
    let pre = b"tokenizer.ggml.pre";
    let at = bytes
        .windows(pre.len())
        .position(|window| window == pre)
        .unwrap()
        + pre.len()
        + 4
        + 8;
    assert_eq!(&bytes[at..at + 5], b"qwen2");
    bytes[at..at + 5].copy_from_slice(b"bl00m");
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let message = model_file(file.path(), "tokenizer.json")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains(
            "field 'tokenizer.ggml.pre' is bl00m, expected a name of llama.cpp for a way to cut text into words"
        ),
        "{message}"
    );
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
    let read_all = |path: &Path| -> Result<(), ModelError> {
        model_file(path, "tokenizer.json")?;
        model_file(path, "tokenizer_config.json")?;
        let checkpoint = Checkpoint::open(path)?;
        for plan in checkpoint.plan() {
            match plan.shape.len() {
                2 => drop((
                    checkpoint.raw_rows(&plan.name)?,
                    checkpoint.packed(&plan.name)?,
                )),
                _ => drop(checkpoint.vector(&plan.name)?),
            }
        }
        Ok(())
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for name in ["llama", "qwen2"] {
        let whole = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
        let mut read = 0;
        for round in 0..800 {
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes.truncate(next(whole.len())),
                // Metadata and descriptions of tensors are in front.
                1 | 2 => bytes[next(3000)] ^= 1 << next(8),
                _ => bytes[next(whole.len())] = next(256) as u8,
            }
            std::fs::write(&path, bytes).unwrap();
            read += usize::from(read_all(&path).is_ok());
        }
        assert!(read > 0, "{name}: a flipped bit of a value is a value");
    }
}
