//! Whole checkpoints, from the fixtures of the model crate to a packed folder and back.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sparamx_compress::layer::Pattern;
use sparamx_compress::quantize::{self, Int4};
use sparamx_compress::{CompressError, Options, Report, Scope, compress, prune, zeros_for};
use sparamx_format::{Elements, WeightFormat};
use sparamx_model::plan::Role;
use sparamx_model::{Checkpoint, Precision};
use sparamx_testkit::content;
use tempfile::TempDir;

const SPARSITY: f64 = 0.5;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let entries = fs::read_dir(folder).expect("the fixtures of the model crate");
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    found.retain(|path| path.join("config.json").is_file());
    found.sort();
    assert!(found.len() >= 5, "{found:?}");
    found
}

fn fixture(name: &str) -> PathBuf {
    let found = fixtures().into_iter().find(|path| path.ends_with(name));
    found.unwrap_or_else(|| panic!("no fixture {name}"))
}

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

fn with(sparsity: f64) -> Options {
    Options {
        pattern: Pattern::Unstructured(sparsity),
        ..Options::default()
    }
}

fn half() -> Options {
    with(SPARSITY)
}

fn pack(from: &Path, to: &Path, options: &Options) -> Result<Report, CompressError> {
    compress(&open(from), to, options, None, &mut |_| {
        ControlFlow::Continue(())
    })
}

fn packed(from: &Path, options: &Options) -> (TempDir, PathBuf, Report) {
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("packed");
    let report =
        pack(from, &output, options).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    (root, output, report)
}

#[test]
fn every_weight_is_what_pruning_makes_of_it() {
    for from in fixtures() {
        for scope in [Scope::Tensor, Scope::Row] {
            let (_root, output, report) = packed(&from, &Options { scope, ..half() });
            let (dense, sparse) = (open(&from), open(&output));
            let mut packed_tensors = 0;
            for (tensor, info) in dense.plan().iter().zip(sparse.tensors()) {
                if tensor.role == Role::Vector {
                    assert_eq!(
                        dense.vector(&tensor.name).ok(),
                        sparse.vector(&tensor.name).ok()
                    );
                    continue;
                }
                let rows = dense.raw_rows(&tensor.name).expect("rows");
                let mut wanted = rows.bits.into_owned();
                if tensor.role == Role::Projection {
                    prune(&mut wanted, rows.k, SPARSITY, scope);
                }
                packed_tensors += usize::from(info.packed.is_some());
                assert!(
                    info.packed.is_none() || tensor.role == Role::Projection,
                    "{}",
                    tensor.name
                );
                let found = sparse.raw_rows(&tensor.name).expect("rows");
                assert!(
                    found.bits[..] == wanted[..],
                    "{}: {}",
                    from.display(),
                    tensor.name
                );
            }
            assert_eq!(packed_tensors, report.counts.packed.tensors);
            assert!(packed_tensors > 0, "{}", from.display());
        }
    }
}

const INT4: Precision = Precision::Int4 { group_elems: 32 };

/// The levels of a quantized weight, row-major, and how they are stored.
fn levels(checkpoint: &Checkpoint, name: &str) -> (WeightFormat, Vec<i8>) {
    let weight = checkpoint.packed(name).expect("readable");
    let weight = weight.unwrap_or_else(|| panic!("{name} is not packed"));
    match weight.decode() {
        Elements::Levels(levels, _) => (weight.format(), levels),
        Elements::Bf16(_) => panic!("{name} is not quantized"),
    }
}

