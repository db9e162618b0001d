//! `sparamx bench`: prefill and decode speed beside the memory bandwidth.
//!
//! All combinations are measured in turn, in rounds, with the bandwidth between them: whatever else the machine does meets
//! all of them alike. What is reported is the median over the rounds.

mod measure;
mod models;
mod plot;
mod profile;
mod report;
pub mod stats;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use sparamx_engine::{KvPrecision, PagePool};
use sparamx_format::ElementKind;
use sparamx_kernels::bandwidth::uncached_bytes;
use sparamx_model::{Config, Model, Precision, shapes};

use self::measure::{Bench, CHUNK_TOKENS, Kv, Setting, Test};
use self::models::{Source, Variant};
use crate::args::{self, Common, MAX_THREADS, Memory, UsageError};
use crate::kv::{KvPageArgs, KvSparsities, KvSparsity};
use crate::{loading, memory, output, progress, runtime, source, units};

/// Options of `bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx bench --shape tinyllama-1.1b --sparsity 0,0.5
  sparamx bench --shape llama3-8b --sparsity 0.5 -p 0 -n 64 -b 1,4,16 -t 16,32
  sparamx bench --shape llama3-8b --sparsity 0.5 -p 0 -n 16 --profile
  sparamx bench --depth 512,2048,8192,16384 --kv-sparsity \"0.3;0.5\"
  sparamx bench llama-8b-50 --format json

Two tests: prefill reads a prompt (pp512: 512 tokens of it), decode writes text (tg128: 128 tokens, one after the other). They take
turns for --rounds rounds, so that whatever else the machine does meets all alike. The columns of the table:
  model to batch   what is measured; size is that of all weights
  kv cache         how keys and values are kept, and the share of zeros in them
  test             pp512 or tg128; @ d2048 after a text of 2048 tokens
  t/s              tokens a second: the median of the rounds ± the largest difference of a round from it
  over dense kv    how many times as fast as with dense keys and values
  GB/s             bytes of weights that are read a second, 10^9 each
  of bandwidth     that as a share of what this machine reads from memory, measured in the same rounds: decode cannot be faster than
                   1, but for weights that stay in a cache, which is said

bench-kernels measures single matrix multiplications.")]
pub struct BenchArgs {
    /// Directory, GGUF file or hub id of a model to measure as it is
    #[arg(value_name = "MODEL", conflicts_with = "shape")]
    model: Option<String>,
    /// Measure a model of this shape with random weights
    #[arg(long, value_name = "NAME", value_parser = shape)]
    shape: Option<String>,
    /// Use N of its layers only, with --shape
    #[arg(long, value_name = "N", conflicts_with = "model", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,
    /// Break the time of a forward pass down by operation, sampling included
    #[arg(long)]
    profile: bool,
    /// Formats of the weights, with --shape [default: bf16]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = args::one_of(&WEIGHTS, ElementKind::name),
        conflicts_with = "model"
    )]
    weights: Vec<ElementKind>,
    /// Fractions of zeros in the decoder's weights, with --shape; 0 is dense [default: 0,0.5]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = args::sparsity, conflicts_with = "model")]
    sparsity: Vec<f64>,
    /// Tokens of a prompt; 0 leaves prefill out [default: 512, or 0 with --kv-sparsity]
    #[arg(short = 'p', long, value_name = "N")]
    prompt_tokens: Option<usize>,
    /// Tokens to generate; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    new_tokens: usize,
    /// Sequences at a time
    #[arg(
        short,
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1",
        value_parser = batch
    )]
    batch: Vec<usize>,
    /// Tokens that each sequence already has
    #[arg(
        short,
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "0"
    )]
    depth: Vec<usize>,
    /// Fractions of zeros in keys and values once they leave the window, each as K,V or one for both: several
    /// after ; or by several options. Dense bf16 is measured too. Without MODEL and --shape: 8 layers of llama3-8b with half of the
    /// weights
    #[arg(long = "kv-sparsity", value_name = "K,V", value_delimiter = ';')]
    kv_sparsity: Vec<KvSparsities>,
    #[command(flatten)]
    kv_pages: KvPageArgs,
    /// Thread counts [default: the physical cores this process may use]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = threads)]
    threads: Vec<usize>,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    format: FormatArgs,
}

