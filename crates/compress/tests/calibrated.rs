//! Compression by calibration: what is solved, by what, and what a stop in between changes.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sparamx_compress::layer::{self, LayerSpec, Method, Moments, Pattern, Solved};
use sparamx_compress::{
    Allocation, Calibration, CompressError, Options, Report, Rounding, Step, compress,
};
use sparamx_cpu::Cpu;
use sparamx_format::DenseBf16;
use sparamx_kernels::{Runtime, Weight};
use sparamx_model::plan::Role;
use sparamx_model::{Checkpoint, DecoderLayer, DecoderWorkspace, Precision};
use sparamx_testkit::{content, names};

/// With an output head of its own, and fewer kv heads than heads.
const MODEL: &str = "llama-gqa";

fn model() -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    fixtures.join(MODEL)
}

fn open(dir: &Path) -> Checkpoint {
    Checkpoint::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

fn runtime(threads: usize) -> Runtime {
    Runtime::new(Cpu::detect().expect("a CPU"), threads).expect("threads")
}

/// More tokens than any layer has inputs, so that the second moments are regular.
fn windows(checkpoint: &Checkpoint) -> Vec<Vec<u32>> {
    let vocab_size = checkpoint.config().vocab_size as u64;
    let mut state = 1u64;
    let mut token = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 33) % vocab_size) as u32
    };
    (0..40)
        .map(|_| (0..20).map(|_| token()).collect())
        .collect()
}

fn sparsegpt() -> Options {
    Options {
        method: Method::SparseGpt,
        pattern: Pattern::Unstructured(0.5),
        reconstruct: true,
        ..Options::default()
    }
}