#[test]
fn every_quantized_weight_is_pruned_and_rounded() {
    for from in fixtures() {
        for (precision, sparsity) in [
            (Precision::Int8, 0.0),
            (Precision::Int8, 0.5),
            (INT4, 0.0),
            (INT4, 0.5),
        ] {
            let options = Options {
                precision,
                ..with(sparsity)
            };
            let (_root, output, report) = packed(&from, &options);
            let (dense, small) = (open(&from), open(&output));
            assert_eq!(small.config().packed, Some(precision));
            for (tensor, info) in dense.plan().iter().zip(small.tensors()) {
                if tensor.role != Role::Projection {
                    assert_eq!(info.packed, None, "{}", tensor.name);
                    continue;
                }
                let rows = dense.raw_rows(&tensor.name).expect("rows");
                let (k, mut bits) = (rows.k, rows.bits.into_owned());
                prune(&mut bits, k, sparsity, Scope::Tensor);
                let (format, found) = levels(&small, &tensor.name);
                let wanted = match format {
                    WeightFormat::SparseI4 => quantize::int4(&bits, k, 32, Int4::Sparse),
                    WeightFormat::DenseI4 => quantize::int4(&bits, k, 32, Int4::Dense),
                    _ => quantize::int8(&bits, k),
                };
                assert!(
                    found == wanted.levels,
                    "{}: {}",
                    from.display(),
                    tensor.name
                );
                // As bf16 the products are rounded once more.
                let rows = small.raw_rows(&tensor.name).expect("rows");
                let groups = wanted.scales.len() / rows.n;
                let group = if precision == INT4 { 32 } else { k };
                for (i, (&bits, &level)) in rows.bits.iter().zip(&found).enumerate() {
                    let scale = wanted.scales[i / k * groups + i % k / group];
                    let exact = half::bf16::from_f32(f32::from(level) * scale);
                    assert_eq!(bits, exact.to_bits());
                }
                let nnz = found.iter().filter(|&&level| level != 0).count();
                assert_eq!(small.nnz(&tensor.name).expect("readable"), nnz);
            }
            let all = report.counts.all();
            assert_eq!(all.tensors, dense.plan().len());
            let stored: u64 = small.tensors().map(|tensor| tensor.bytes).sum();
            assert_eq!(all.bytes_after, stored);
            assert!(report.counts.packed.tensors + report.counts.quantized.tensors > 0);
        }
    }
}

#[test]
fn the_smaller_of_bitmap_and_dense_is_written() {
    // Without the padding of the fixtures, most of which a bitmap leaves out.
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-5m");
    let stored = |precision, sparsity| {
        let options = Options {
            precision,
            ..with(sparsity)
        };
        let (_root, output, report) = packed(&from, &options);
        let bytes = report.counts.packed.bytes_after + report.counts.quantized.bytes_after;
        let formats: Vec<_> = open(&output).tensors().filter_map(|t| t.packed).collect();
        (bytes, formats)
    };
    for precision in [Precision::Int8, INT4] {
        let (dense, formats) = stored(precision, 0.0);
        assert!(
            formats.iter().all(|format| !format.is_sparse()),
            "{formats:?}"
        );
        let (sparse, formats) = stored(precision, 0.5);
        assert!(
            formats.iter().all(|format| format.is_sparse()),
            "{formats:?}"
        );
        assert!(sparse < dense);
        // With few zeros a bitmap takes more than it saves.
        assert!(stored(precision, 0.05).0 == dense);
    }
    assert!(stored(INT4, 0.0).0 < stored(Precision::Int8, 0.0).0);
}

#[test]
fn the_configuration_names_the_numbers() {
    let from = fixture("llama-gqa");
    for (precision, weights, group) in [
        (Precision::Bf16, "bf16", None),
        (Precision::Int8, "int8", None),
        (INT4, "int4", Some(32)),
    ] {
        let (_root, output, _) = packed(
            &from,
            &Options {
                precision,
                ..half()
            },
        );
        let config = fs::read(output.join("config.json")).expect("a file");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["weights"], weights);
        assert_eq!(quantization["group_size"].as_u64(), group);
    }
}

#[test]
fn numbers_that_config_json_does_not_announce_are_refused() {
    let from = fixture("llama-gqa");
    let precision = Precision::Int8;
    let (_root, output, _) = packed(
        &from,
        &Options {
            precision,
            ..half()
        },
    );
    let path = output.join("config.json");
    let text = fs::read_to_string(&path).expect("a file");
    for (weights, message) in [
        (
            "\"weights\": \"bf16\"",
            "stored as int8, config.json says bf16",
        ),
        (
            "\"weights\": \"int4\", \"group_size\": 64",
            "stored as int8, config.json says int4 in groups of 64",
        ),
    ] {
        let changed = text.replace("\"weights\": \"int8\"", weights);
        assert_ne!(changed, text);
        fs::write(&path, changed).expect("a file");
        let error = Checkpoint::open(&output)
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains(message) && error.contains("_proj"),
            "{error}"
        );
    }
}

