//! `sparamx bench-kernels`: every kernel of the catalog that this CPU can run, on weights that come from memory.
//!
//! For each shape and batch all kernels take turns, round by round, with the read bandwidth around every round. Each result
//! is compared with plain loops before it is timed.

mod measure;
mod oracle;
mod report;

use anyhow::{Result, bail};
use clap::Args;
use sparamx_cpu::Cpu;
use sparamx_format::ElementKind;
use sparamx_kernels::Runtime;
use sparamx_kernels::bandwidth::{Bandwidth, uncached_bytes};
use sparamx_kernels::catalog::{KernelSpec, catalog};
use sparamx_kernels::linear::WeightFormat;
use sparamx_model::plan::{self, Role};
use sparamx_model::shapes;

use self::measure::{Group, Setting, Shape, Variant};
use self::report::Report;
use super::bench::{self, Format, FormatArgs};
use crate::args::{self, Common, Threads, UsageError};
use crate::{memory, output, progress, runtime};

const SPARSITIES: [f64; 3] = [0.5, 0.7, 0.8];
/// What a kernel computes in a second, for the bar only: its time left is then about right from the start.
const NOMINAL_FLOPS: f64 = 1e11;

/// Options of `bench-kernels`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx bench-kernels --shapes \"4096,14336;1024,4096\" -b 1,16 --weights int8
  sparamx bench-kernels --shapes llama3-8b --kernel amx --format json

Every kernel computes the same matrix products, which are checked before they are timed. The kernels take turns for --rounds rounds, so
that whatever else the machine does meets all alike. The columns of the table:
  N to M           outputs, inputs, rows of activations
  us               microseconds of a call: the median of the rounds
  spread           the fastest and the slowest round
  GB/s             bytes of weights that are read a second, 10^9 each
  of bandwidth     that as a share of what this machine reads from memory, measured in the same rounds
  over dense       how many times as fast as with dense weights
  chosen           yes for the kernel that a model would use")]
pub struct BenchKernelsArgs {
    /// Shapes: N,K;N,K;.. or the name of a model's shape
    #[arg(
        long,
        value_name = "SHAPES",
        value_delimiter = ';',
        default_value = "llama3-8b",
        value_parser = shape_list
    )]
    shapes: Vec<ShapeList>,
    /// Only kernels with this in their name
    #[arg(long, value_name = "TEXT")]
    kernel: Option<String>,
    /// MiB of distinct weights that each kernel goes through in turn; 0 for one copy, which the caches may hold
    /// [default: 4 times the last-level caches, and 256 at least]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    stream: Option<u32>,
    /// Formats of the weights [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = args::one_of(&bench::WEIGHTS, ElementKind::name))]
    weights: Vec<ElementKind>,
    /// Fractions of zeros in the weights; 0 is dense [default: 0,0.5,0.7,0.8]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = args::sparsity)]
    sparsity: Vec<f64>,
    /// Rows of activations
    #[arg(
        short,
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,4,8,16,32,512",
        value_parser = bench::batch
    )]
    batch: Vec<usize>,
    #[command(flatten)]
    threads: Threads,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    format: FormatArgs,
}

/// Shapes that one word stands for.
#[derive(Clone, Debug)]
struct ShapeList(Vec<Shape>);

/// `4096,14336`, or the name of a model for the shapes of its layers.
fn shape_list(text: &str) -> Result<ShapeList, String> {
    if let Some((n, k)) = text.split_once(',') {
        let size = |text: &str| {
            text.trim()
                .parse()
                .ok()
                .filter(|&size| (1..=1 << 20).contains(&size))
        };
        return match (size(n), size(k)) {
            (Some(n), Some(k)) => Ok(ShapeList(vec![Shape { n, k }])),
            _ => Err("N,K is needed: two whole numbers from 1 to 1048576".to_owned()),
        };
    }
    let config = shapes::config(text)
        .map_err(|_| format!("N,K is needed, or one of {}", shapes::names().join(", ")))?;
    let mut list: Vec<Shape> = Vec::new();
    for tensor in plan::tensors(&config) {
        let multiplied = tensor.role.may_be_packed()
            || (config.tie_word_embeddings && tensor.role == Role::Embedding);
        if let ([n, k], true) = (&tensor.shape[..], multiplied)
            && !list.contains(&Shape { n: *n, k: *k })
        {
            list.push(Shape { n: *n, k: *k });
        }
    }
    Ok(ShapeList(list))
}