/// How to print the result.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// How to print the result [default: md]
    #[arg(long, short_alias = 'o', alias = "output", value_name = "FORMAT")]
    format: Option<Format>,
}

impl FormatArgs {
    /// How to print the result.
    ///
    /// # Errors
    /// Both options for it were given, and differ.
    pub fn choose(self, common: Common) -> Result<Format> {
        match (self.format, common.json) {
            (Some(Format::Json) | None, true) => Ok(Format::Json),
            (Some(_), true) => bail!(UsageError(
                "--json and another --format: choose one of them".to_owned()
            )),
            (format, false) => Ok(format.unwrap_or(Format::Md)),
        }
    }
}

/// Dtypes of weights; packed where the sparsity is above 0.
pub const WEIGHTS: [(ElementKind, &str); 3] = [
    (ElementKind::Bf16, "bf16"),
    (ElementKind::Int8, "8 bits a weight"),
    (ElementKind::Int4, "4 bits a weight"),
];

/// Columns that share a scale of random int4 weights: what `compress` has by custom.
const INT4_GROUP: usize = 128;

/// Formats of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table
    Md,
    /// One JSON object
    Json,
    /// Comma-separated values
    Csv,
    /// A chart of the speed by depth or batch
    Svg,
}

fn shape(text: &str) -> Result<String, String> {
    match shapes::config(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("the shapes are {}", shapes::names().join(", "))),
    }
}

/// Reads how many rows or sequences go through at a time.
pub fn batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(batch) if (1..=4096).contains(&batch) => Ok(batch),
        _ => Err("a whole number from 1 to 4096 is needed".to_owned()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("a whole number from 1 to {MAX_THREADS} is needed")),
    }
}

/// What `--kv-sparsity` is measured with if nothing is named: attention of the usual size, and as many layers as leave every
/// cache of a CPU.
const KV_SHAPE: (&str, u32) = ("llama3-8b", 8);
/// And the share of zeros in its weights.
const KV_WEIGHT_SPARSITY: f64 = 0.5;

/// Measures and prints.
///
/// # Errors
/// Nothing is asked for, the model cannot be read, there is not enough memory for all the models, or standard output cannot
/// be written.
pub fn run(args: &BenchArgs, common: Common) -> Result<()> {
    args.check_options()?;
    let args = &args.completed();
    args.warn(common);
    let tests = args.tests()?;
    let format = args.format.choose(common)?;
    if args.profile && matches!(format, Format::Csv | Format::Svg) {
        bail!(UsageError(
            "--profile is printed as a table or as JSON: use --format md or json".to_owned()
        ));
    }
    let threads = args.thread_counts();
    let source = args.source(common)?;
    args.check_context(&source.config)?;
    let models = args.models(&source)?;
    let bytes = args.check_memory(&source, &models, threads.len())?;
    if common.verbose {
        output::complain(&format!(
            "{} of memory for models, KV cache and bandwidth",
            units::bytes(bytes)
        ));
    }
    let runtimes = threads
        .iter()
        .map(|&threads| runtime::start(threads, common))
        .collect::<Result<Vec<_>>>()?;
    let subjects = models::load(
        &source,
        &models,
        &runtimes[runtimes.len() - 1],
        args.memory,
        common,
    )?;
    let kvs = args.kvs();
    let settings = args.settings(&tests, threads.len(), subjects.len(), kvs.len());
    let measurements = u64::from(args.rounds) * settings.len() as u64;
    let mut bench = Bench::new(runtimes, subjects, kvs, settings)?;
    args.measure(&mut bench, measurements, common)?;
    let report = report::Report::new(&bench);
    match format {
        Format::Json => output::json(&report),
        Format::Md => output::text_out(&report.markdown()),
        Format::Csv => output::text_out(&report.csv()),
        Format::Svg => output::text_out(&plot::svg(&report).unwrap_or_default()),
    }
}

