//! The results, for people and for programs.

use serde::Serialize;
use sparamx_cpu::topology;

use super::measure::{Bench, Setting};
use super::profile::Breakdown;
use super::stats::{from_cache, machine, median, median_ratio, share};
use crate::kv::KvSparsity;
use crate::output::Table;
use crate::units;

/// All results, as `--json` prints them.
#[derive(Serialize)]
pub struct Report {
    cpu: String,
    isa: String,
    /// The largest number of threads measured.
    threads: usize,
    /// With that many threads.
    read_bandwidth_gb_s: f64,
    /// In the order of the settings.
    pub rows: Vec<Row>,
    /// With `--profile`, in the order of the rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<Breakdown>,
}

/// One combination. Speeds are medians over the rounds.
#[derive(Serialize)]
pub struct Row {
    pub test: String,
    pub shape: String,
    weights: &'static str,
    sparsity: f64,
    /// Dtype of keys and values once they leave the window.
    kv_type: String,
    /// Share of zeros in them, keys and values together.
    kv_sparsity: f64,
    key_sparsity: f64,
    value_sparsity: f64,
    /// Speed over that with dense bf16 keys and values: the median of the rounds.
    over_dense_kv: f64,
    pub depth: usize,
    pub batch: usize,
    threads: usize,
    pub tokens_per_s: f64,
    /// The largest deviation of a round from the median.
    tokens_per_s_deviation: f64,
    /// Bytes of stored weights over the time of a forward pass.
    packed_gb_s: f64,
    read_bandwidth_gb_s: f64,
    bandwidth_share: f64,
    /// That share is more than memory can give.
    from_cache: bool,
    #[serde(skip)]
    weight_bytes: u64,
    #[serde(skip)]
    parameters: u64,
}

impl Report {
    /// Sums up what was measured.
    pub fn new(bench: &Bench) -> Self {
        let most = (0..bench.runtimes.len())
            .max_by_key(|&index| bench.runtimes[index].threads())
            .unwrap_or(0);
        let rows = bench
            .settings
            .iter()
            .zip(&bench.seconds)
            .map(|(setting, seconds)| Row::new(bench, setting, seconds));
        Report {
            cpu: topology::brand(),
            isa: bench.runtimes[most].cpu().isa().to_string(),
            threads: bench.runtimes[most].threads(),
            read_bandwidth_gb_s: median(&bench.bandwidth[most]),
            rows: rows.collect(),
            profile: Breakdown::of_all(bench),
        }
    }

    /// A line about the machine, and a Markdown table.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(&[
            "model",
            "weights",
            "sparsity",
            "size",
            "params",
            "threads",
            "batch",
            "kv cache",
            "test",
            "t/s",
            "over dense kv",
            "GB/s",
            "of bandwidth",
        ]);
        for row in &self.rows {
            table.row(vec![
                row.shape.clone(),
                row.weights.to_owned(),
                format!("{:.2}", row.sparsity),
                units::bytes(row.weight_bytes),
                format!("{:.2} B", row.parameters as f64 / 1e9),
                row.threads.to_string(),
                row.batch.to_string(),
                row.kv(),
                row.test_at_depth(),
                format!(
                    "{:.2} ± {:.2}",
                    row.tokens_per_s, row.tokens_per_s_deviation
                ),
                format!("{:.2}", row.over_dense_kv),
                format!("{:.2}", row.packed_gb_s),
                share(row.bandwidth_share),
            ]);
        }
        let profiles = self.profile.iter().zip(&self.rows);
        let profiles = profiles.map(|(profile, row)| profile.markdown(&row.title()));
        format!(
            "{}\n\n{}{}",
            self.machine(),
            table.markdown(),
            profiles.collect::<String>()
        )
    }

    /// What was measured on.
    pub fn machine(&self) -> String {
        machine(&self.cpu, &self.isa, self.threads, self.read_bandwidth_gb_s)
    }

    /// One line for each combination under a line of names.
    pub fn csv(&self) -> String {
        let mut table = Table::new(&[
            "cpu",
            "isa",
            "threads",
            "shape",
            "weights",
            "sparsity",
            "kv_type",
            "kv_sparsity",
            "over_dense_kv",
            "depth",
            "batch",
            "test",
            "tokens_per_s",
            "tokens_per_s_deviation",
            "packed_gb_s",
            "read_bandwidth_gb_s",
            "bandwidth_share",
            "from_cache",
        ]);
        for row in &self.rows {
            table.row(vec![
                self.cpu.clone(),
                self.isa.clone(),
                row.threads.to_string(),
                row.shape.clone(),
                row.weights.to_owned(),
                row.sparsity.to_string(),
                row.kv_type.clone(),
                row.kv_sparsity.to_string(),
                row.over_dense_kv.to_string(),
                row.depth.to_string(),
                row.batch.to_string(),
                row.test.clone(),
                row.tokens_per_s.to_string(),
                row.tokens_per_s_deviation.to_string(),
                row.packed_gb_s.to_string(),
                row.read_bandwidth_gb_s.to_string(),
                row.bandwidth_share.to_string(),
                row.from_cache.to_string(),
            ]);
        }
        table.csv()
    }
}

