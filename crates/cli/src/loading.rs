//! Opening models, with what the engine reports on the terminal.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use indicatif::ProgressBar;
use sparamx_engine::{Loaded, Opening, Tokenizer, open as opening};
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Group, Model};

use crate::args::{Common, Memory, Threads};
use crate::{output, progress, runtime, units};

/// Loads the model in a directory, and expands those weights that are faster expanded. The calling thread is to compute.
///
/// # Errors
/// The checkpoint or the tokenizer cannot be used, or the model does not fit in memory.
pub fn load(directory: &Path, threads: Threads, memory: Memory, common: Common) -> Result<Loaded> {
    let runtime = runtime::start(threads.count(), common)?;
    // What is measured of a text is the same whatever is measured beside it, and the same as by `serve`.
    let runtime = Arc::new(runtime.batch_invariant(true));
    let loaded = Loaded::open(directory, runtime, memory.memory_bytes, &mut report(common))?;
    loaded.runtime.pin_caller();
    details(directory, &loaded, common);
    Ok(loaded)
}

/// With `--verbose`: what a model takes, and what became of its packed weights.
pub fn details(directory: &Path, loaded: &Loaded, common: Common) {
    if !common.verbose {
        return;
    }
    let inexact = loaded.model.inexact();
    output::complain(&format!(
        "{}: {} of weights, {} of {} values rounded to bf16; {} threads, {}",
        directory.display(),
        units::bytes(loaded.model.weight_bytes()),
        units::count(inexact.rounded),
        units::count(inexact.values),
        loaded.runtime.threads(),
        loaded.runtime.cpu().isa()
    ));
    for group in loaded.groups.iter().filter(|group| group.expanded > 0) {
        output::complain(&format!(
            "{}: {} of {} expanded to {}, {:.0} instead of {:.0} us each",
            group.module,
            group.expanded,
            group.tensors,
            group.dense,
            group.dense_us,
            group.packed_us
        ));
    }
}

/// Opens a model, and says what is odd about its files.
///
/// # Errors
/// The files cannot be used.
pub fn open(directory: &Path, common: Common) -> Result<Checkpoint> {
    Ok(opening::checkpoint(directory, &mut report(common))?)
}

/// Reads the tokenizer of a model, and says what is odd about it.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn tokenizer(checkpoint: &Checkpoint, common: Common) -> Result<Tokenizer> {
    Ok(opening::tokenizer(checkpoint, &mut report(common))?)
}

/// Reads the weights, with a bar.
///
/// # Errors
/// They cannot be used, or do not fit in memory.
pub fn weights(
    runtime: &Runtime,
    checkpoint: &Checkpoint,
    memory: Memory,
    common: Common,
) -> Result<Model> {
    let bytes = memory.memory_bytes;
    Ok(opening::weights(
        runtime,
        checkpoint,
        bytes,
        &mut report(common),
    )?)
}

/// Decides which packed weights are expanded, with a bar, and expands them.
///
/// # Errors
/// Memory or threads are refused.
pub fn settle(
    model: &mut Model,
    runtime: &Runtime,
    memory: Memory,
    common: Common,
) -> Result<Vec<Group>> {
    let bytes = memory.memory_bytes;
    Ok(opening::settle(model, runtime, bytes, &mut report(common))?)
}

/// Shows on standard error what is reported while a model is opened: bars and lines.
pub fn report(common: Common) -> impl FnMut(Opening) {
    let mut bar = Bar(None);
    move |report| match report {
        Opening::Warning(text) => line(common, "warning", &text),
        Opening::Note(text) => {
            bar = Bar(None);
            line(common, "note", &text);
        }
        Opening::Reading {
            done_bytes,
            total_bytes,
        } => bar.advance(done_bytes, total_bytes, || {
            progress::byte_bar(common, 0, "loading")
        }),
        Opening::Trying { done, total } => bar.advance(done as u64, total as u64, || {
            progress::count_bar(common, 0, "steps", "trying kernels")
        }),
    }
}

fn line(common: Common, kind: &str, text: &str) {
    if !common.quiet {
        output::complain(&format!("{kind}: {text}"));
    }
}

/// The bar of the present stage, gone when the stage is over.
struct Bar(Option<ProgressBar>);

impl Bar {
    /// Shows how far a stage is. One that begins, with 0 of 0, gets the bar that `new` makes.
    fn advance(&mut self, done: u64, total: u64, new: impl Fn() -> ProgressBar) {
        if (done, total) == (0, 0) {
            *self = Self(None);
            self.0 = Some(new());
        }
        if let Some(bar) = self.0.as_ref().filter(|_| total > 0) {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
