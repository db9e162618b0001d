//! One file per command.

pub mod bench;
pub mod compress;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod inspect;
pub mod kv_report;
pub mod perplexity;
pub mod report;
pub mod run;

use anyhow::Result;

use crate::cli::{Cli, Command};

/// Does what the command line says.
///
/// # Errors
/// Whatever stands in the way, as one line to be printed.
pub fn dispatch(cli: Cli) -> Result<()> {
    let common = cli.common;
    match cli.command {
        Command::Run(args) => run::run(&args, common),
        Command::Compress(args) => compress::run(&args, common),
        Command::Export(args) => export::run(&args, common),
        Command::Perplexity(args) => perplexity::run(&args, common),
        Command::Eval(args) => eval::run(&args, common),
        Command::Report(args) => report::run(&args, common),
        Command::KvReport(args) => kv_report::run(&args, common),
        Command::Bench(args) => bench::run(&args, common),
        Command::Inspect(args) => inspect::run(&args, common),
        Command::Doctor(args) => doctor::run(&args, common),
    }
}
