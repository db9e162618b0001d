//! The measurements themselves.

use std::time::{Duration, Instant};

use anyhow::Result;
use sparamx_engine::{PagedCache, Sampler, SamplingParams};
use sparamx_kernels::Runtime;
use sparamx_kernels::bandwidth::{Bandwidth, uncached_bytes};
use sparamx_model::{Input, KvCache, Model, Profile, Spent, Want, Workspace};

/// Tokens of a sequence that go through the model at a time.
const CHUNK_TOKENS: usize = 512;

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

/// One combination; subject and runtime are indices into [`Bench`].
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The model.
    pub subject: usize,
    /// The number of threads.
    pub runtime: usize,
    /// Sequences at a time.
    pub batch: usize,
    /// Tokens that each of them already has.
    pub depth: usize,
    /// What is timed.
    pub test: Test,
}

/// All that is measured, and the results so far.
pub struct Bench {
    /// One for each number of threads.
    pub runtimes: Vec<Runtime>,
    /// The models.
    pub subjects: Vec<Subject>,
    /// The combinations.
    pub settings: Vec<Setting>,
    /// Seconds that every combination took, round by round.
    pub seconds: Vec<Vec<f64>>,
    /// What the operations of every combination took, round by round; nothing if nobody wants to know.
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

/// Keys and values of as many sequences as are ever needed, at one depth. What they hold decides no speed, so that all
/// models share them.
struct Caches {
    depth: usize,
    sequences: Vec<PagedCache>,
}

impl Bench {
    /// Makes the caches and fills them to their depths; `tokens` more fit in each.
    ///
    /// # Errors
    /// There is no memory for the caches, or the model cannot run.
    pub fn new(
        runtimes: Vec<Runtime>,
        subjects: Vec<Subject>,
        settings: Vec<Setting>,
        tokens: usize,
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
            settings,
            caches: Vec::new(),
            workspace: Workspace::new(),
        };
        let batch = bench
            .settings
            .iter()
            .map(|setting| setting.batch)
            .max()
            .unwrap_or(1);
        let mut depths: Vec<usize> = bench.settings.iter().map(|setting| setting.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        for depth in depths {
            let config = bench.subjects[0].model.config();
            let cache = || PagedCache::new(config, depth + tokens);
            let sequences = (0..batch).map(|_| cache()).collect::<Result<Vec<_>, _>>()?;
            bench.caches.push(Caches { depth, sequences });
            bench.fill(depth)?;
        }
        Ok(bench)
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
        let at = self
            .caches
            .iter()
            .position(|caches| caches.depth == setting.depth);
        let caches = &mut self.caches[at.expect("caches for every depth")];
        let sequences = &mut caches.sequences[..setting.batch];
        for sequence in sequences.iter_mut() {
            sequence.truncate(setting.depth);
            sequence.reserve(setting.test.tokens())?;
        }
        let tokens = token_ids(setting.test.tokens(), model.config().vocab_size);
        let step = match setting.test {
            Test::Prefill(_) => CHUNK_TOKENS,
            Test::Decode(_) => 1,
        };
        let mut sampler = Sampler::new(&SamplingParams::default(), &[])?;
        let (mut passes, mut sampling) = (Duration::ZERO, Spent::default());
        for chunk in tokens.chunks(step) {
            let start = Instant::now();
            let logits = forward(rt, model, chunk, sequences, Want::Last, &mut self.workspace)?;
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

    /// Brings the sequences of a depth to it.
    fn fill(&mut self, depth: usize) -> Result<()> {
        let rt = &self.runtimes[self.runtimes.len() - 1];
        let model = &self.subjects[0].model;
        let caches = self.caches.iter_mut().find(|caches| caches.depth == depth);
        for sequence in &mut caches.expect("caches for every depth").sequences {
            sequence.reserve(depth)?;
            for chunk in token_ids(depth, model.config().vocab_size).chunks(CHUNK_TOKENS) {
                forward(
                    rt,
                    model,
                    chunk,
                    std::slice::from_mut(sequence),
                    Want::None,
                    &mut self.workspace,
                )?;
            }
        }
        Ok(())
    }
}

/// The same tokens for every sequence: they are of no matter for the speed.
fn forward<'w>(
    rt: &Runtime,
    model: &Model,
    tokens: &[u32],
    sequences: &mut [PagedCache],
    logits: Want,
    workspace: &'w mut Workspace,
) -> Result<&'w [f32]> {
    let input = |cache| Input {
        tokens,
        cache,
        logits,
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
