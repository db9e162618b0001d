//! Exports, read back; and what compressing does with checkpoints of other programs. The packages themselves read exports in
//! `tools/checkpoints`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sparamx_compress::{CompressError, ExportFormat, ExportReport, Options, compress, export};
use sparamx_format::container::TensorFile;
use sparamx_model::Checkpoint;
use sparamx_model::plan::Role;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/checkpoints");
    fixtures.join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn export_to(from: &Path, to: &Path, format: ExportFormat) -> ExportReport {
    export(&open(from), to, format, &mut |_| ControlFlow::Continue(()))
        .unwrap_or_else(|e| panic!("{e}"))
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// Every matrix has the same bits, zeros without their sign, and every vector the same values.
#[track_caller]
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.plan(), b.plan());
    for plan in a.plan() {
        if plan.role == Role::Vector {
            assert_eq!(
                a.vector(&plan.name).unwrap(),
                b.vector(&plan.name).unwrap(),
                "{}",
                plan.name
            );
            continue;
        }
        let [a, b] = [a, b].map(|checkpoint| {
            let rows = checkpoint.raw_rows(&plan.name).unwrap();
            let unsigned = rows
                .bits
                .iter()
                .map(|&bits| if bits == 0x8000 { 0 } else { bits });
            unsigned.collect::<Vec<u16>>()
        });
        assert!(a == b, "{}", plan.name);
    }
}

#[test]
fn exports_hold_the_same_model() {
    for name in [
        "dense",
        "bitmask-gen1",
        "int8",
        "int8-bitmask",
        "int4",
        "gguf/llama.gguf",
        "gguf/qwen2.gguf",
    ] {
        let root = tempfile::tempdir().unwrap();
        for (format, folder) in [
            (ExportFormat::Dense, "d"),
            (ExportFormat::SparseBitmask, "s"),
        ] {
            let to = root.path().join(folder);
            let report = export_to(&fixture(name), &to, format);
            assert_eq!(
                (report.files, &report.dir),
                (1, &to.canonicalize().unwrap()),
                "{name}"
            );
            assert_eq!(
                report.all().elements,
                open(&to).plan().iter().map(|t| t.elements()).sum::<u64>()
            );
            assert_same(&open(&fixture(name)), &open(&to));
            assert_eq!(config(&to)["torch_dtype"], "bfloat16");
        }
    }
}

/// From dense to packed to both exports, and nothing has changed.
#[test]
fn packed_models_go_back() {
    let root = tempfile::tempdir().unwrap();
    let packed = root.path().join("packed");
    let report = compress(
        &open(&fixture("dense")),
        &packed,
        &Options::default(),
        None,
        &mut |_| ControlFlow::Continue(()),
    );
    assert_eq!(report.unwrap().counts.packed.tensors, 7);
    for (format, folder) in [
        (ExportFormat::Dense, "d"),
        (ExportFormat::SparseBitmask, "s"),
    ] {
        let to = root.path().join(folder);
        export_to(&packed, &to, format);
        assert_same(&open(&fixture("dense")), &open(&to));
    }
}

/// Names, shapes and configuration of the second generation.
#[test]
fn bitmasks_are_written_as_the_package_writes_them() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("s");
    let report = export_to(&fixture("dense"), &to, ExportFormat::SparseBitmask);
    assert_eq!((report.bitmask.tensors, report.rounded), (7, 0));
    let tensors = |dir: &Path| {
        let file = TensorFile::open(dir.join("model.safetensors")).unwrap();
        let names = file.names().into_iter();
        let mut tensors: Vec<_> = names
            .map(|name| {
                let view = file.tensor(&name).unwrap();
                (name, view.dtype, view.shape, view.bytes.to_vec())
            })
            .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    let (ours, theirs) = (tensors(&to), tensors(&fixture("bitmask-gen2")));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{} {:?} {:?}", ours.0, ours.1, ours.2);
    }
    let (ours, theirs) = (config(&to), config(&fixture("bitmask-gen2")));
    let [ours, theirs] = [ours, theirs].map(|config| config["quantization_config"].clone());
    for key in ["quant_method", "version"] {
        assert_eq!(ours[key], theirs[key]);
    }
    for key in [
        "format",
        "ignore",
        "sparsity_structure",
        "targets",
        "registry_requires_subclass",
    ] {
        assert_eq!(
            ours["sparsity_config"][key], theirs["sparsity_config"][key],
            "{key}"
        );
    }
    let dense = root.path().join("d");
    export_to(&to, &dense, ExportFormat::Dense);
    assert!(config(&dense).get("quantization_config").is_none());
    assert!(config(&dense).get("transformers_weights").is_none());
}

/// What is quantized already can be compressed, and a GGUF file becomes a folder with all its files.
#[test]
fn checkpoints_of_other_programs_are_compressed() {
    for name in [
        "bitmask-gen1",
        "bitmask-gen2",
        "int8",
        "int4",
        "gguf/llama.gguf",
    ] {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("out");
        let from = open(&fixture(name));
        let report = compress(&from, &to, &Options::default(), None, &mut |_| {
            ControlFlow::Continue(())
        });
        assert_eq!(report.unwrap().counts.all().tensors, from.plan().len());
        assert_same(&from, &open(&to));
        assert_eq!(
            config(&to)["quantization_config"]["quant_method"],
            "sparamx"
        );
        if name.ends_with(".gguf") {
            for file in [
                "tokenizer.json",
                "tokenizer_config.json",
                "generation_config.json",
            ] {
                assert!(to.join(file).is_file(), "{file}");
            }
        }
    }
}

#[test]
fn nothing_is_left_of_what_was_refused() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("out");
    let checkpoint = open(&fixture("dense"));
    let ended = export(&checkpoint, &to, ExportFormat::Dense, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(ended, Err(CompressError::Interrupted { .. })));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    std::fs::write(&to, "a file").unwrap();
    let refused = export(&checkpoint, &to, ExportFormat::Dense, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(refused, Err(CompressError::OutputExists { .. })));
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "a file");
}
