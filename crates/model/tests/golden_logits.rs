//! Logits and greedy tokens of tiny models of every family, against those of Hugging Face Transformers.
//!
//! `tools/reference/make_goldens.py` makes the fixtures and measures, on the reference alone, how far roundings of the size
//! that our kernels make can move the logits (`spread`). The tolerance is that, times [`SAFETY`].

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sparamx_cpu::{Cpu, ISA_VARIABLE, Isa};
use sparamx_engine::PagedCache;
use sparamx_format::container::TensorFile;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Input, LoadOptions, Model, Want, Workspace};

/// The spread is the largest of 16 trials in which every rounding errs by all it can, in a random direction. Real roundings
/// err by 0.4 of that, root mean square over all mantissas. The factor is for directions that conspire more than in any of
/// the trials.
const SAFETY: f64 = 2.0;

/// Name of the test that the other levels run.
const HERE: &str = "logits_agree_with_transformers";

struct Fixture {
    dir: PathBuf,
    golden: Value,
    logits: TensorFile,
    tokens: Vec<u32>,
}

/// Largest distances from the reference that are not an error.
struct Tolerance {
    rms: f64,
    max: f64,
}

impl Fixture {
    fn open(dir: PathBuf) -> Self {
        let golden: Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let tokens = golden["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_u64().unwrap() as u32)
            .collect();
        let logits = TensorFile::open(dir.join("golden.safetensors")).unwrap();
        Self {
            dir,
            golden,
            logits,
            tokens,
        }
    }

    fn all() -> Vec<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut dirs: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        dirs.sort();
        dirs.into_iter().map(Self::open).collect()
    }

    fn name(&self) -> &str {
        self.dir.file_name().unwrap().to_str().unwrap()
    }

    fn model(&self, rt: &Runtime) -> Model {
        let checkpoint = Checkpoint::open(&self.dir).unwrap_or_else(|e| panic!("{e}"));
        Model::load(rt, &checkpoint, &LoadOptions::default(), &mut |_| {})
            .unwrap_or_else(|e| panic!("{e}"))
    }

    fn expected(&self, name: &str) -> Vec<f32> {
        let bytes = self.logits.tensor(name).unwrap().bytes;
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// Kernels for AVX-512 and AMX round activations to bf16, the others keep f32.
    fn tolerance(&self, cpu: &Cpu) -> Tolerance {
        let class = if cpu.isa() >= Isa::Avx512 {
            "bf16"
        } else {
            "f32"
        };
        let spread = |kind: &str| SAFETY * self.golden["spread"][class][kind].as_f64().unwrap();
        Tolerance {
            rms: spread("rms"),
            max: spread("max"),
        }
    }
}

fn runtime(threads: usize) -> Runtime {
    let limit = std::env::var_os(ISA_VARIABLE);
    let cpu = Cpu::detect_up_to(limit.as_deref()).unwrap();
    Runtime::new(cpu, threads).unwrap()
}

/// Feeds the tokens in chunks and returns all logits.
fn run(rt: &Runtime, model: &Model, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    let mut cache = PagedCache::new(model.config(), tokens.len()).unwrap();
    let mut ws = Workspace::new();
    let mut logits = Vec::new();
    let mut rest = tokens;
    for &chunk in chunks {
        let (tokens, after) = rest.split_at(chunk);
        let input = Input {
            tokens,
            cache: &mut cache,
            logits: Want::All,
        };
        logits.extend_from_slice(
            model
                .forward(rt, &mut [input], &mut ws)
                .unwrap_or_else(|e| panic!("{e}")),
        );
        rest = after;
    }
    logits
}

fn compare(what: &str, found: &[f32], expected: &[f32], vocab: usize, tolerance: &Tolerance) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let distances = || found.iter().zip(expected).map(|(f, e)| f64::from(f - e));
    let rms = (distances().map(|d| d * d).sum::<f64>() / found.len() as f64).sqrt();
    let max = distances().map(f64::abs).fold(0.0, f64::max);
    eprintln!(
        "{what}: rms {rms:.5} of {:.5}, max {max:.4} of {:.4}",
        tolerance.rms, tolerance.max
    );
    // Not `>`: NaN has to fail.
    assert!(
        rms <= tolerance.rms && max <= tolerance.max,
        "{what} is too far from the reference"
    );
    let decided = greedy(what, found, expected, vocab, tolerance);
    assert!(
        decided * 8 > expected.len() / vocab,
        "{what}: only {decided} tokens have a clear winner"
    );
}

