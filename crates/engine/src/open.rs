//! Opening a model: its files, its tokenizer, its weights, and which of the weights are expanded.

use std::path::Path;
use std::sync::Arc;

use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Group, LoadOptions, Model, ResidenceOptions};

use crate::{ChatTemplate, EngineError, SamplingDefaults, Tokenizer};

/// What is reported while a model is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Something is odd about the files, and no reason to refuse them.
    Warning(String),
    /// Something about the model that its user may want to know.
    Note(String),
    /// Weights are read. It begins with 0 of 0.
    Reading {
        /// Bytes of memory filled so far.
        done_bytes: u64,
        /// Bytes of memory there are to fill.
        total_bytes: u64,
    },
    /// Kernels are tried, to see which weights are faster expanded. It begins with 0 of 0.
    Trying {
        /// Weights decided so far.
        done: usize,
        /// Weights there are.
        total: usize,
    },
}

/// A model that is ready to run: threads, weights and text. A clone is the same model.
#[derive(Clone)]
pub struct Loaded {
    /// The threads.
    pub runtime: Arc<Runtime>,
    /// The weights.
    pub model: Arc<Model>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How the model wants its tokens chosen.
    pub defaults: SamplingDefaults,
    /// What became of its packed weights, by module.
    pub groups: Arc<[Group]>,
    /// How it wants a conversation written, where a [`Host`](crate::Host) opened it.
    pub template: Option<ChatTemplate>,
}

impl Loaded {
    /// Parts that were made one by one, without anything known of their files.
    pub fn new(runtime: Arc<Runtime>, model: Arc<Model>, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            runtime,
            model,
            tokenizer,
            defaults: SamplingDefaults::default(),
            groups: Arc::default(),
            template: None,
        }
    }

    /// Opens the model in a directory or GGUF file, and expands those weights that are faster so. Weights may take
    /// `memory_bytes` of memory, or a part of what is available.
    ///
    /// # Errors
    /// A file that cannot be used; a model that does not fit in memory.
    pub fn open(
        path: &Path,
        runtime: Arc<Runtime>,
        memory_bytes: Option<u64>,
        report: &mut dyn FnMut(Opening),
    ) -> Result<Self, EngineError> {
        let checkpoint = checkpoint(path, report)?;
        // Before the weights: it is smaller, and as often wrong.
        let tokenizer = tokenizer(&checkpoint, report)?;
        let defaults = SamplingDefaults::read(path)?;
        let mut model = weights(&runtime, &checkpoint, memory_bytes, report)?;
        let groups = settle(&mut model, &runtime, memory_bytes, report)?;
        Ok(Self {
            defaults,
            groups: groups.into(),
            ..Self::new(runtime, Arc::new(model), Arc::new(tokenizer))
        })
    }
}

/// Opens the files of a model.
///
/// # Errors
/// They cannot be used.
pub fn checkpoint(path: &Path, report: &mut dyn FnMut(Opening)) -> Result<Checkpoint, EngineError> {
    let checkpoint = Checkpoint::open(path)?;
    for note in checkpoint.notes() {
        report(Opening::Warning(format!("{}: {note}", path.display())));
    }
    Ok(checkpoint)
}

/// Reads the tokenizer of a model.
///
/// # Errors
/// As [`Tokenizer::from_dir`].
pub fn tokenizer(
    checkpoint: &Checkpoint,
    report: &mut dyn FnMut(Opening),
) -> Result<Tokenizer, EngineError> {
    let tokenizer = Tokenizer::from_dir(checkpoint.dir(), checkpoint.config().vocab_size)?;
    for warning in tokenizer.warnings() {
        report(Opening::Warning(warning.clone()));
    }
    Ok(tokenizer)
}

/// Reads the weights of a model into `memory_bytes` of memory at most; none: what is available.
///
/// # Errors
/// They cannot be used, or do not fit in memory.
pub fn weights(
    runtime: &Runtime,
    checkpoint: &Checkpoint,
    memory_bytes: Option<u64>,
    report: &mut dyn FnMut(Opening),
) -> Result<Model, EngineError> {
    report(Opening::Reading {
        done_bytes: 0,
        total_bytes: 0,
    });
    let options = LoadOptions {
        available_bytes: memory_bytes,
    };
    let model = Model::load(runtime, checkpoint, &options, &mut |progress| {
        report(Opening::Reading {
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
        });
    })?;
    if let Some((tensors, why)) = checkpoint.dequantized() {
        report(Opening::Note(format!(
            "{tensors} quantized tensors run in bf16, because int8 and int4 kernels have no {why}"
        )));
    }
    Ok(model)
}

/// Decides which packed weights are expanded, within `memory_bytes` of memory for all weights, and expands them.
///
/// # Errors
/// Memory or threads are refused.
pub fn settle(
    model: &mut Model,
    runtime: &Runtime,
    memory_bytes: Option<u64>,
    report: &mut dyn FnMut(Opening),
) -> Result<Vec<Group>, EngineError> {
    report(Opening::Trying { done: 0, total: 0 });
    let options = ResidenceOptions {
        memory_bytes,
        ..ResidenceOptions::default()
    };
    let groups = model.settle(runtime, options, &mut |done, total| {
        report(Opening::Trying { done, total });
    })?;
    Ok(groups)
}
