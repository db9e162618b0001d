//! `sparamx doctor`: what this CPU and this process may use, and which kernels will run.

use std::fmt::Write;
use std::fs;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparamx_cpu::topology::{self, CacheKind};
use sparamx_cpu::{AmxState, Isa, Report};

use crate::args::{Common, Threads};
use crate::kernels::Choice;
use crate::{kernels, output, runtime, units};

/// The variables that change what the program does.
const VARIABLES: [&str; 9] = [
    "SPARAMX_ISA",
    "SPARAMX_KERNEL",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "NO_COLOR",
];

/// Variables whose value is not to be shown.
const SECRET: &str = "HF_TOKEN";

/// Options of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx doctor
  sparamx doctor --json
  SPARAMX_ISA=avx2 sparamx doctor")]
pub struct DoctorArgs {
    #[command(flatten)]
    threads: Threads,
}

/// Everything that is reported, as `--json` prints it.
#[derive(Serialize)]
struct Findings {
    cpu: String,
    vendor: String,
    isa: String,
    isa_reason: String,
    features: Vec<&'static str>,
    amx: String,
    caches: Vec<CacheLine>,
    cores: Cores,
    numa_nodes: Vec<NodeLine>,
    memory_available_bytes: Option<u64>,
    huge_pages: Option<String>,
    kernels: Vec<Choice>,
    environment: Vec<Variable>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct CacheLine {
    level: u32,
    kind: &'static str,
    bytes: usize,
    line_bytes: usize,
    shared_by: usize,
}

#[derive(Serialize)]
struct Cores {
    threads: usize,
    default_threads: usize,
    allowed_cpus: Vec<usize>,
    cgroup_cpu_quota: Option<f64>,
}

#[derive(Serialize)]
struct NodeLine {
    id: usize,
    cpus: Vec<usize>,
}

#[derive(Serialize)]
struct Variable {
    name: &'static str,
    value: String,
}

/// Prints the report.
///
/// # Errors
/// `SPARAMX_ISA` cannot be obeyed, or standard output cannot be written.
pub fn run(args: &DoctorArgs, common: Common) -> Result<()> {
    let cpu = runtime::cpu()?;
    let findings = examine(cpu.report(), args.threads.count());
    if common.json {
        output::json(&findings)
    } else {
        output::text_out(&findings.text())
    }
}

fn examine(report: &Report, threads: usize) -> Findings {
    let mut findings = Findings {
        cpu: topology::brand(),
        vendor: report.vendor.clone(),
        isa: report.isa.to_string(),
        isa_reason: isa_reason(report),
        features: report.features.names(),
        amx: report.amx.to_string(),
        caches: caches(report),
        cores: Cores {
            threads,
            default_threads: topology::default_threads(),
            allowed_cpus: topology::allowed_cpus(),
            cgroup_cpu_quota: topology::cgroup_cpu_quota(),
        },
        numa_nodes: nodes(),
        memory_available_bytes: topology::available_memory_bytes(),
        huge_pages: huge_pages(),
        kernels: kernels::choices(report.features),
        environment: environment(),
        warnings: Vec::new(),
    };
    findings.warnings = warnings(report, &findings);
    findings
}

/// Why the level is this one and not the next.
fn isa_reason(report: &Report) -> String {
    if let Some(limit) = report.limit {
        return format!("SPARAMX_ISA={limit} allows no more");
    }
    match Isa::ALL.into_iter().find(|&isa| isa > report.isa) {
        None => "the highest there is".to_owned(),
        Some(next) => format!("{next} needs {}", report.missing(next).join(", ")),
    }
}

fn caches(report: &Report) -> Vec<CacheLine> {
    let kind = |kind| match kind {
        CacheKind::Data => "data",
        CacheKind::Instruction => "instruction",
        CacheKind::Unified => "unified",
    };
    let line = |cache: &topology::Cache| CacheLine {
        level: cache.level,
        kind: kind(cache.kind),
        bytes: cache.bytes,
        line_bytes: cache.line_bytes,
        shared_by: cache.shared_by,
    };
    report.caches.iter().map(line).collect()
}

fn nodes() -> Vec<NodeLine> {
    let nodes = topology::numa_nodes().into_iter();
    nodes
        .map(|node| NodeLine {
            id: node.id,
            cpus: node.cpus,
        })
        .collect()
}

/// The setting of transparent huge pages in force: `always`, `madvise` or `never`.
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    let (setting, _) = rest.split_once(']')?;
    Some(setting.to_owned())
}

fn environment() -> Vec<Variable> {
    let variable = |name: &'static str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        let value = if name == SECRET {
            "(set)".to_owned()
        } else {
            value.to_string_lossy().into_owned()
        };
        Some(Variable { name, value })
    };
    VARIABLES.into_iter().filter_map(variable).collect()
}