/// Compares the greedy token of each row whose winner leads by more than both may be off; returns how many there are.
fn greedy(
    what: &str,
    found: &[f32],
    expected: &[f32],
    vocab: usize,
    tolerance: &Tolerance,
) -> usize {
    let argmax = |row: &[f32]| {
        (0..vocab)
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap()
    };
    let mut decided = 0;
    for (i, (found, expected)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let best = argmax(expected);
        let second = (0..vocab)
            .filter(|&t| t != best)
            .map(|t| expected[t])
            .fold(f32::MIN, f32::max);
        if f64::from(expected[best] - second) > 2.0 * tolerance.max {
            assert_eq!(
                argmax(found),
                best,
                "{what}: greedy token after {} tokens",
                i + 1
            );
            decided += 1;
        }
    }
    decided
}

#[test]
fn logits_agree_with_transformers() {
    let rt = runtime(2);
    eprintln!("level {}", rt.cpu().isa());
    let fixtures = Fixture::all();
    assert_eq!(fixtures.len(), 9);
    for fixture in fixtures {
        let model = fixture.model(&rt);
        let tolerance = fixture.tolerance(rt.cpu());
        for golden in fixture.golden["runs"].as_array().unwrap() {
            let chunks: Vec<usize> = golden["chunks"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c.as_u64().unwrap() as usize)
                .collect();
            let found = run(&rt, &model, &fixture.tokens, &chunks);
            let expected = fixture.expected(golden["logits"].as_str().unwrap());
            let what = format!("{} in {} calls", fixture.name(), chunks.len());
            compare(
                &what,
                &found,
                &expected,
                model.config().vocab_size,
                &tolerance,
            );
        }
    }
}

/// Packed weights in place of dense ones, straight from the map. Nothing is pruned: the reference is the same.
#[test]
fn packed_weights_give_the_same_logits() {
    let rt = runtime(2);
    for fixture in Fixture::all() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            serde_json::from_slice(&std::fs::read(fixture.dir.join("config.json")).unwrap())
                .unwrap();
        common::write_packed(&Checkpoint::open(&fixture.dir).unwrap(), config, dir.path());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let model = Model::load(&rt, &checkpoint, &LoadOptions::default(), &mut |_| {}).unwrap();
        let (vocab, tokens) = (model.config().vocab_size, &fixture.tokens);
        let found = run(&rt, &model, tokens, &[tokens.len()]);
        let what = format!("{} packed", fixture.name());
        compare(
            &what,
            &found,
            &fixture.expected("logits.0"),
            vocab,
            &fixture.tolerance(rt.cpu()),
        );
    }
}

/// The same in a process of its own for every lower level: the test that runs there takes its level from the environment.
#[test]
fn lower_levels_agree_too() {
    let level = Cpu::detect().unwrap().isa();
    for lower in [Isa::Portable, Isa::Avx2, Isa::Avx512]
        .into_iter()
        .filter(|&lower| lower < level)
    {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", HERE, "--nocapture"])
            .env("SPARAMX_ISA", lower.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "level {lower}:\n{said}");
        assert!(
            said.contains(&format!("level {lower}\n")),
            "it did not run at level {lower}:\n{said}"
        );
    }
}

/// Two sequences in one call, in both orders, with different lengths and histories.
#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let rt = runtime(2);
    for fixture in Fixture::all()
        .into_iter()
        .filter(|fixture| fixture.name() != "llama-dynamic")
    {
        let (model, tolerance) = (fixture.model(&rt), fixture.tolerance(rt.cpu()));
        let (vocab, tokens) = (model.config().vocab_size, &fixture.tokens);
        let expected = fixture.expected("logits.0");
        let mut caches = [0, 1].map(|_| PagedCache::new(model.config(), tokens.len()).unwrap());
        let mut ws = Workspace::new();
        for (a, b) in [(0..20, 0..7), (20..21, 7..8), (21..24, 8..30)] {
            let [first, second] = &mut caches;
            let mut inputs = [
                Input {
                    tokens: &tokens[a.clone()],
                    cache: first,
                    logits: Want::Last,
                },
                Input {
                    tokens: &tokens[b.clone()],
                    cache: second,
                    logits: Want::All,
                },
            ];
            inputs.reverse();
            let found = model.forward(&rt, &mut inputs, &mut ws).unwrap();
            let (of_b, of_a) = found.split_at(b.len() * vocab);
            for (rows, found) in [(a.end - 1..a.end, of_a), (b, of_b)] {
                let expected = &expected[rows.start * vocab..rows.end * vocab];
                let worst = found
                    .iter()
                    .zip(expected)
                    .map(|(f, e)| f64::from((f - e).abs()))
                    .fold(0.0, f64::max);
                assert!(
                    found.len() == expected.len() && worst <= tolerance.max,
                    "{} {rows:?}",
                    fixture.name()
                );
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for fixture in Fixture::all() {
        let logits = [1, 2, 3].map(|threads| {
            let rt = runtime(threads);
            run(
                &rt,
                &fixture.model(&rt),
                &fixture.tokens,
                &[fixture.tokens.len() - 1, 1],
            )
        });
        assert!(
            logits[0] == logits[1] && logits[0] == logits[2],
            "{}",
            fixture.name()
        );
    }
}