impl Row {
    fn new(bench: &Bench, setting: &Setting, seconds: &[f64]) -> Self {
        let (subject, kv) = (&bench.subjects[setting.subject], &bench.kvs[setting.kv]);
        let tokens = (setting.test.tokens() * setting.batch) as f64;
        let speeds: Vec<f64> = seconds.iter().map(|seconds| tokens / seconds).collect();
        let tokens_per_s = median(&speeds);
        let weight_bytes = subject.model.weight_bytes();
        let bytes = weight_bytes as f64 * setting.test.passes() as f64;
        let rates: Vec<f64> = seconds
            .iter()
            .map(|seconds| bytes / seconds * 1e-9)
            .collect();
        let bandwidth = &bench.bandwidth[setting.runtime];
        let bandwidth_share = median_ratio(&rates, bandwidth);
        Row {
            test: setting.test.name(),
            shape: subject.shape.clone(),
            weights: subject.weights,
            sparsity: subject.sparsity,
            kv_type: kv.precision.to_string(),
            kv_sparsity: kv.sparsity.mean(),
            key_sparsity: kv.sparsity.keys,
            value_sparsity: kv.sparsity.values,
            over_dense_kv: median_ratio(bench.seconds_with_dense_kv(setting), seconds),
            depth: setting.depth,
            batch: setting.batch,
            threads: bench.runtimes[setting.runtime].threads(),
            tokens_per_s,
            tokens_per_s_deviation: speeds
                .iter()
                .map(|speed| (speed - tokens_per_s).abs())
                .fold(0.0, f64::max),
            packed_gb_s: median(&rates),
            read_bandwidth_gb_s: median(bandwidth),
            bandwidth_share,
            from_cache: from_cache(bandwidth_share),
            weight_bytes,
            parameters: subject.parameters,
        }
    }

    /// What is measured, in a line.
    fn title(&self) -> String {
        format!(
            "{}, {}, {} at sparsity {:.2}, kv cache {}, batch {}, {} threads",
            self.test_at_depth(),
            self.shape,
            self.weights,
            self.sparsity,
            self.kv(),
            self.batch,
            self.threads
        )
    }

    /// What it is apart from depth, and from batch if that varies.
    pub fn series(&self, by_batch: bool) -> String {
        let zeros = match self.sparsity {
            0.0 => "dense".to_owned(),
            sparsity => format!("{:.0} %", 100.0 * sparsity),
        };
        let batch = match (by_batch, self.batch) {
            (true, _) | (false, 1) => String::new(),
            (false, batch) => format!(", batch {batch}"),
        };
        format!("{} {zeros}, kv {}{batch}", self.weights, self.kv())
    }

    /// `bf16`, or `int8 0.3:0.5`.
    fn kv(&self) -> String {
        let sparsity = KvSparsity {
            keys: self.key_sparsity,
            values: self.value_sparsity,
        };
        match self.kv_sparsity {
            0.0 => self.kv_type.clone(),
            _ => format!("{} {sparsity}", self.kv_type),
        }
    }

    /// `tg128`, or `tg128 @ d4096` as llama-bench writes it.
    fn test_at_depth(&self) -> String {
        match self.depth {
            0 => self.test.clone(),
            depth => format!("{} @ d{depth}", self.test),
        }
    }
}
