//! The `sparamx` command: run, compress, measure and inspect sparse language models on the CPU.
//!
//! Standard output carries results only; progress, logs and errors go to standard error. The exit status is 0; 2 for
//! wrong usage; 130, 143 and 129 after Ctrl-C, SIGTERM and SIGHUP; 1 for anything else. One line on standard error says what,
//! where and what to do.
#![forbid(unsafe_code)]

mod advice;
mod args;
mod calibration;
mod chart;
mod cli;
mod commands;
mod hub;
mod interrupt;
mod kernels;
mod kv;
mod loading;
mod memory;
mod output;
mod panics;
mod progress;
mod runtime;
mod sampling;
mod source;
mod terminal;
mod texts;
mod units;

use std::process::ExitCode;

use crate::cli::Cli;

/// Exit status of a failure that is not one of usage.
const FAILURE: u8 = 1;
/// Exit status of wrong usage.
const USAGE: u8 = 2;
/// Exit status of a panic, as Rust has it.
const PANIC: u8 = 101;

fn main() -> ExitCode {
    panics::quiet();
    panics::caught(run).unwrap_or_else(|panic| {
        output::complain(&format!(
            "error: a fault of sparamx at {}; please report it with the command that led to it",
            output::shortened(&output::one_line(&panic))
        ));
        ExitCode::from(PANIC)
    })
}

fn run() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match interrupt::install().and_then(|()| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {}", output::describe(&error)));
            let usage = error.downcast_ref::<args::UsageError>().is_some();
            let failure = interrupt::status().unwrap_or(FAILURE);
            ExitCode::from(if usage { USAGE } else { failure })
        }
    }
}

/// Prints what `clap` has to say: help and version as they are, an error of usage as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => {
                output::complain(&format!("error: {}: {error}", output::CANNOT_WRITE));
                ExitCode::from(FAILURE)
            }
        };
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::complain(&error.to_string());
    } else {
        output::complain(&cli::usage_line(error));
    }
    ExitCode::from(USAGE)
}
