//! `sparamx bench --kernels`: every kernel of the catalog that this CPU can run, on weights that come from memory.
//!
//! For each shape and batch all kernels take turns, round by round, with the read bandwidth around every round. Each result
//! is compared with plain loops before it is timed.

mod measure;
mod oracle;
mod report;

use std::fmt;

use anyhow::{Result, bail};
use clap::Args;
use sparamx_cpu::Cpu;
use sparamx_kernels::Runtime;
use sparamx_kernels::bandwidth::{Bandwidth, uncached_bytes};
use sparamx_kernels::catalog::{KernelSpec, catalog};
use sparamx_kernels::linear::WeightFormat;
use sparamx_model::plan::{self, Role};
use sparamx_model::shapes;

use super::{BenchArgs, Format, Weights};
use crate::args::{Common, Threads, UsageError};
use crate::{memory, output, progress, runtime};
use measure::{Group, Setting, Variant};
use report::Report;

const BATCHES: [usize; 6] = [1, 4, 8, 16, 32, 512];
const SPARSITIES: [f64; 3] = [0.5, 0.7, 0.8];
/// What a kernel computes in a second, for the bar only: its time left is then about right from the start.
const NOMINAL_FLOPS: f64 = 1e11;

/// Options of `bench --kernels`.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    /// Measure every kernel of the catalog that this CPU can run
    #[arg(long, conflicts_with_all = ["model", "shape", "prompt_tokens", "new_tokens", "depth"])]
    pub kernels: bool,
    /// Shapes for --kernels: N,K;N,K;.. or the name of a model's shape
    #[arg(
        long,
        value_name = "SHAPES",
        value_delimiter = ';',
        default_value = "llama3-8b",
        requires = "kernels",
        value_parser = shape_list
    )]
    shapes: Vec<ShapeList>,
    /// Only kernels with this in their name
    #[arg(long, value_name = "TEXT", requires = "kernels")]
    kernel: Option<String>,
    /// MiB of distinct weights that each kernel goes through in turn; 0 for one copy, which the caches may hold
    /// [default: 4 times the last-level caches, and 256 at least]
    #[arg(long, value_name = "MIB", requires = "kernels", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    stream: Option<u32>,
}

/// N and K of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    n: usize,
    k: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.n, self.k)
    }
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
pub fn run(args: &BenchArgs, common: Common) -> Result<()> {
    let threads = match args.thread_counts()[..] {
        [threads] => threads,
        _ => bail!(UsageError(
            "--kernels takes one number of threads".to_owned()
        )),
    };
    let format = args.format(common)?;
    if format == Format::Svg {
        bail!(UsageError(
            "--kernels is printed as a table, CSV or JSON: use -o md, csv or json".to_owned()
        ));
    }
    let plan = Plan::new(args, &Cpu::detect()?)?;
    plan.check_memory()?;
    // The loading threads start before this one is pinned: they would inherit the pin.
    runtime::loading_threads(Threads {
        threads: Some(threads),
    })?;
    let rt = runtime::start(threads, common)?;
    let report = plan.measure(&rt, common)?;
    match format {
        Format::Json => output::json(&report),
        Format::Md => output::text_out(&report.markdown()),
        Format::Csv => output::text_out(&report.csv()),
        Format::Svg => unreachable!("refused above"),
    }
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
    fn new(args: &BenchArgs, cpu: &Cpu) -> Result<Self> {
        let KernelArgs {
            shapes,
            kernel,
            stream,
            ..
        } = &args.kernel_args;
        let named = |spec: &KernelSpec| {
            let text = kernel.as_ref();
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
        let batches = match &args.batch[..] {
            [] => BATCHES.to_vec(),
            batches => batches.to_vec(),
        };
        Ok(Plan {
            shapes: shapes.iter().flat_map(|list| list.0.clone()).collect(),
            batches,
            kernels,
            stream_bytes: stream.map_or_else(uncached_bytes, |mib| (mib as usize) << 20),
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

impl BenchArgs {
    /// Weights to measure with: dense ones where 0 is among the sparsities, packed ones for each of the others.
    fn variants(&self) -> Vec<Variant> {
        let weights =
            |format| self.weights.is_empty() || self.weights.contains(&Weights::of(format));
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
