//! The command line as a whole: the commands, and what they have in common.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    bench, compress, doctor, eval, export, inspect, kv_report, perplexity, report, run,
};
use crate::{output, units};

const AFTER_HELP: &str = "\
Examples:
  sparamx run \"Once upon a time\"
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-50 --sparsity 0.5
  sparamx run llama-8b-50
  sparamx bench --shape llama3-8b --sparsity 0,0.5
  sparamx doctor

MODEL is a directory in Hugging Face layout, a GGUF file or a hub id (org/name, or org/name@revision).
Sizes are in KiB, MiB and GiB, powers of 1024, and so are 800M and 12G in options; bandwidths are in GB/s, 10^9 bytes a second.
Environment: SPARAMX_ISA (portable, avx2, avx512, amx), HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE, NO_COLOR.";

/// Run language models with sparse weights on x86-64 CPUs.
#[derive(Debug, Parser)]
#[command(name = "sparamx", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What all commands take.
    #[command(flatten)]
    pub common: Common,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text and stream it to standard output
    Run(run::RunArgs),
    /// Prune a model and write it packed: bitmap and non-zero values
    Compress(compress::CompressArgs),
    /// Write a model in a form that other programs read
    Export(export::ExportArgs),
    /// Measure how well a model predicts texts
    Perplexity(perplexity::PerplexityArgs),
    /// Measure how many multiple-choice questions a model gets right
    Eval(eval::EvalArgs),
    /// Measure how much quality is left at how many bytes, by method
    Report(report::ReportArgs),
    /// Measure how much quality a sparse KV cache leaves, by sparsity and bytes
    KvReport(kv_report::KvReportArgs),
    /// Measure prefill and decode speed beside the memory bandwidth
    Bench(bench::BenchArgs),
    /// List the tensors of a model, or the kernels there are
    Inspect(inspect::InspectArgs),
    /// Say what this CPU and this process may use, and which kernels will run
    Doctor(doctor::DoctorArgs),
}

impl Cli {
    /// Reads the command line. A negative number is a value, so that the option it was meant for says what it takes.
    ///
    /// # Errors
    /// What `clap` has to say: wrong usage, or help that was asked for.
    pub fn read() -> Result<Self, clap::Error> {
        let command = Cli::command().mut_subcommands(|command| {
            command.mut_args(|arg| {
                let takes_values = arg.get_action().takes_values();
                arg.allow_negative_numbers(takes_values)
            })
        });
        Cli::from_arg_matches(&command.try_get_matches()?)
    }
}

/// What all commands take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Common {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// How many threads compute.
#[derive(Clone, Copy, Debug, Args)]
pub struct Threads {
    /// Threads [default: the physical cores this process may use]
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<usize>,
}

impl Threads {
    /// The number asked for, or the default of this machine.
    pub fn count(self) -> usize {
        self.threads
            .unwrap_or_else(sparamx_cpu::topology::default_threads)
    }
}

/// How much memory weights may take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Memory {
    /// Memory for weights, such as 12G: packed ones that are faster expanded are expanded as far as it goes
    /// [default: 70 % of what is available]
    #[arg(long = "memory", value_name = "SIZE", value_parser = units::parse_bytes)]
    pub memory_bytes: Option<u64>,
}

/// More threads than any machine we know of has is a slip of the finger.
pub const MAX_THREADS: usize = 1024;

fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("a whole number from 1 to {MAX_THREADS} is needed")),
    }
}

/// Reads a whole number that is not negative.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    text.parse().map_err(|_| match digits {
        true => "the number is too large".to_owned(),
        false => "a whole number of at least 0 is needed".to_owned(),
    })
}

/// Reads a fraction of zeros: at least 0 and below 1.
pub fn sparsity(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("the fraction of zeros is needed: at least 0 and below 1, such as 0.5".to_owned()),
    }
}

/// Wrong usage that only showed after parsing; ends with exit status 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// One line out of what `clap` prints for a mistake in `args`: the message, its tip if there is one, and where help is.
pub fn usage_line(error: &clap::Error, args: impl Iterator<Item = OsString>) -> String {
    let text = error.to_string();
    let message = text.split("Usage: ").next().unwrap_or_default();
    let message = message
        .split("For more information")
        .next()
        .unwrap_or_default();
    let command = args
        .filter_map(|arg| arg.into_string().ok())
        .find(|arg| Cli::command().find_subcommand(arg).is_some());
    let command = command.map(|name| format!(" {name}")).unwrap_or_default();
    let message = output::shortened(&output::one_line(message));
    format!("{message} (see: sparamx{command} --help)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_of_a_command_are_one() {
        for command in Cli::command().get_subcommands() {
            let mut ids: Vec<_> = command.get_arguments().map(|arg| arg.get_id()).collect();
            let count = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), count, "{}", command.get_name());
        }
    }
}
