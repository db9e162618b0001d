//! `sparamx inspect`: the tensors of a model, or the kernels there are.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparamx_cpu::Cpu;
use sparamx_cpu::topology::available_memory_bytes;
use sparamx_format::WeightFormat;
use sparamx_kernels::catalog::{self, KernelSpec};
use sparamx_model::plan::{Role, TensorPlan};
use sparamx_model::{Checkpoint, Encoding, Group, Model, TensorInfo};

use crate::args::{Common, Memory, Threads};
use crate::kernels::Choice;
use crate::output::Table;
use crate::{kernels, loading, output, progress, runtime, source, units};

/// Rows of activations that stand for a long prompt.
const MANY_ROWS: usize = 512;

/// Options of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx inspect models/stories-5m-50
  sparamx inspect llama-8b-50 --json
  sparamx inspect --kernels")]
pub struct InspectArgs {
    /// Directory, GGUF file or hub id
    #[arg(
        value_name = "MODEL",
        required_unless_present = "kernels",
        conflicts_with = "kernels"
    )]
    model: Option<String>,
    /// List all kernels, and which of them this CPU can run
    #[arg(long)]
    kernels: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    memory: Memory,
}

/// Prints the list.
///
/// # Errors
/// The model cannot be read, `SPARAMX_ISA` cannot be obeyed, or standard output cannot be written.
pub fn run(args: &InspectArgs, common: Common) -> Result<()> {
    let cpu = runtime::cpu()?;
    match &args.model {
        Some(model) => {
            runtime::loading_threads(args.threads)?;
            let directory = source::resolve(model, common)?;
            let checkpoint = loading::open(&directory, common)?;
            let mut listing = Listing::of_model(&directory, &checkpoint, &cpu, common)?;
            listing.plan = plan(&checkpoint, args, common)?;
            listing.print(common)
        }
        None => Catalog::new(&cpu).print(common),
    }
}

/// What loading would do with each kind of packed weight: measured on this CPU, with the memory allowed. Nothing for a model
/// that does not fit in it.
fn plan(checkpoint: &Checkpoint, args: &InspectArgs, common: Common) -> Result<Vec<PlanLine>> {
    let needed = Model::required_bytes(checkpoint);
    let available = args.memory.memory_bytes.or_else(available_memory_bytes);
    let packed = checkpoint
        .tensors()
        .any(|tensor| tensor.packed.is_some_and(WeightFormat::is_sparse));
    if !packed {
        return Ok(Vec::new());
    }
    if available.is_some_and(|available| needed > available) {
        output::complain(&format!(
            "no plan: to load this model takes {} of memory",
            units::bytes(needed)
        ));
        return Ok(Vec::new());
    }
    let runtime = runtime::start(args.threads.count(), common)?;
    let mut model = loading::weights(&runtime, checkpoint, args.memory, common)?;
    let groups = loading::settle(&mut model, &runtime, args.memory, common)?;
    Ok(groups.iter().map(PlanLine::new).collect())
}

/// A line of the plan, as `--json` prints it.
#[derive(Serialize)]
struct PlanLine {
    module: &'static str,
    shape: [usize; 2],
    tensors: usize,
    packed: String,
    packed_bytes: u64,
    packed_us: f64,
    expanded: String,
    expanded_bytes: u64,
    expanded_us: f64,
    expanded_tensors: usize,
    reason: &'static str,
}

