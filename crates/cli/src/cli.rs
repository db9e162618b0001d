//! The command line as a whole: the list of commands, how it is read, and what each of them starts.

use std::ffi::OsString;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::Common;
use crate::commands::{
    bench, bench_kernels, compress, doctor, eval, export, inspect, kv_report, perplexity, report,
    run, serve,
};
use crate::output;

const AFTER_HELP: &str = "\
Examples:
  sparamx run \"Once upon a time\"
  sparamx compress meta-llama/Llama-3.1-8B-Instruct -o llama-8b-50 --sparsity 0.5
  sparamx run llama-8b-50
  sparamx serve llama-8b-50
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
    /// Serve a model to programs: an HTTP server that speaks OpenAI's API
    Serve(Box<serve::ServeArgs>),
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
    /// Measure every kernel that this CPU can run, one matrix multiplication at a time
    BenchKernels(bench_kernels::BenchKernelsArgs),
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
        Cli::from_arg_matches(&command.try_get_matches_from(arguments())?)
    }

    /// Does what the command line says.
    ///
    /// # Errors
    /// Whatever stands in the way, as one line to be printed.
    pub fn run(self) -> Result<()> {
        let common = self.common;
        match self.command {
            Command::Run(args) => run::run(&args, common),
            Command::Serve(args) => serve::run(&args, common),
            Command::Compress(args) => compress::run(&args, common),
            Command::Export(args) => export::run(&args, common),
            Command::Perplexity(args) => perplexity::run(&args, common),
            Command::Eval(args) => eval::run(&args, common),
            Command::Report(args) => report::run(&args, common),
            Command::KvReport(args) => kv_report::run(&args, common),
            Command::Bench(args) => bench::run(&args, common),
            Command::BenchKernels(args) => bench_kernels::run(&args, common),
            Command::Inspect(args) => inspect::run(&args, common),
            Command::Doctor(args) => doctor::run(&args, common),
        }
    }
}

/// What the process was given. `bench --kernels` is another spelling of `bench-kernels`.
fn arguments() -> Vec<OsString> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let is_option = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    let command = args.iter().skip(1).position(|arg| !is_option(arg));
    let command = command.map_or(args.len(), |index| index + 1);
    let rest = args.iter().skip(command);
    let kernels = rest.clone().position(|arg| arg == "--kernels");
    if let (Some(first), Some(kernels)) = (rest.clone().next(), kernels)
        && first == "bench"
    {
        args.remove(command + kernels);
        args[command] = "bench-kernels".into();
    }
    args
}

/// One line out of what `clap` prints for a mistake: the message, its tip if there is one, and where help is.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("Usage: ").next().unwrap_or_default();
    let message = message
        .split("For more information")
        .next()
        .unwrap_or_default();
    let command = arguments()
        .into_iter()
        .skip(1)
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