fn warnings(report: &Report, findings: &Findings) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(limit) = report.limit {
        warnings.push(format!(
            "SPARAMX_ISA={limit} keeps faster kernels from running; unset it"
        ));
    }
    match report.amx {
        AmxState::Ready | AmxState::NotInCpu | AmxState::Limited => {}
        state => warnings.push(format!("AMX is not used: {state}")),
    }
    if report.limit.is_none() && report.isa == Isa::Portable {
        warnings.push(
            "no vector instructions that we have kernels for: expect slow generation".to_owned(),
        );
    }
    let cores = &findings.cores;
    if let Some(quota) = cores.cgroup_cpu_quota
        && quota < cores.threads as f64
    {
        warnings.push(format!(
            "{} threads share the {quota} CPUs of the control group and will be stopped now and then; raise its quota \
             or lower --threads",
            cores.threads
        ));
    }
    if cores.threads > cores.allowed_cpus.len() {
        warnings.push(format!(
            "{} threads on {} CPUs wait for each other; lower --threads",
            cores.threads,
            cores.allowed_cpus.len()
        ));
    }
    if findings.numa_nodes.len() > 1 {
        warnings.push(format!(
            "{} memory nodes: reading from a far one is slower; keep the process on one (numactl -N 0 -m 0) where the \
             model fits there",
            findings.numa_nodes.len()
        ));
    }
    if findings.huge_pages.as_deref() == Some("never") {
        warnings.push(
            "huge pages are off: large models read slower; set /sys/kernel/mm/transparent_hugepage/enabled to madvise"
                .to_owned(),
        );
    }
    if cfg!(debug_assertions) {
        warnings.push("this is a debug build: use --release".to_owned());
    }
    warnings
}

impl Findings {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("cpu", self.cpu.clone());
        line("level", format!("{} ({})", self.isa, self.isa_reason));
        line("features", self.features.join(" "));
        line("amx", self.amx.clone());
        line("caches", join(self.caches.iter().map(CacheLine::text)));
        line("cores", self.cores.text());
        line("numa", join(self.numa_nodes.iter().map(NodeLine::text)));
        let memory = self
            .memory_available_bytes
            .map_or_else(|| "unknown".to_owned(), units::bytes);
        line("memory", format!("{memory} available"));
        line(
            "huge pages",
            self.huge_pages
                .clone()
                .unwrap_or_else(|| "unknown".to_owned()),
        );
        for choice in &self.kernels {
            line(
                "kernel",
                format!(
                    "{:<11}  M {:<5}  {}",
                    choice.weight, choice.rows, choice.kernel
                ),
            );
        }
        for variable in &self.environment {
            line(
                "environment",
                format!("{}={}", variable.name, variable.value),
            );
        }
        for warning in &self.warnings {
            line("warning", warning.clone());
        }
        text
    }
}

impl CacheLine {
    fn text(&self) -> String {
        let shared = match self.shared_by {
            0 | 1 => String::new(),
            cpus => format!(" for {cpus} CPUs"),
        };
        format!(
            "L{} {} {}{shared}",
            self.level,
            self.kind,
            units::bytes(self.bytes as u64)
        )
    }
}

impl Cores {
    fn text(&self) -> String {
        let quota = self.cgroup_cpu_quota.map_or_else(
            || "no quota".to_owned(),
            |cpus| format!("quota of {cpus} CPUs"),
        );
        format!(
            "{} threads (default {}), {} CPUs allowed ({}), {quota}",
            self.threads,
            self.default_threads,
            self.allowed_cpus.len(),
            ranges(&self.allowed_cpus)
        )
    }
}

impl NodeLine {
    fn text(&self) -> String {
        format!("node {}: CPUs {}", self.id, ranges(&self.cpus))
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "unknown".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Ascending numbers as Linux writes them: `0-3,8`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|left, right| left + 1 == *right);
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        _ => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use sparamx_cpu::{Os, evaluate};

    use super::*;

    /// A CPU with every flag there is, under a kernel that permits no tiles.
    struct Refusing;

    impl Os for Refusing {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
            match (leaf, subleaf) {
                (0, _) => [0x20, 0, 0, 0],
                (7, 0) => [1, u32::MAX, u32::MAX, u32::MAX],
                (0x8000_0000, _) => [0x8000_0001, 0, 0, 0],
                (1 | 0x8000_0001, _) | (7, 1) => [u32::MAX; 4],
                _ => [0; 4],
            }
        }

        fn xcr0(&self) -> u64 {
            u64::MAX
        }

        fn is_linux(&self) -> bool {
            true
        }

        fn request_permission(&self, _: u32) -> Result<(), i32> {
            Err(1)
        }

        fn permitted_components(&self) -> Result<u64, i32> {
            Ok(0)
        }
    }

    #[test]
    fn a_refused_permission_is_said_with_the_kernels_that_run_instead() {
        let findings = examine(&evaluate(&Refusing, None), 1);
        assert_eq!(findings.isa, "avx512");
        for choice in &findings.kernels {
            assert!(choice.kernel.contains("_avx512"), "{}", choice.kernel);
        }
        let text = findings.text();
        for line in [
            "amx needs permission",
            "AMX is not used",
            "the kernel refused the permission",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn numbers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(ranges(&[5]), "5");
        assert_eq!(ranges(&[]), "");
    }
}
