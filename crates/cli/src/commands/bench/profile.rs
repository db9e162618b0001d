//! Where the time of a forward pass goes: `--profile`.

use std::time::Duration;

use serde::Serialize;
use sparamx_model::{Op, Spent};

use super::measure::{Bench, Passes};
use crate::output::Table;
use crate::units;

/// A forward pass of one combination, the choice of tokens after it included; means over all passes of all rounds.
#[derive(Serialize)]
pub struct Breakdown {
    test: String,
    shape: String,
    weights: &'static str,
    sparsity: f64,
    depth: usize,
    batch: usize,
    threads: usize,
    us: f64,
    /// Of the time, in linear layers and attention.
    kernel_share: f64,
    ops: Vec<Line>,
}

/// One operation in a pass.
#[derive(Serialize)]
struct Line {
    op: &'static str,
    calls: f64,
    us: f64,
    share: f64,
    /// Read and written; none for what is not accounted for.
    bytes: Option<f64>,
    gb_s: Option<f64>,
}

impl Breakdown {
    /// Of all combinations; empty if none was profiled.
    pub fn of_all(bench: &Bench) -> Vec<Breakdown> {
        let settings = bench.settings.iter().zip(&bench.passes);
        settings
            .filter(|(_, rounds)| !rounds.is_empty())
            .map(|(setting, rounds)| {
                let subject = &bench.subjects[setting.subject];
                let ops = lines(rounds);
                let kernels = Op::ALL.into_iter().filter(|op| op.is_kernel());
                let kernels: Vec<&str> = kernels.map(Op::name).collect();
                let share = |line: &Line| {
                    if kernels.contains(&line.op) {
                        line.share
                    } else {
                        0.0
                    }
                };
                Breakdown {
                    test: setting.test.name(),
                    shape: subject.shape.clone(),
                    weights: subject.weights,
                    sparsity: subject.sparsity,
                    depth: setting.depth,
                    batch: setting.batch,
                    threads: bench.runtimes[setting.runtime].threads(),
                    us: ops.iter().map(|line| line.us).sum(),
                    kernel_share: ops.iter().map(share).sum(),
                    ops,
                }
            })
            .collect()
    }

    /// A line under `title`, and a table.
    pub fn markdown(&self, title: &str) -> String {
        let mut table = Table::new(&["operation", "calls", "us", "share", "bytes", "GB/s"]);
        for line in &self.ops {
            table.row(vec![
                line.op.to_owned(),
                format!("{:.0}", line.calls),
                format!("{:.1}", line.us),
                units::percent(line.share),
                line.bytes
                    .map_or_else(|| "-".to_owned(), |bytes| units::bytes(bytes as u64)),
                line.gb_s
                    .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}")),
            ]);
        }
        format!(
            "\n{title}: {:.2} ms a forward pass, {} of it in linear layers and attention\n\n{}",
            self.us * 1e-3,
            units::percent(self.kernel_share),
            table.markdown()
        )
    }
}

/// The operations of a pass, then the choice of tokens, then what is left of the time.
fn lines(rounds: &[Passes]) -> Vec<Line> {
    let passes = rounds.iter().map(|round| round.sampling.calls).sum::<u64>() as f64;
    let whole = rounds
        .iter()
        .map(|round| round.time)
        .sum::<Duration>()
        .as_secs_f64();
    let line = |op, spent: Spent| {
        let seconds = spent.time.as_secs_f64();
        Line {
            op,
            calls: spent.calls as f64 / passes,
            us: seconds / passes * 1e6,
            share: seconds / whole,
            bytes: Some(spent.bytes as f64 / passes),
            gb_s: (seconds > 0.0).then(|| spent.bytes as f64 / seconds * 1e-9),
        }
    };
    let of_op = |op: Op| line(op.name(), sum(rounds, |round| round.profile.of(op)));
    let sampling = line("sampling", sum(rounds, |round| round.sampling));
    let mut lines: Vec<Line> = Op::ALL.into_iter().map(of_op).chain([sampling]).collect();
    let accounted: f64 = lines.iter().map(|line| line.share).sum();
    lines.push(Line {
        op: "other",
        calls: 1.0,
        us: (1.0 - accounted) * whole / passes * 1e6,
        share: 1.0 - accounted,
        bytes: None,
        gb_s: None,
    });
    lines
}

fn sum(rounds: &[Passes], of: impl Fn(&Passes) -> Spent) -> Spent {
    rounds.iter().map(of).fold(Spent::default(), |a, b| Spent {
        calls: a.calls + b.calls,
        time: a.time + b.time,
        bytes: a.bytes + b.bytes,
    })
}
