//! The results, for people and for programs.

use serde::Serialize;
use sparamx_cpu::topology;
use sparamx_kernels::Runtime;
use sparamx_kernels::catalog::select;

use super::measure::{Entry, Group, Skipped};
use crate::commands::bench::stats::{from_cache, machine, median, median_ratio, share};
use crate::output::Table;

/// All results, as `--json` prints them.
#[derive(Serialize)]
pub struct Report {
    cpu: String,
    isa: String,
    threads: usize,
    read_bandwidth_gb_s: f64,
    kernels: Vec<Row>,
    skipped: Vec<Skipped>,
    #[serde(skip)]
    bandwidth: Vec<f64>,
}

/// One kernel on one kind of weights, one shape and one batch.
#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    isa: String,
    weights: &'static str,
    sparsity: f64,
    n: usize,
    k: usize,
    m: usize,
    /// Median of the rounds.
    us: f64,
    us_min: f64,
    us_max: f64,
    packed_gb_s: f64,
    /// Median over the rounds of the rate over the bandwidth of the same round.
    bandwidth_share: f64,
    /// That share is more than memory can give.
    from_cache: bool,
    gflop_s: f64,
    /// How many times faster than the dense kernel with the same instructions and weights, in the same rounds.
    over_dense: Option<f64>,
    /// It is the one that a model would use.
    selected: bool,
}

impl Report {
    /// An empty one.
    pub fn new(rt: &Runtime) -> Self {
        Report {
            cpu: topology::brand(),
            isa: rt.cpu().isa().to_string(),
            threads: rt.threads(),
            read_bandwidth_gb_s: 0.0,
            kernels: Vec::new(),
            skipped: Vec::new(),
            bandwidth: Vec::new(),
        }
    }

    /// Records a kernel that was left out.
    pub fn skip(&mut self, skipped: Skipped) {
        self.skipped.push(skipped);
    }

    /// Sums up the rounds of a shape and batch.
    pub fn add(&mut self, rt: &Runtime, group: &Group<'_>) {
        let rows = group.entries.iter().map(|entry| Row::new(rt, group, entry));
        self.kernels.extend(rows);
        self.bandwidth.extend_from_slice(&group.bandwidth);
        self.read_bandwidth_gb_s = median(&self.bandwidth);
    }

    /// A line about the machine, and a Markdown table.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(&[
            "kernel",
            "weights",
            "sparsity",
            "N",
            "K",
            "M",
            "us",
            "spread",
            "GB/s",
            "of bandwidth",
            "GFLOP/s",
            "over dense",
            "chosen",
        ]);
        for row in &self.kernels {
            table.row(vec![
                row.kernel.to_owned(),
                row.weights.to_owned(),
                format!("{:.2}", row.sparsity),
                row.n.to_string(),
                row.k.to_string(),
                row.m.to_string(),
                figure(row.us),
                format!("{}-{}", figure(row.us_min), figure(row.us_max)),
                format!("{:.2}", row.packed_gb_s),
                share(row.bandwidth_share),
                format!("{:.1}", row.gflop_s),
                row.over_dense
                    .map_or_else(|| "-".to_owned(), |times| format!("{times:.2}")),
                if row.selected { "yes" } else { "" }.to_owned(),
            ]);
        }
        let machine = machine(&self.cpu, &self.isa, self.threads, self.read_bandwidth_gb_s);
        format!("{machine}\n\n{}", table.markdown())
    }

    /// One line for each row under a line of names.
    pub fn csv(&self) -> String {
        let mut table = Table::new(&[
            "cpu",
            "threads",
            "read_bandwidth_gb_s",
            "kernel",
            "isa",
            "weights",
            "sparsity",
            "n",
            "k",
            "m",
            "us",
            "us_min",
            "us_max",
            "packed_gb_s",
            "bandwidth_share",
            "gflop_s",
            "over_dense",
            "selected",
            "from_cache",
        ]);
        for row in &self.kernels {
            table.row(vec![
                self.cpu.clone(),
                self.threads.to_string(),
                self.read_bandwidth_gb_s.to_string(),
                row.kernel.to_owned(),
                row.isa.clone(),
                row.weights.to_owned(),
                row.sparsity.to_string(),
                row.n.to_string(),
                row.k.to_string(),
                row.m.to_string(),
                row.us.to_string(),
                row.us_min.to_string(),
                row.us_max.to_string(),
                row.packed_gb_s.to_string(),
                row.bandwidth_share.to_string(),
                row.gflop_s.to_string(),
                row.over_dense
                    .map_or_else(String::new, |times| times.to_string()),
                row.selected.to_string(),
                row.from_cache.to_string(),
            ]);
        }
        table.csv()
    }
}

impl Row {
    fn new(rt: &Runtime, group: &Group<'_>, entry: &Entry) -> Self {
        let set = &group.sets[entry.set];
        let (format, setting) = (set.variant.format, group.setting);
        let seconds = median(&entry.seconds);
        let rates: Vec<f64> = entry
            .seconds
            .iter()
            .map(|seconds| set.bytes() / seconds * 1e-9)
            .collect();
        let bandwidth_share = median_ratio(&rates, &group.bandwidth);
        let dense = dense(group, entry).map(|dense| median_ratio(&dense.seconds, &entry.seconds));
        let chosen = select(rt.cpu().features(), format, setting.m);
        Row {
            kernel: entry.spec.name,
            isa: entry.spec.isa.to_string(),
            weights: format.element().name(),
            sparsity: set.variant.sparsity,
            n: setting.shape.n,
            k: setting.shape.k,
            m: setting.m,
            us: seconds * 1e6,
            us_min: entry.seconds.iter().copied().fold(f64::INFINITY, f64::min) * 1e6,
            us_max: entry.seconds.iter().copied().fold(0.0, f64::max) * 1e6,
            packed_gb_s: median(&rates),
            bandwidth_share,
            from_cache: from_cache(bandwidth_share),
            gflop_s: setting.flops() / seconds * 1e-9,
            over_dense: dense,
            selected: chosen.name == entry.spec.name,
        }
    }
}

/// The fastest kernel for dense weights with the same elements, instructions and activations; none for a dense one itself.
fn dense<'a>(group: &'a Group<'_>, entry: &Entry) -> Option<&'a Entry> {
    let kind = |entry: &Entry| {
        let format = group.sets[entry.set].variant.format;
        (format.element(), entry.spec.isa, entry.spec.activation)
    };
    if !group.sets[entry.set].variant.format.is_sparse() {
        return None;
    }
    group
        .entries
        .iter()
        .filter(|other| {
            !group.sets[other.set].variant.format.is_sparse() && kind(other) == kind(entry)
        })
        .min_by(|a, b| median(&a.seconds).total_cmp(&median(&b.seconds)))
}

/// Microseconds with three digits or so.
fn figure(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}
