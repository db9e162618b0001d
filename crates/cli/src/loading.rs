//! A model, its tokenizer, and the threads that run it.

use std::path::Path;

use anyhow::Result;
use sparamx_engine::Tokenizer;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, LoadOptions, Model};

use crate::cli::{Common, Threads};
use crate::{output, progress, runtime, units};

/// Everything that text goes through.
pub struct Loaded {
    /// The threads.
    pub runtime: Runtime,
    /// The weights.
    pub model: Model,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
}

/// Loads the model in a directory.
///
/// # Errors
/// The checkpoint or the tokenizer cannot be used, or the model does not fit in memory.
pub fn load(directory: &Path, threads: Threads, common: Common) -> Result<Loaded> {
    let runtime = runtime::start(threads.count(), common)?;
    let checkpoint = Checkpoint::open(directory)?;
    // Before the weights: it is the smaller one, and as often wrong.
    let tokenizer = Tokenizer::from_dir(directory, checkpoint.config().vocab_size)?;
    let bar = progress::byte_bar(common, 0, "loading");
    let model = Model::load(
        &runtime,
        &checkpoint,
        &LoadOptions::default(),
        &mut |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        },
    )?;
    bar.finish_and_clear();
    runtime.pin_caller();
    if common.verbose {
        let inexact = model.inexact();
        output::complain(&format!(
            "{}: {} of weights, {} of {} values rounded to bf16; {} threads, {}",
            directory.display(),
            units::bytes(model.weight_bytes()),
            units::count(inexact.rounded),
            units::count(inexact.values),
            runtime.threads(),
            runtime.cpu().isa()
        ));
    }
    Ok(Loaded {
        runtime,
        model,
        tokenizer,
    })
}