fn run(
    output: &Path,
    options: &Options,
    threads: usize,
    progress: &mut (dyn FnMut(Step<'_>) -> ControlFlow<()> + Send),
) -> Result<Report, CompressError> {
    let (checkpoint, rt) = (open(&model()), runtime(threads));
    let windows = windows(&checkpoint);
    let calibration = Calibration {
        runtime: &rt,
        windows: &windows,
        source: "random".to_owned(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads").install(|| {
        compress(&checkpoint, output, options, Some(&calibration), &mut |p| {
            progress(p.step)
        })
    })
}

fn finished(output: &Path, options: &Options, threads: usize) -> Report {
    run(output, options, threads, &mut |_| ControlFlow::Continue(()))
        .unwrap_or_else(|error| panic!("{options:?}: {error}"))
}

fn floats(bits: &[u16]) -> Vec<f32> {
    bits.iter()
        .map(|&bits| half::bf16::from_bits(bits).to_f32())
        .collect()
}

/// The pipeline by its definition, without its economies: each linear layer is solved on what it reads when those before it are as
/// they were written, and compared with what was written.
#[test]
fn every_layer_is_solved_on_what_it_reads() {
    let root = tempfile::tempdir().expect("a directory");
    for (name, method, reconstruct) in [
        ("wanda", Method::Wanda, false),
        ("sparsegpt", Method::SparseGpt, true),
        ("magnitude", Method::Magnitude, true),
    ] {
        let options = Options {
            method,
            reconstruct,
            ..sparsegpt()
        };
        let output = root.path().join(name);
        let report = finished(&output, &options, 2);
        let (dense, small, rt) = (open(&model()), open(&output), runtime(1));
        let windows = windows(&dense);
        let embedding = dense.raw_rows("model.embed_tokens.weight").expect("rows");
        let row = |&token: &u32| &embedding.bits[token as usize * embedding.k..][..embedding.k];
        let states =
            |window: &Vec<u32>| floats(&window.iter().flat_map(row).copied().collect::<Vec<_>>());
        let mut x: Vec<Vec<f32>> = windows.iter().map(states).collect();
        let mut d = x.clone();
        let mut ws = DecoderWorkspace::new(dense.config());
        let spec = LayerSpec {
            method,
            pattern: options.pattern,
            reconstruct,
            ..LayerSpec::default()
        };
        let mut errors = report.counts.solved.iter();
        for l in 0..dense.config().num_hidden_layers {
            let whole = DecoderLayer::load(&dense, l).expect("a layer");
            let mut pruned = whole.clone();
            let mut found = Vec::new();
            for (input, modules) in whole.inputs() {
                let mut rows = [Vec::new(), Vec::new()];
                for (x, d) in x.iter().zip(&d) {
                    for (rows, (layer, states)) in rows.iter_mut().zip([(&pruned, x), (&whole, d)])
                    {
                        let read = layer.input(&rt, input, states, &mut ws).expect("rows");
                        (0..read.rows()).for_each(|i| rows.extend_from_slice(read.row(i)));
                    }
                }
                let k = rows[0].len() / windows.concat().len();
                let mut moments = Moments::new(k, reconstruct);
                // As the pipeline cuts them: floating point sums depend on it.
                let piece = 520 * k;
                for (x, d) in rows[0].chunks(piece).zip(rows[1].chunks(piece)) {
                    moments.add(x, reconstruct.then_some(d));
                }
                for module in modules {
                    let tensor = format!("model.layers.{l}.{module}.weight");
                    let weights = dense.raw_rows(&tensor).expect("rows");
                    let (n, k) = (weights.n, weights.k);
                    let outcome = layer::solve(&floats(&weights.bits), n, k, Some(&moments), &spec);
                    let outcome = outcome.expect("solved");
                    let Solved::Bf16(wanted) = outcome.rows else {
                        panic!("bf16 was asked for");
                    };
                    let written = small.raw_rows(&tensor).expect("rows");
                    assert!(written.bits[..] == wanted[..], "{name}: {tensor}");
                    let weight = small.packed(&tensor).expect("readable").unwrap_or_else(|| {
                        Weight::DenseBf16(DenseBf16::from_rows(&wanted, n, k).expect("dense"))
                    });
                    pruned.set_weight(module, weight);
                    found.push((tensor, outcome.error));
                }
            }
            found.sort_by_key(|(tensor, _)| dense.plan().iter().position(|t| t.name == *tensor));
            for (tensor, error) in found {
                let reported = errors.next().expect("one for each tensor");
                assert_eq!((&reported.name, reported.error), (&tensor, error));
                assert!((reported.sparsity - 0.5).abs() < 0.02, "{reported:?}");
            }
            for (x, d) in x.iter_mut().zip(&mut d) {
                pruned.forward(&rt, x, &mut ws).expect("states");
                whole.forward(&rt, d, &mut ws).expect("states");
            }
        }
        assert!(errors.next().is_none());
    }
}

#[test]
fn threads_change_no_byte() {
    let root = tempfile::tempdir().expect("a directory");
    for (name, options) in [
        ("bf16", sparsegpt()),
        (
            "int4",
            Options {
                precision: Precision::Int4 { group_elems: 32 },
                rounding: Rounding::Compensated,
                allocation: Allocation::Owl,
                ..sparsegpt()
            },
        ),
    ] {
        let on = |threads: usize| {
            let output = root.path().join(format!("{name}-{threads}"));
            finished(&output, &options, threads);
            content(&output)
        };
        let one = on(1);
        assert!(one == on(2) && one == on(3), "{name}");
    }
}

/// Stops a run after so many units; false if it ended before.
fn stopped(output: &Path, options: &Options, units: usize) -> bool {
    let partial = output.with_file_name(format!(
        ".{}.partial/progress.json",
        output.file_name().expect("a name").to_string_lossy()
    ));
    // A unit is done when the record says so, which is before the first step of the next.
    let count = || {
        let text = fs::read_to_string(&partial).unwrap_or_default();
        text.matches("\"packed\":").count()
    };
    let result = run(output, options, 2, &mut |_| {
        if count() >= units {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match result {
        Ok(_) => false,
        Err(CompressError::Interrupted { kept }) => {
            assert_eq!(kept.map_or(0, |kept| kept.done), units);
            true
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_stop_anywhere_changes_no_byte() {
    let root = tempfile::tempdir().expect("a directory");
    for single_file_bytes in [0, u64::MAX] {
        for (name, options) in [
            (
                "plain",
                Options {
                    method: Method::Magnitude,
                    reconstruct: false,
                    ..sparsegpt()
                },
            ),
            (
                "owl",
                Options {
                    allocation: Allocation::Owl,
                    precision: Precision::Int8,
                    rounding: Rounding::Compensated,
                    include_lm_head: true,
                    ..sparsegpt()
                },
            ),
        ] {
            let options = Options {
                single_file_bytes,
                ..options
            };
            let name = format!("{name}-{}", single_file_bytes > 0);
            let whole = root.path().join(&name);
            let report = finished(&whole, &options, 2);
            let mut stops = 0;
            let output = root.path().join(format!("{name}-resumed"));
            let resume = Options {
                resume: true,
                ..options.clone()
            };
            // One unit more each time: every run replays what the others left.
            while stopped(&output, &resume, stops + 1) {
                stops += 1;
                assert!(!output.exists());
            }
            assert!(stops >= 3, "{stops} stops");
            assert!(content(&whole) == content(&output), "{name}");
            assert_eq!(
                names(root.path())
                    .iter()
                    .filter(|n| n.starts_with('.'))
                    .count(),
                0
            );
            // What was counted is the same, too.
            fs::remove_dir_all(&output).expect("removed");
            assert!(stopped(&output, &options, 2));
            let resumed = finished(&output, &resume, 1);
            assert_eq!(
                resumed.counts.all().bytes_after,
                report.counts.all().bytes_after
            );
            assert_eq!(resumed.counts.solved.len(), report.counts.solved.len());
            assert!(content(&whole) == content(&output), "{name}");
        }
    }
}

#[test]
fn a_part_that_changed_is_made_again() {
    let root = tempfile::tempdir().expect("a directory");
    for single_file_bytes in [0, u64::MAX] {
        let options = Options {
            single_file_bytes,
            ..sparsegpt()
        };
        let whole = root.path().join(format!("whole-{single_file_bytes}"));
        finished(&whole, &options, 2);
        for damage in ["flipped", "cut", "gone"] {
            let output = root.path().join(format!("{damage}-{single_file_bytes}"));
            assert!(stopped(&output, &options, 3));
            let name = match single_file_bytes {
                0 => "out/model-00002-of-00004.safetensors",
                _ => "part-1.safetensors",
            };
            let partial = format!(".{damage}-{single_file_bytes}.partial");
            let part = root.path().join(partial).join(name);
            let mut bytes = fs::read(&part).expect("a file");
            let last = bytes.len() - 1;
            match damage {
                "flipped" => bytes[last] ^= 1,
                _ => bytes.truncate(last),
            }
            match damage {
                "gone" => fs::remove_file(&part).expect("removed"),
                _ => fs::write(&part, bytes).expect("a file"),
            }
            let resume = Options {
                resume: true,
                ..options.clone()
            };
            let mut damaged = Vec::new();
            let done = run(&output, &resume, 2, &mut |progress| {
                if let Step::Damaged { part, .. } = progress {
                    damaged.push(part);
                }
                ControlFlow::Continue(())
            });
            done.expect("it goes on");
            assert_eq!(damaged, [2], "{damage}");
            assert!(content(&whole) == content(&output), "{damage}");
        }
    }
}

#[test]
fn what_is_left_is_used_for_the_same_only() {
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("out");
    assert!(stopped(&output, &sparsegpt(), 1));
    let partial = root.path().join(".out.partial");
    let again = run(&output, &sparsegpt(), 1, &mut |_| ControlFlow::Continue(()));
    let message = again.expect_err("refused").to_string();
    assert!(
        message.contains("left by a run that was stopped") && message.contains(".out.partial"),
        "{message}"
    );
    let other = Options {
        method: Method::Wanda,
        resume: true,
        ..sparsegpt()
    };
    let changed = run(&output, &other, 1, &mut |_| ControlFlow::Continue(()));
    let message = changed.expect_err("refused").to_string();
    assert!(
        message.contains("method was SparseGpt and is Wanda"),
        "{message}"
    );
    assert!(
        partial.join("progress.json").exists(),
        "nothing is lost by asking"
    );
    finished(
        &output,
        &Options {
            resume: true,
            ..sparsegpt()
        },
        1,
    );
    assert_eq!(names(root.path()), ["out"]);
}

#[test]
fn names_choose_what_is_done() {
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("out");
    let options = Options {
        patterns: vec![
            ("mlp".to_owned(), Pattern::Unstructured(0.25)),
            (
                "layers.0.mlp.down_proj".to_owned(),
                Pattern::NofM { keep: 1, of: 4 },
            ),
        ],
        skip: vec!["layers.1.self_attn".to_owned(), "v_proj".to_owned()],
        ..sparsegpt()
    };
    finished(&output, &options, 2);
    let (before, after) = (open(&model()), open(&output));
    for tensor in after
        .plan()
        .iter()
        .filter(|tensor| tensor.role == Role::Projection)
    {
        let name = &tensor.name;
        let zeros = 1.0 - after.nnz(name).expect("readable") as f64 / tensor.elements() as f64;
        let skipped = name.contains("layers.1.self_attn") || name.contains("v_proj");
        let wanted = match () {
            () if skipped => {
                1.0 - before.nnz(name).expect("readable") as f64 / tensor.elements() as f64
            }
            () if name.contains("layers.0.mlp.down_proj") => 0.75,
            () if name.contains("mlp") => 0.25,
            () => 0.5,
        };
        assert!(
            (zeros - wanted).abs() < 0.02,
            "{name}: {zeros}, not {wanted}"
        );
        if skipped {
            assert!(
                before.raw_rows(name).expect("rows").bits
                    == after.raw_rows(name).expect("rows").bits
            );
        }
    }
    for (skip, patterns, near) in [
        (vec!["mlp.dwn_proj"], vec![], "mlp.down_proj"),
        (vec![], vec!["layer.0"], "layers.0"),
        // The output head stays as it is anyway.
        (vec![], vec!["lm_head"], "names no tensor"),
    ] {
        let options = Options {
            skip: skip.into_iter().map(str::to_owned).collect(),
            patterns: patterns
                .into_iter()
                .map(|name| (name.to_owned(), Pattern::Unstructured(0.1)))
                .collect(),
            ..sparsegpt()
        };
        let refused = run(&root.path().join("never"), &options, 1, &mut |_| {
            ControlFlow::Continue(())
        });
        let message = refused.expect_err("refused").to_string();
        assert!(message.contains(near), "{message}");
    }
    assert_eq!(names(root.path()), ["out"]);
}

#[test]
fn outliers_share_out_the_sparsity() {
    let root = tempfile::tempdir().expect("a directory");
    let output = root.path().join("out");
    let report = finished(
        &output,
        &Options {
            allocation: Allocation::Owl,
            ..sparsegpt()
        },
        2,
    );
    let layers = report.layer_sparsities.expect("shared out");
    let mean = layers.iter().sum::<f64>() / layers.len() as f64;
    assert!(
        (mean - 0.5).abs() < 1e-12 && layers[0] != layers[1],
        "{layers:?}"
    );
    for tensor in &report.counts.solved {
        let layer = layers
            .iter()
            .enumerate()
            .find(|(l, _)| tensor.name.contains(&format!("layers.{l}.")));
        let (_, wanted) = layer.expect("in a layer");
        assert!(
            (tensor.sparsity - wanted).abs() < 0.02,
            "{tensor:?}, not {wanted}"
        );
    }
    let config = fs::read_to_string(output.join("config.json")).expect("a file");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["allocation"], "owl");
    assert_eq!(quantization["method"], "sparsegpt");
    assert_eq!(quantization["reconstruct"], true);
    assert_eq!(quantization["calibration"]["tokens"], 800);
}

#[test]
fn calibration_that_is_missing_or_wrong_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let (checkpoint, rt) = (open(&model()), runtime(1));
    let output = root.path().join("out");
    let none = compress(&checkpoint, &output, &sparsegpt(), None, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(
        none,
        Err(CompressError::NeedsCalibration { what: "SparseGPT" })
    ));
    for windows in [vec![], vec![vec![]], vec![vec![1, 1_000_000]]] {
        let calibration = Calibration {
            runtime: &rt,
            windows: &windows,
            source: String::new(),
        };
        let refused = compress(
            &checkpoint,
            &output,
            &sparsegpt(),
            Some(&calibration),
            &mut |_| ControlFlow::Continue(()),
        );
        let message = refused.expect_err("refused").to_string();
        assert!(
            message.contains("needs calibration") || message.contains("1000000"),
            "{message}"
        );
    }
    let fixed = Options {
        pattern: Pattern::NofM { keep: 2, of: 4 },
        allocation: Allocation::Owl,
        ..sparsegpt()
    };
    let refused = run(&output, &fixed, 1, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(CompressError::Allocation)));
    assert!(names(root.path()).is_empty());
}