impl BenchArgs {
    /// Takes all rounds.
    fn measure(&self, bench: &mut Bench, measurements: u64, common: Common) -> Result<()> {
        let bar = progress::count_bar(common, measurements, "measurements", "warming up");
        bench
            .runtimes
            .iter()
            .for_each(sparamx_kernels::Runtime::pin_caller);
        bench.warm_up()?;
        for _ in 0..self.rounds {
            bar.set_message("memory");
            bench.round(self.profile, &mut |setting| {
                bar.set_message(setting.test.name());
                bar.inc(1);
            })?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Refuses options that would change nothing.
    fn check_options(&self) -> Result<()> {
        if self.model.is_none() && self.memory.memory_bytes.is_some() {
            bail!(UsageError(
                "--memory changes nothing without a MODEL: random weights stay as they are made"
                    .to_owned()
            ));
        }
        Ok(())
    }

    /// Says which separator settings have, where they have another, and which options change nothing.
    fn warn(&self, common: Common) {
        if !common.quiet && self.kv_sparsity.iter().any(|value| value.0.len() > 1) {
            output::complain(
                "warning: --kv-sparsity takes K,V: separate settings by ; instead of ,",
            );
        }
        let sparse = self.kv_sparsities().any(|sparsity| sparsity.mean() > 0.0);
        self.kv_pages.warn_of_useless(sparse, common);
    }

    /// With a shape if there is neither a model nor a shape, but keys and values are to be compared.
    fn completed(&self) -> Self {
        let mut args = self.clone();
        let nothing_named = self.model.is_none() && self.shape.is_none();
        if nothing_named && !self.kv_sparsity.is_empty() {
            let (shape, layers) = KV_SHAPE;
            args.shape = Some(shape.to_owned());
            args.layers.get_or_insert(layers);
            if args.sparsity.is_empty() {
                args.sparsity = vec![KV_WEIGHT_SPARSITY];
            }
        }
        args
    }

    /// The settings of `--kv-sparsity`.
    fn kv_sparsities(&self) -> impl Iterator<Item = KvSparsity> {
        self.kv_sparsity.iter().flat_map(|value| value.0.clone())
    }

    /// Tokens of a prompt to measure.
    fn prompt_tokens(&self) -> usize {
        let usual = if self.kv_sparsity.is_empty() { 512 } else { 0 };
        self.prompt_tokens.unwrap_or(usual)
    }

    fn tests(&self) -> Result<Vec<Test>> {
        let tests = [
            Test::Prefill(self.prompt_tokens()),
            Test::Decode(self.new_tokens),
        ];
        let tests: Vec<Test> = tests.into_iter().filter(|test| test.tokens() > 0).collect();
        if tests.is_empty() {
            bail!(UsageError(
                "-p 0 and -n 0 leave nothing to measure".to_owned()
            ));
        }
        Ok(tests)
    }

    fn thread_counts(&self) -> Vec<usize> {
        if self.threads.is_empty() {
            vec![sparamx_cpu::topology::default_threads()]
        } else {
            self.threads.clone()
        }
    }

    fn source(&self, common: Common) -> Result<Source> {
        if let Some(shape) = &self.shape {
            let (mut name, mut config) = (shape.clone(), shapes::config(shape)?);
            if let Some(layers) = self.layers {
                let all = config.num_hidden_layers;
                if layers as usize > all {
                    bail!(UsageError(format!(
                        "{shape} has {all} layers; lower --layers"
                    )));
                }
                config.keep_layers(layers as usize);
                name = format!("{shape}/{layers} layers");
            }
            // Random weights were made for any context.
            let depth = self.depth.iter().copied().max().unwrap_or(0);
            let tokens = self.prompt_tokens().max(self.new_tokens);
            let needed = depth.saturating_add(tokens);
            config.max_position_embeddings = config.max_position_embeddings.max(needed);
            return Ok(Source {
                name,
                config,
                checkpoint: None,
            });
        }
        let missing = || {
            UsageError(
                "name a MODEL, or a shape with --shape (see: sparamx bench --help)".to_owned(),
            )
        };
        let model = self.model.as_deref().ok_or_else(missing)?;
        let checkpoint = loading::open(&source::resolve(model, common)?, common)?;
        let name = model
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or(model);
        Ok(Source {
            name: name.to_owned(),
            config: checkpoint.config().clone(),
            checkpoint: Some(checkpoint),
        })
    }

    fn check_context(&self, config: &Config) -> Result<()> {
        let depth = self.depth.iter().copied().max().unwrap_or(0);
        let tokens = self.prompt_tokens().max(self.new_tokens);
        let context = config.context_length();
        if depth.saturating_add(tokens) > context {
            bail!(UsageError(format!(
                "{depth} tokens of depth and {tokens} more do not fit in the context of {context}; lower --depth, -p or -n"
            )));
        }
        Ok(())
    }

    fn models(&self, source: &Source) -> Result<Vec<Variant>> {
        if let Some(checkpoint) = &source.checkpoint {
            return Ok(vec![Variant {
                precision: checkpoint.config().packed.unwrap_or(Precision::Bf16),
                sparsity: models::stored_sparsity(checkpoint)?,
            }]);
        }
        let sparsities = if self.sparsity.is_empty() {
            &[0.0, 0.5][..]
        } else {
            &self.sparsity
        };
        let weights = if self.weights.is_empty() {
            &[ElementKind::Bf16][..]
        } else {
            &self.weights
        };
        let variants = weights.iter().flat_map(|&element| {
            sparsities.iter().map(move |&sparsity| Variant {
                precision: Precision::new(element, INT4_GROUP),
                sparsity,
            })
        });
        Ok(variants.collect())
    }

    /// Ways to keep keys and values: dense bf16, then what is asked for.
    fn kvs(&self) -> Vec<Kv> {
        let kv = |precision, sparsity| Kv {
            options: self.kv_pages.of(sparsity, precision),
            precision,
            sparsity,
        };
        let mut all = vec![kv(KvPrecision::Bf16, KvSparsity::default())];
        let dense = self.kv_sparsity.is_empty().then(KvSparsity::default);
        for sparsity in self.kv_sparsities().chain(dense) {
            let precision = self.kv_pages.precision;
            let same = |kv: &Kv| kv.precision == precision && kv.sparsity == sparsity;
            if !all.iter().any(same) {
                all.push(kv(precision, sparsity));
            }
        }
        all
    }

    /// Refuses what will not fit before anything is built, and says what all of it takes.
    fn check_memory(&self, source: &Source, models: &[Variant], threads: usize) -> Result<u64> {
        let config = &source.config;
        let batch = self.batch.iter().copied().max().unwrap_or(1) as u64;
        let extra = self.prompt_tokens().max(self.new_tokens);
        let mut caches = 0u64;
        for kv in self.kvs() {
            let pool = PagePool::new(config, &kv.options)?;
            let bytes = |&depth: &usize| pool.sequence_bytes(depth + extra, CHUNK_TOKENS);
            caches += batch * self.depth.iter().map(bytes).sum::<u64>();
        }
        let weights: u64 = match &source.checkpoint {
            Some(checkpoint) => Model::required_bytes(checkpoint),
            None => models
                .iter()
                .map(|model| Model::random_bytes(config, model.random()))
                .sum(),
        };
        let needed = weights
            + memory::largest_matrix_bytes(config)
            + caches
            + threads as u64 * uncached_bytes() as u64;
        memory::check(
            needed,
            &format!("{} models of the shape {}", models.len(), source.name),
            "measure fewer at a time",
        )?;
        Ok(needed)
    }

    /// All combinations, those next to each other that are compared most.
    fn settings(
        &self,
        tests: &[Test],
        runtimes: usize,
        subjects: usize,
        kvs: usize,
    ) -> Vec<Setting> {
        let mut settings = Vec::new();
        for &test in tests {
            for runtime in 0..runtimes {
                for &depth in &self.depth {
                    for &batch in &self.batch {
                        for subject in 0..subjects {
                            settings.extend((0..kvs).map(|kv| Setting {
                                subject,
                                runtime,
                                batch,
                                depth,
                                kv,
                                test,
                            }));
                        }
                    }
                }
            }
        }
        settings
    }
}