/// Measures and prints.
///
/// # Errors
/// No kernel is left, a kernel computes something wrong, there is not enough memory, or standard output cannot be written.
pub fn run(args: &BenchKernelsArgs, common: Common) -> Result<()> {
    let print: fn(&Report) -> Result<()> = match args.format.choose(common)? {
        Format::Json => |report| output::json(report),
        Format::Md => |report| output::text_out(&report.markdown()),
        Format::Csv => |report| output::text_out(&report.csv()),
        Format::Svg => bail!(UsageError(
            "bench-kernels prints a table, CSV or JSON: use --format md, csv or json".to_owned()
        )),
    };
    let plan = Plan::new(args, &runtime::cpu()?)?;
    plan.check_memory()?;
    // The loading threads start before this one is pinned: they would inherit the pin.
    runtime::loading_threads(args.threads)?;
    let rt = runtime::start(args.threads.count(), common)?;
    print(&plan.measure(&rt, common)?)
}

/// What is to be measured.
struct Plan {
    shapes: Vec<Shape>,
    batches: Vec<usize>,
    /// Weights, and the kernels that read them.
    kernels: Vec<(Variant, Vec<&'static KernelSpec>)>,
    /// Bytes of distinct weights of each kind.
    stream_bytes: usize,
    rounds: u32,
}

impl Plan {
    fn new(args: &BenchKernelsArgs, cpu: &Cpu) -> Result<Self> {
        let named = |spec: &KernelSpec| {
            let text = args.kernel.as_ref();
            text.is_none_or(|text| spec.name.contains(text.as_str()))
        };
        let specs = |variant: &Variant| -> Vec<&'static KernelSpec> {
            let reads = catalog().iter().filter(|s| s.weight == variant.format);
            reads.filter(|s| s.on(cpu).is_ok() && named(s)).collect()
        };
        let kernels: Vec<_> = args
            .variants()
            .into_iter()
            .map(|variant| (variant, specs(&variant)))
            .filter(|(_, specs)| !specs.is_empty())
            .collect();
        if kernels.is_empty() {
            bail!(UsageError(
                "no kernel that this CPU can run is left (see: sparamx inspect --kernels)"
                    .to_owned()
            ));
        }
        let shapes = args.shapes.iter();
        let stream_bytes = args.stream.map(|mib| (mib as usize) << 20);
        Ok(Plan {
            shapes: shapes.flat_map(|list| list.0.clone()).collect(),
            batches: args.batch.clone(),
            kernels,
            stream_bytes: stream_bytes.unwrap_or_else(uncached_bytes),
            rounds: args.rounds,
        })
    }

    /// Refuses what will not fit, before anything is built.
    fn check_memory(&self) -> Result<()> {
        let m = self.batches.iter().copied().max().unwrap_or(1);
        let of_shape = |shape: &Shape| -> u64 {
            let of_set = |variant: &Variant| variant.bytes(*shape).max(self.stream_bytes as u64);
            let weights: u64 = self
                .kernels
                .iter()
                .map(|(variant, _)| of_set(variant))
                .sum();
            // Rows of one weight before they are packed; activations and outputs.
            let buffers = 2 * shape.n * shape.k + 4 * m * (shape.n + shape.k);
            weights + buffers as u64
        };
        let weights = self.shapes.iter().map(of_shape).max().unwrap_or(0);
        memory::check(
            weights + uncached_bytes() as u64,
            "weights of all formats",
            "name fewer with --weights and --sparsity",
        )
    }