#[test]
fn the_report_counts_exactly() {
    let from = fixture("llama-gqa");
    let (_root, output, report) = packed(&from, &half());
    let checkpoint = open(&from);
    let projections = checkpoint
        .plan()
        .iter()
        .filter(|tensor| tensor.role == Role::Projection);
    let zeros: u64 = projections
        .map(|tensor| zeros_for(SPARSITY, tensor.elements() as usize) as u64)
        .sum();
    assert_eq!(report.counts.packed.zeros, zeros);
    assert_eq!(report.counts.all().tensors, checkpoint.plan().len());
    assert_eq!(
        report.counts.all().bytes_before,
        checkpoint.tensors().map(|tensor| tensor.bytes).sum::<u64>()
    );
    assert_eq!(
        report.counts.all().bytes_after,
        open(&output)
            .tensors()
            .map(|tensor| tensor.bytes)
            .sum::<u64>()
    );
    assert!(report.counts.packed.bytes_after < report.counts.packed.bytes_before);
}

#[test]
fn the_configuration_keeps_its_fields_and_their_order() {
    let from = fixture("llama3-rope");
    let (_root, output, report) = packed(&from, &half());
    let read = |dir: &Path| -> Value {
        serde_json::from_slice(&fs::read(dir.join("config.json")).expect("a file")).expect("JSON")
    };
    let (before, mut after) = (read(&from), read(&output));
    let quantization = after
        .as_object_mut()
        .expect("an object")
        .remove("quantization_config")
        .expect("added");
    let weights = after["transformers_weights"].take();
    assert_eq!(
        weights, "packed by sparamx: load it with sparamx.torch.from_pretrained",
        "what Transformers shall say"
    );
    let fields = after.as_object_mut().expect("an object");
    fields.shift_remove("transformers_weights");
    let text = |value: &Value| serde_json::to_string(value).expect("JSON");
    assert_eq!(text(&before), text(&after), "fields or their order");
    assert_eq!(quantization["quant_method"], "sparamx");
    assert_eq!(quantization["layout"], "strip16");
    assert_eq!(quantization["version"], 1);
    assert_eq!(quantization["sparsity"], report.counts.packed.sparsity());
}

#[test]
fn threads_change_no_byte() {
    let from = fixture("llama-yarn");
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        let (_root, output, _) = pool.install(|| packed(&from, &half()));
        content(&output)
    };
    assert!(on(1) == on(3));
}

#[test]
fn files_are_split_at_the_limit_and_joined_below_it() {
    let from = fixture("llama3-rope");
    let (_root, single, report) = packed(&from, &half());
    assert_eq!(report.files, 1);
    assert!(!single.join("model.safetensors.index.json").exists());

    let limit = 20_000;
    let (_root, split, report) = packed(
        &from,
        &Options {
            single_file_bytes: limit,
            ..half()
        },
    );
    assert!(report.files > 2, "{report:?}");
    let shards: Vec<_> = content(&split)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .collect();
    assert_eq!(shards.len(), report.files);
    assert_eq!(
        shards[0].0,
        format!("model-00001-of-{:05}.safetensors", report.files)
    );
    let (one, many) = (open(&single), open(&split));
    for tensor in one
        .plan()
        .iter()
        .filter(|tensor| tensor.role != Role::Vector)
    {
        let rows = |checkpoint: &Checkpoint| {
            checkpoint
                .raw_rows(&tensor.name)
                .expect("rows")
                .bits
                .into_owned()
        };
        assert!(rows(&one) == rows(&many), "{}", tensor.name);
    }
    let tensors: u64 = many.tensors().map(|tensor| tensor.bytes).sum();
    let index: Value = serde_json::from_slice(
        &fs::read(split.join("model.safetensors.index.json")).expect("a file"),
    )
    .expect("JSON");
    assert_eq!(index["metadata"]["total_size"], tensors);
}

