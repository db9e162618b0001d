//! The measurements themselves.

use std::time::{Duration, Instant};

use anyhow::Result;
use sparamx_engine::{KvOptions, KvPrecision, PagePool, PagedCache, Sampler, SamplingParams};
use sparamx_kernels::bandwidth::{Bandwidth, uncached_bytes};
use sparamx_kernels::{Rows, Runtime};
use sparamx_model::{Input, KvCache, Model, Profile, Spent, Want, Workspace};

use crate::kv::KvSparsity;

/// Tokens of a sequence that go through the model at a time.
pub const CHUNK_TOKENS: usize = 512;

/// A model to measure.
pub struct Subject {
    /// Name of the shape or the model.
    pub shape: String,
    /// Format of its weights.
    pub weights: &'static str,
    /// Share of zeros in them.
    pub sparsity: f64,
    /// Number of weights, zeros included.
    pub parameters: u64,
    /// It.
    pub model: Model,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// So many tokens of prompt.
    Prefill(usize),
    /// So many tokens, one after the other.
    Decode(usize),
}

impl Test {
    /// The number of tokens.
    pub fn tokens(self) -> usize {
        match self {
            Test::Prefill(tokens) | Test::Decode(tokens) => tokens,
        }
    }

    /// `pp512` or `tg128`.
    pub fn name(self) -> String {
        match self {
            Test::Prefill(tokens) => format!("pp{tokens}"),
            Test::Decode(tokens) => format!("tg{tokens}"),
        }
    }

    /// Forward passes it takes.
    pub fn passes(self) -> usize {
        match self {
            Test::Prefill(tokens) => tokens.div_ceil(CHUNK_TOKENS),
            Test::Decode(tokens) => tokens,
        }
    }
}

/// A way to keep keys and values.
#[derive(Clone, Debug)]
pub struct Kv {
    /// The options of the engine.
    pub options: KvOptions,
    /// What they are once they leave the window.
    pub precision: KvPrecision,
    /// Shares of zeros then.
    pub sparsity: KvSparsity,
}

/// One combination; subject, runtime and kv are indices into [`Bench`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The model.
    pub subject: usize,
    /// The number of threads.
    pub runtime: usize,
    /// Sequences at a time.
    pub batch: usize,
    /// Tokens that each of them already has.
    pub depth: usize,
    /// How their keys and values are kept.
    pub kv: usize,
    /// What is timed.
    pub test: Test,
}

/// All that is measured, and the results so far.
pub struct Bench {
    /// One for each number of threads.
    pub runtimes: Vec<Runtime>,
    /// The models.
    pub subjects: Vec<Subject>,
    /// Ways to keep keys and values; the first is dense bf16.
    pub kvs: Vec<Kv>,
    /// The combinations.
    pub settings: Vec<Setting>,
    /// Seconds that every combination took, round by round.
    pub seconds: Vec<Vec<f64>>,
    /// What the operations of every combination took, round by round; empty without `--profile`.
    pub passes: Vec<Vec<Passes>>,
    /// Read bandwidth in GB/s for every number of threads, round by round.
    pub bandwidth: Vec<Vec<f64>>,
    buffers: Vec<Bandwidth>,
    caches: Vec<Caches>,
    workspace: Workspace,
}

/// What the forward passes of a combination in a round took.
pub struct Passes {
    /// By operation.
    pub profile: Profile,
    /// The choice of a token of each sequence after each pass, with the default options of `run`.
    pub sampling: Spent,
    /// Passes and sampling together.
    pub time: Duration,
}

/// Sequences at one depth, as many as are ever needed, kept in one way. What they hold decides no speed, so that all models
/// share them.
struct Caches {
    depth: usize,
    kv: usize,
    sequences: Vec<PagedCache>,
}