impl PlanLine {
    fn new(group: &Group) -> Self {
        PlanLine {
            module: group.module,
            shape: group.shape,
            tensors: group.tensors,
            packed: group.packed.to_string(),
            packed_bytes: group.packed_bytes,
            packed_us: group.packed_us,
            expanded: group.dense.to_string(),
            expanded_bytes: group.dense_bytes,
            expanded_us: group.dense_us,
            expanded_tensors: group.expanded,
            reason: group.reason(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let side =
            |format: &str, bytes, us: f64| format!("{format}, {}, {us:.0} us", units::bytes(bytes));
        let choice = match self.expanded_tensors {
            0 => "packed".to_owned(),
            all if all == self.tensors => "expanded".to_owned(),
            some => format!("{some} expanded"),
        };
        vec![
            format!("{} x {}", self.tensors, self.module),
            format!("{} x {}", self.shape[0], self.shape[1]),
            side(&self.packed, self.packed_bytes, self.packed_us),
            side(&self.expanded, self.expanded_bytes, self.expanded_us),
            choice,
            self.reason.to_owned(),
        ]
    }
}

/// A model's tensors, as `--json` prints them.
#[derive(Serialize)]
struct Listing {
    model: String,
    architecture: String,
    tensors: Vec<TensorLine>,
    totals: Totals,
    /// Quantized tensors that linear layers have in bf16, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    dequantized: Option<(usize, &'static str)>,
    plan: Vec<PlanLine>,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    format: &'static str,
    #[serde(skip)]
    packed: bool,
    sparsity: f64,
    bytes_dense: u64,
    bytes_packed: u64,
    /// For one row of activations, as in decode; none for what is not multiplied with.
    kernel_m1: Option<&'static str>,
    /// For many rows, as in prefill.
    kernel_large_m: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Totals {
    tensors: usize,
    packed_tensors: usize,
    parameters: u64,
    /// Share of zeros in what is packed.
    sparsity_of_packed: f64,
    sparsity: f64,
    bytes_dense: u64,
    bytes_packed: u64,
}

impl Listing {
    fn of_model(
        directory: &Path,
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        common: Common,
    ) -> Result<Listing> {
        let total_bytes = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
        let bar = progress::byte_bar(common, total_bytes, "counting zeros");
        let tied = checkpoint.config().tie_word_embeddings;
        let mut tensors = Vec::new();
        let mut totals = Totals::default();
        let mut zeros = [0u64; 2];
        let mut packed_elements = 0;
        for (plan, info) in checkpoint.plan().iter().zip(checkpoint.tensors()) {
            let zero = plan.elements() - checkpoint.nnz(&info.name)? as u64;
            bar.inc(info.bytes);
            zeros[0] += zero;
            if info.packed.is_some_and(WeightFormat::is_sparse) {
                zeros[1] += zero;
                packed_elements += plan.elements();
            }
            let multiplied = plan.role.may_be_packed() || (tied && plan.role == Role::Embedding);
            let line = TensorLine::new(plan, info, zero, multiplied.then_some(cpu));
            totals.add(plan, &line);
            tensors.push(line);
        }
        bar.finish_and_clear();
        totals.sparsity = share(zeros[0], totals.parameters);
        totals.sparsity_of_packed = share(zeros[1], packed_elements);
        Ok(Listing {
            model: directory.display().to_string(),
            architecture: format!("{:?}", checkpoint.config().arch).to_lowercase(),
            tensors,
            totals,
            dequantized: checkpoint.dequantized(),
            plan: Vec::new(),
        })
    }

    fn print(&self, common: Common) -> Result<()> {
        if common.json {
            return output::json(self);
        }
        let mut table = Table::new(&[
            "tensor",
            "shape",
            "format",
            "sparsity",
            "dense",
            "stored",
            "kernel, M = 1",
            "kernel, large M",
        ]);
        for tensor in &self.tensors {
            table.row(tensor.cells());
        }
        let totals = &self.totals;
        let summary = format!(
            "\n{} parameters in {} tensors, {} of them packed ({} zeros); {} dense, {} stored ({})\n",
            units::count(totals.parameters),
            totals.tensors,
            totals.packed_tensors,
            units::percent(totals.sparsity_of_packed),
            units::bytes(totals.bytes_dense),
            units::bytes(totals.bytes_packed),
            units::percent(totals.bytes_packed as f64 / totals.bytes_dense.max(1) as f64),
        );
        let hint = match &self.dequantized {
            Some((tensors, why)) => format!("{tensors} quantized tensors run in bf16: {why}\n"),
            None if totals.packed_tensors == 0 && totals.sparsity >= MANY_ZEROS => format!(
                "{} of all weights are zeros and none are packed: sparamx compress MODEL -o DIR --sparsity 0 packs them as they are\n",
                units::percent(totals.sparsity)
            ),
            None => String::new(),
        };
        output::text_out(&(table.aligned() + &summary + &hint + &self.plan_text()))
    }

    fn plan_text(&self) -> String {
        if self.plan.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&[
            "when loaded",
            "shape",
            "packed, one token",
            "expanded, one token",
            "kept",
            "because",
        ]);
        for line in &self.plan {
            table.row(line.cells());
        }
        format!("\n{}", table.aligned())
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl Totals {
    fn add(&mut self, plan: &TensorPlan, line: &TensorLine) {
        self.tensors += 1;
        self.packed_tensors += usize::from(line.packed);
        self.parameters += plan.elements();
        self.bytes_dense += line.bytes_dense;
        self.bytes_packed += line.bytes_packed;
    }
}

/// A model with this share of zeros, none of them packed, would gain by packing.
const MANY_ZEROS: f64 = 0.1;

impl TensorLine {
    /// The line of a tensor; `multiplied` is the CPU if there are kernels for it.
    fn new(plan: &TensorPlan, info: TensorInfo, zeros: u64, multiplied: Option<&Cpu>) -> Self {
        let format = info.weight_format();
        let kernel = |m| multiplied.map(|cpu| catalog::select(cpu.features(), format, m).name);
        TensorLine {
            name: info.name,
            shape: info.shape,
            dtype: info.dtype,
            format: info.encoding.name(),
            packed: info.packed.is_some_and(WeightFormat::is_sparse),
            sparsity: share(zeros, plan.elements()),
            // What a packed or quantized one would take as bf16.
            bytes_dense: if info.packed.is_some() || info.encoding != Encoding::Dense {
                plan.elements() * 2
            } else {
                info.bytes
            },
            bytes_packed: info.bytes,
            kernel_m1: kernel(1),
            kernel_large_m: kernel(MANY_ROWS),
        }
    }

    fn cells(&self) -> Vec<String> {
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        let kernel = |name: Option<&'static str>| name.unwrap_or("-").to_owned();
        vec![
            self.name.clone(),
            shape.join(" x "),
            format!("{} {}", self.format, self.dtype.to_lowercase()),
            units::percent(self.sparsity),
            units::bytes(self.bytes_dense),
            units::bytes(self.bytes_packed),
            kernel(self.kernel_m1),
            kernel(self.kernel_large_m),
        ]
    }
}

/// All kernels, as `--json` prints them.
#[derive(Serialize)]
struct Catalog {
    isa: String,
    features: Vec<&'static str>,
    kernels: Vec<KernelLine>,
    /// What this CPU uses, for every format of weights and number of rows.
    choices: Vec<Choice>,
}

#[derive(Serialize)]
struct KernelLine {
    name: &'static str,
    isa: String,
    features: Vec<&'static str>,
    weight: String,
    activation: String,
    mr: usize,
    nr: usize,
    best_m: String,
    reason: &'static str,
    runnable: bool,
    missing: Option<String>,
}

impl Catalog {
    fn new(cpu: &Cpu) -> Self {
        Catalog {
            isa: cpu.isa().to_string(),
            features: cpu.features().names(),
            kernels: catalog::catalog()
                .iter()
                .map(|spec| KernelLine::new(spec, cpu))
                .collect(),
            choices: kernels::choices(cpu.features()),
        }
    }

    fn print(&self, common: Common) -> Result<()> {
        if common.json {
            return output::json(self);
        }
        let mut table = Table::new(&[
            "kernel",
            "weights",
            "activations",
            "best M",
            "runs here",
            "how it works",
        ]);
        for kernel in &self.kernels {
            let runs = kernel
                .missing
                .as_ref()
                .map_or_else(|| "yes".to_owned(), |missing| format!("no: {missing}"));
            table.row(vec![
                kernel.name.to_owned(),
                kernel.weight.clone(),
                kernel.activation.clone(),
                kernel.best_m.clone(),
                runs,
                kernel.reason.to_owned(),
            ]);
        }
        let mut choices = Table::new(&["weights here", "M", "kernel", "because it"]);
        for choice in &self.choices {
            choices.row(vec![
                choice.weight.clone(),
                choice.rows.clone(),
                choice.kernel.to_owned(),
                choice.reason.to_owned(),
            ]);
        }
        output::text_out(&format!("{}\n{}", table.aligned(), choices.aligned()))
    }
}

impl KernelLine {
    fn new(spec: &'static KernelSpec, cpu: &Cpu) -> Self {
        let missing = spec.on(cpu).is_err().then(|| why_not(spec, cpu));
        KernelLine {
            name: spec.name,
            isa: spec.isa.to_string(),
            features: spec.features.names(),
            weight: spec.weight.to_string(),
            activation: format!("{:?}", spec.activation).to_lowercase(),
            mr: spec.mr,
            nr: spec.nr,
            best_m: kernels::span(&spec.best_m),
            reason: spec.reason,
            runnable: missing.is_none(),
            missing,
        }
    }
}

/// What keeps a kernel from running here, in a few words.
fn why_not(spec: &KernelSpec, cpu: &Cpu) -> String {
    let report = cpu.report();
    let lacks = report.missing(spec.isa);
    match report.limit {
        _ if !lacks.is_empty() => format!("lacks {}", lacks.join(", ")),
        Some(limit) if limit < spec.isa => format!("SPARAMX_ISA={limit}"),
        _ => format!("lacks {}", spec.features),
    }
}