#[test]
fn without_zeros_nothing_is_packed() {
    let from = fixture("llama-gqa");
    let (_root, output, report) = packed(&from, &Options::default());
    assert_eq!(report.counts.packed.tensors, 0);
    let (before, after) = (open(&from), open(&output));
    for tensor in before
        .plan()
        .iter()
        .filter(|tensor| tensor.role != Role::Vector)
    {
        let rows = |checkpoint: &Checkpoint| {
            checkpoint
                .raw_rows(&tensor.name)
                .expect("rows")
                .bits
                .into_owned()
        };
        assert!(rows(&before) == rows(&after), "{}", tensor.name);
    }
}

#[test]
fn the_output_head_is_pruned_on_demand() {
    let from = fixture("llama-gqa");
    let head = |options: &Options| {
        let (_root, output, _) = packed(&from, options);
        let checkpoint = open(&output);
        checkpoint
            .tensors()
            .find(|tensor| tensor.name == "lm_head.weight")
            .map(|tensor| tensor.packed.is_some())
    };
    assert_eq!(head(&half()), Some(false));
    assert_eq!(
        head(&Options {
            include_lm_head: true,
            ..half()
        }),
        Some(true)
    );
}

#[test]
fn tokenizer_and_settings_come_along() {
    let root = tempfile::tempdir().expect("a directory");
    let from = root.path().join("model");
    fs::create_dir(&from).expect("a directory");
    for (name, bytes) in content(&fixture("llama-gqa")) {
        fs::write(from.join(name), bytes).expect("a file");
    }
    let kept = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE.txt",
    ];
    for name in kept
        .iter()
        .chain(&["README.md", "pytorch_model.bin", "golden.txt"])
    {
        fs::write(from.join(name), name).expect("a file");
    }
    let output = root.path().join("packed");
    pack(&from, &output, &half()).expect("packed");
    let mut names: Vec<String> = content(&output).into_iter().map(|(name, _)| name).collect();
    names.retain(|name| name != "config.json" && name != "model.safetensors");
    let mut wanted = kept.map(str::to_owned).to_vec();
    wanted.sort();
    assert_eq!(names, wanted);
    assert_eq!(
        fs::read(output.join("tokenizer.json")).expect("a file"),
        b"tokenizer.json"
    );
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let from = fixture("llama-gqa");
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("packed");
    for sparsity in [1.0, 1.5, -0.1, f64::NAN] {
        let refused = pack(&from, &output, &with(sparsity));
        assert!(
            matches!(refused, Err(CompressError::Sparsity { .. })),
            "{sparsity}"
        );
    }
    let interrupted = compress(&open(&from), &output, &half(), None, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(
        interrupted,
        Err(CompressError::Interrupted { kept: None })
    ));
    assert!(content(root.path()).is_empty(), "something is left");

    pack(&from, &output, &half()).expect("packed");
    let again = pack(&from, &output, &half()).expect_err("it is there");
    assert!(
        matches!(again, CompressError::OutputExists { .. }),
        "{again}"
    );
    let twice = pack(&output, &root.path().join("twice"), &half()).expect_err("it is packed");
    assert!(
        matches!(twice, CompressError::AlreadyPacked { .. }),
        "{twice}"
    );
    assert!(!root.path().join("twice").exists());
}

#[test]
fn a_damaged_tensor_is_named_and_leaves_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let from = root.path().join("model");
    fs::create_dir(&from).expect("a directory");
    for (name, mut bytes) in content(&fixture("llama-gqa")) {
        if name == "model.safetensors" {
            // The last element of whatever tensor is last becomes NaN.
            let end = bytes.len();
            bytes[end - 2..].copy_from_slice(&[0xff, 0x7f]);
        }
        fs::write(from.join(name), bytes).expect("a file");
    }
    let output = root.path().join("out");
    let error = pack(&from, &output, &half()).expect_err("NaN").to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("weight"),
        "{error}"
    );
    assert!(error.to_lowercase().contains("nan"), "{error}");
    assert!(!output.exists());
    let left = fs::read_dir(root.path()).expect("a directory").count();
    assert_eq!(left, 1, "something is left");
}