impl Bench {
    /// Makes the caches and fills them to their depths.
    ///
    /// # Errors
    /// There is no memory for the caches.
    pub fn new(
        runtimes: Vec<Runtime>,
        subjects: Vec<Subject>,
        kvs: Vec<Kv>,
        settings: Vec<Setting>,
    ) -> Result<Self> {
        let mut bench = Bench {
            seconds: vec![Vec::new(); settings.len()],
            passes: settings.iter().map(|_| Vec::new()).collect(),
            bandwidth: vec![Vec::new(); runtimes.len()],
            buffers: runtimes
                .iter()
                .map(|rt| Bandwidth::new(rt, uncached_bytes()))
                .collect::<Result<_, _>>()?,
            runtimes,
            subjects,
            kvs,
            settings,
            caches: Vec::new(),
            workspace: Workspace::new(),
        };
        let most = bench.settings.iter().map(|setting| setting.batch).max();
        for kv in 0..bench.kvs.len() {
            let pool = PagePool::new(bench.subjects[0].model.config(), &bench.kvs[kv].options)?;
            let mut depths: Vec<usize> = bench.settings.iter().map(|s| s.depth).collect();
            depths.sort_unstable();
            depths.dedup();
            for depth in depths {
                let sequences = (0..most.unwrap_or(1))
                    .map(|_| bench.filled(&pool, depth))
                    .collect::<Result<_>>()?;
                bench.caches.push(Caches {
                    depth,
                    kv,
                    sequences,
                });
            }
        }
        Ok(bench)
    }

    /// A sequence with so many tokens. Their keys and values are made up: to compute them would take as long as the prompt.
    fn filled(&self, pool: &PagePool, depth: usize) -> Result<PagedCache> {
        let rt = &self.runtimes[self.runtimes.len() - 1];
        let config = self.subjects[0].model.config();
        let mut sequence = pool.sequence();
        let rows = |tokens: usize, width: usize| -> Vec<f32> {
            (0..tokens * width).map(made_up).collect()
        };
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        for start in (0..depth).step_by(CHUNK_TOKENS) {
            let tokens = CHUNK_TOKENS.min(depth - start);
            sequence.reserve(tokens)?;
            let (q, k, v) = (
                rows(tokens, q_width),
                rows(tokens, kv_width),
                rows(tokens, kv_width),
            );
            for layer in 0..config.num_hidden_layers {
                let q = Rows::new(&q, tokens, q_width);
                let k = Rows::new(&k, tokens, kv_width);
                let v = Rows::new(&v, tokens, kv_width);
                sequence.append(rt, layer, q, k, v)?;
            }
            sequence.advance(tokens);
        }
        Ok(sequence)
    }

    /// Runs every combination for a moment: pages are touched and buffers grown.
    ///
    /// # Errors
    /// The model cannot run.
    pub fn warm_up(&mut self) -> Result<()> {
        for index in 0..self.settings.len() {
            let setting = self.settings[index];
            let test = match setting.test {
                Test::Prefill(tokens) => Test::Prefill(tokens.min(32)),
                Test::Decode(tokens) => Test::Decode(tokens.min(2)),
            };
            self.time(&Setting { test, ..setting })?;
        }
        Ok(())
    }

    /// Measures every combination once, and the bandwidth before and after. The better of both is the round's: what disturbs
    /// one of them need not have disturbed the model.
    ///
    /// With `profile`, what the operations take is taken down too.
    ///
    /// # Errors
    /// The model cannot run.
    pub fn round(&mut self, profile: bool, done: &mut dyn FnMut(&Setting)) -> Result<()> {
        let before = self.measure_bandwidth();
        for index in 0..self.settings.len() {
            let setting = self.settings[index];
            if profile {
                self.workspace.start_profile();
            }
            let (forward, sampling) = self.time(&setting)?;
            self.seconds[index].push(forward.as_secs_f64());
            if let Some(profile) = self.workspace.take_profile() {
                let time = forward + sampling.time;
                self.passes[index].push(Passes {
                    profile,
                    sampling,
                    time,
                });
            }
            done(&setting);
        }
        let after = self.measure_bandwidth();
        for ((results, before), after) in self.bandwidth.iter_mut().zip(before).zip(after) {
            results.push(before.max(after));
        }
        Ok(())
    }

