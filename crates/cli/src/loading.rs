//! A model, its tokenizer, and the threads that run it.

use std::path::Path;

use anyhow::Result;
use sparamx_engine::Tokenizer;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Group, LoadOptions, Model, ResidenceOptions};

use crate::args::{Common, Memory, Threads};
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

/// The same, of whoever owns it.
#[derive(Clone, Copy)]
pub struct Ready<'a> {
    /// The threads.
    pub runtime: &'a Runtime,
    /// The weights.
    pub model: &'a Model,
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
}

impl Loaded {
    /// A view of it.
    pub fn ready(&self) -> Ready<'_> {
        Ready {
            runtime: &self.runtime,
            model: &self.model,
            tokenizer: &self.tokenizer,
        }
    }
}

/// Loads the model in a directory, and expands those weights that are faster so.
///
/// # Errors
/// The checkpoint or the tokenizer cannot be used, or the model does not fit in memory.
pub fn load(directory: &Path, threads: Threads, memory: Memory, common: Common) -> Result<Loaded> {
    let runtime = runtime::start(threads.count(), common)?;
    let checkpoint = open(directory, common)?;
    // Before the weights: it is the smaller one, and as often wrong.
    let tokenizer = tokenizer(&checkpoint, common)?;
    let mut model = weights(&runtime, &checkpoint, memory, common)?;
    let groups = settle(&mut model, &runtime, memory, common)?;
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
        let expanded = |group: &&Group| group.expanded > 0;
        for group in groups.iter().filter(expanded) {
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
    Ok(Loaded {
        runtime,
        model,
        tokenizer,
    })
}

/// Opens a model, and says what is odd about its files.
///
/// # Errors
/// The files cannot be used.
pub fn open(directory: &Path, common: Common) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(directory)?;
    if !common.quiet {
        for note in checkpoint.notes() {
            output::complain(&format!("warning: {}: {note}", directory.display()));
        }
    }
    Ok(checkpoint)
}

/// Reads the tokenizer of a model, and says what is odd about it.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn tokenizer(checkpoint: &Checkpoint, common: Common) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_dir(checkpoint.dir(), checkpoint.config().vocab_size)?;
    for warning in tokenizer.warnings().iter().filter(|_| !common.quiet) {
        output::complain(&format!("warning: {warning}"));
    }
    Ok(tokenizer)
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
    let bar = progress::byte_bar(common, 0, "loading");
    let options = LoadOptions {
        available_bytes: memory.memory_bytes,
    };
    let model = Model::load(runtime, checkpoint, &options, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    })?;
    bar.finish_and_clear();
    if let Some((tensors, why)) = checkpoint.dequantized().filter(|_| !common.quiet) {
        output::complain(&format!(
            "note: {tensors} quantized tensors run in bf16, because int8 and int4 kernels have no {why}"
        ));
    }
    Ok(model)
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
    let bar = progress::count_bar(common, 0, "steps", "trying kernels");
    let options = ResidenceOptions {
        memory_bytes: memory.memory_bytes,
        ..ResidenceOptions::default()
    };
    let groups = model.settle(runtime, options, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(groups)
}
