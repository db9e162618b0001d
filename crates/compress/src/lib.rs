//! Prunes, quantizes and packs checkpoints, and writes them in forms that other programs read.
//!
//! [`compress`] reads a dense checkpoint layer by layer, sets weights to zero, refits and rounds the others where that is asked for,
//! packs what gains by it, and writes a folder of the same layout that the model crate opens like any other. What is done to
//! one linear layer is in [`layer`]; everything around it is here. [`export()`] writes what others read.
//!
//! Without calibration a tensor is read, pruned by magnitude and written, so that memory holds one decoder layer of the
//! output. With it, see [`Calibration`], memory also holds the layer itself, the second moments of its inputs and the hidden
//! states of the text.

#![forbid(unsafe_code)]

mod calibrated;
mod compact;
mod compare;
mod error;
mod export;
mod files;
mod job;
pub mod layer;
mod options;
mod output;
mod owl;
mod progress;
mod prune;
pub mod quantize;
mod report;
mod select;
mod staging;
mod state;

use std::ops::ControlFlow;
use std::path::Path;

use sparamx_model::Checkpoint;

pub use calibrated::Calibration;
pub use compact::smallest;
pub use compare::{LayerErrors, layer_errors};
pub use error::{CompressError, Kept};
pub use export::{ExportFormat, ExportReport, export};
pub use options::{Allocation, Method, Options, Pattern, Rounding, Scope};
pub use progress::{Progress, Step};
pub use prune::{clear_negative_zeros, prune, zeros_for};
pub use report::{Counts, Report, SolvedTensor, Totals};
pub use staging::check_output;

/// Writes the checkpoint pruned, quantized and packed to the folder `output`, which appears when it is complete. `progress` may end
/// the work early. `calibration` is read if the options need it. Runs on rayon's current pool and the calibration's threads;
/// their number changes no byte of the output.
///
/// # Errors
/// Before anything is read: [`CompressError::AlreadyPacked`], [`CompressError::NeedsCalibration`], [`CompressError::Sparsity`],
/// [`CompressError::Pattern`], [`CompressError::Allocation`], [`CompressError::UnknownName`], [`CompressError::OutputExists`],
/// [`CompressError::Busy`], [`CompressError::Unfinished`], [`CompressError::Changed`].
///
/// [`CompressError::Interrupted`] at the word of `progress`, and [`CompressError::DiskFull`]: they say what is kept for
/// [`Options::resume`], if some part of the model was finished. After any other error, which keeps the input from being read or
/// solved or the output from being written, nothing is left.
pub fn compress(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report, CompressError> {
    job::run(checkpoint, output, options, calibration, progress)
}