    /// Seconds that the same combination took with dense bf16 keys and values, round by round.
    pub fn seconds_with_dense_kv(&self, setting: &Setting) -> &[f64] {
        let dense = Setting { kv: 0, ..*setting };
        let index = self.settings.iter().position(|other| *other == dense);
        &self.seconds[index.expect("dense is always measured")]
    }

    /// The read bandwidth in GB/s for every number of threads.
    fn measure_bandwidth(&self) -> Vec<f64> {
        let all = self.buffers.iter().zip(&self.runtimes);
        all.map(|(buffer, rt)| buffer.measure(rt)).collect()
    }

    /// What the forward passes of one combination take, and the choices of tokens between them: that speed is the engine's
    /// and no part of the model's.
    fn time(&mut self, setting: &Setting) -> Result<(Duration, Spent)> {
        let rt = &self.runtimes[setting.runtime];
        let model = &self.subjects[setting.subject].model;
        let of_setting =
            |caches: &&Caches| caches.depth == setting.depth && caches.kv == setting.kv;
        let caches = self.caches.iter().find(of_setting);
        let caches = caches.expect("caches for every depth and way to keep them");
        // What they share with the originals is read, and nothing of it written.
        let mut sequences: Vec<PagedCache> = caches.sequences[..setting.batch]
            .iter()
            .map(PagedCache::fork)
            .collect();
        for sequence in &mut sequences {
            sequence.reserve(setting.test.tokens())?;
        }
        let tokens = token_ids(setting.test.tokens(), model.config().vocab_size);
        let step = match setting.test {
            Test::Prefill(_) => CHUNK_TOKENS,
            Test::Decode(_) => 1,
        };
        let mut sampler = Sampler::new(&sampling(), &[])?;
        let (mut passes, mut sampling) = (Duration::ZERO, Spent::default());
        for chunk in tokens.chunks(step) {
            let start = Instant::now();
            let logits = forward(rt, model, chunk, &mut sequences, &mut self.workspace)?;
            passes += start.elapsed();
            let start = Instant::now();
            for logits in logits.chunks_exact(model.config().vocab_size) {
                sampler.sample(logits)?;
            }
            sampling.time += start.elapsed();
            sampling.calls += 1;
            sampling.bytes += size_of_val(logits) as u64;
        }
        Ok((passes, sampling))
    }
}

/// How a token is chosen: some of the most probable ones, as a program would.
fn sampling() -> SamplingParams {
    SamplingParams {
        top_k: 40,
        ..SamplingParams::default()
    }
}

/// Numbers between -0.5 and 0.5 that look like nothing in particular.
fn made_up(index: usize) -> f32 {
    let scattered = (index as u32).wrapping_mul(0x9e37_79b1);
    scattered as f32 / u32::MAX as f32 - 0.5
}

/// The same tokens for every sequence: they are of no matter for the speed.
fn forward<'w>(
    rt: &Runtime,
    model: &Model,
    tokens: &[u32],
    sequences: &mut [PagedCache],
    workspace: &'w mut Workspace,
) -> Result<&'w [f32]> {
    let input = |cache| Input {
        tokens,
        cache,
        logits: Want::Last,
    };
    let mut inputs: Vec<Input<'_>> = sequences
        .iter_mut()
        .map(|cache| input(cache as &mut dyn KvCache))
        .collect();
    Ok(model.forward(rt, &mut inputs, workspace)?)
}

/// Tokens from all over the vocabulary.
fn token_ids(count: usize, vocab_size: usize) -> Vec<u32> {
    // A prime step visits many rows of the embedding before it repeats.
    (0..count)
        .map(|index| (index * 7919 % vocab_size) as u32)
        .collect()
}