    fn measure(&self, rt: &Runtime, common: Common) -> Result<Report> {
        let memory = Bandwidth::new(rt, uncached_bytes())?;
        rt.pin_caller();
        let bar = progress::work_bar(common, self.steps(), "measuring");
        let mut report = Report::new(rt);
        for &shape in &self.shapes {
            bar.set_message(format!("weights {shape}"));
            let sets = self
                .kernels
                .iter()
                .map(|(variant, _)| variant.make(shape, self.stream_bytes))
                .collect::<Result<Vec<_>>>()?;
            for &m in &self.batches {
                let setting = Setting { shape, m };
                bar.set_message(format!("{shape}, M {m}"));
                let mut group = Group::new(rt, setting, &sets);
                for (spec, set) in self.entries() {
                    if let Some(skipped) = group.add(spec, set)? {
                        bar.inc(steps(setting) * u64::from(self.rounds));
                        if !common.quiet {
                            bar.suspend(|| output::complain(&format!("note: {skipped}")));
                        }
                        report.skip(skipped);
                    }
                }
                for _ in 0..self.rounds {
                    group.round(&memory, &mut || bar.inc(steps(setting)))?;
                }
                report.add(rt, &group);
            }
        }
        bar.finish_and_clear();
        Ok(report)
    }

    /// All kernels with the indices of their weights.
    fn entries(&self) -> impl Iterator<Item = (&'static KernelSpec, usize)> {
        let sets = self.kernels.iter().enumerate();
        sets.flat_map(|(set, (_, specs))| specs.iter().map(move |&spec| (spec, set)))
    }

    /// The length of the bar.
    fn steps(&self) -> u64 {
        let settings = self
            .shapes
            .iter()
            .flat_map(|&shape| self.batches.iter().map(move |&m| Setting { shape, m }));
        let rows = self.entries().count() as u64 * u64::from(self.rounds);
        settings.map(steps).sum::<u64>() * rows
    }
}

/// How far the bar goes on for a kernel in a round: its time in units of the shortest.
fn steps(setting: Setting) -> u64 {
    let seconds = setting.flops() / NOMINAL_FLOPS;
    (seconds / measure::BUDGET.as_secs_f64()).ceil().max(1.0) as u64
}

impl BenchKernelsArgs {
    /// Weights to measure with: dense ones where 0 is among the sparsities, packed ones for each of the others.
    fn variants(&self) -> Vec<Variant> {
        let weights = |format: WeightFormat| {
            self.weights.is_empty() || self.weights.contains(&format.element())
        };
        let packed: Vec<f64> = if self.sparsity.is_empty() {
            SPARSITIES.to_vec()
        } else {
            self.sparsity
                .iter()
                .copied()
                .filter(|&sparsity| sparsity > 0.0)
                .collect()
        };
        let dense = if self.sparsity.is_empty() || self.sparsity.contains(&0.0) {
            &[0.0][..]
        } else {
            &[]
        };
        let formats = WeightFormat::ALL
            .into_iter()
            .filter(|&format| weights(format));
        formats
            .flat_map(|format| {
                let sparsities = if format.is_sparse() {
                    &packed[..]
                } else {
                    dense
                };
                sparsities
                    .iter()
                    .map(move |&sparsity| Variant { format, sparsity })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_named_or_written_out() {
        let list = |text: &str| shape_list(text).map(|list| list.0);
        assert_eq!(list("16, 64"), Ok(vec![Shape { n: 16, k: 64 }]));
        let llama = [
            (4096, 4096),
            (1024, 4096),
            (14336, 4096),
            (4096, 14336),
            (128256, 4096),
        ];
        let found = list("llama3-8b").unwrap();
        assert_eq!(found.len(), llama.len());
        assert!(llama.iter().all(|&(n, k)| found.contains(&Shape { n, k })));
        // The head of tied embeddings.
        assert!(
            list("llama3.2-1b")
                .unwrap()
                .contains(&Shape { n: 128256, k: 2048 })
        );
        for bad in ["", "16", "16,0", "a,b", "1,2,3", "gpt-9"] {
            assert!(list(bad).is_err(), "{bad}");
        }
    }
}
