//! How far the work is.

use std::ops::ControlFlow;

use sparamx_model::Checkpoint;
use sparamx_model::plan::TensorPlan;

use crate::CompressError;
use crate::layer::Note;

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What was just done.
    pub step: Step<'a>,
    /// The decoder layer at work, counted from 0; none before and after them.
    pub layer: Option<usize>,
    /// Decoder layers of the model.
    pub layers: usize,
    /// Bytes of the input that are done.
    pub done_bytes: u64,
    /// Bytes of the input.
    pub total_bytes: u64,
}

/// A step of the work.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A window of the calibration text went through the layer.
    Calibrating {
        /// The window, counted from 1.
        window: usize,
        /// Number of windows.
        windows: usize,
    },
    /// A tensor is done.
    Tensor {
        /// Its name.
        name: &'a str,
        /// The error of its output, where calibration measures it: see [`crate::layer::Outcome::error`].
        error: Option<f64>,
        /// What a user should know about it.
        note: Option<Note>,
    },
    /// A part of the model was found done by an earlier process.
    Resumed,
    /// A part that an earlier process wrote is not what it was, and is made again.
    Damaged {
        /// The part, counted from 1.
        part: usize,
        /// Parts of the model.
        parts: usize,
    },
}

/// Counts, and calls the caller back.
pub(crate) struct Reporter<'a> {
    progress: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    pub layer: Option<usize>,
    layers: usize,
    done_bytes: u64,
    total_bytes: u64,
    /// Weights of the unit at work that were rounded to bf16 as they were read.
    pub rounded: u64,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        progress: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Self {
        Reporter {
            progress,
            layer: None,
            layers: checkpoint.config().num_hidden_layers,
            done_bytes: 0,
            total_bytes: checkpoint.tensors().map(|tensor| tensor.bytes).sum(),
            rounded: 0,
        }
    }

    /// # Errors
    /// [`CompressError::Interrupted`] at the word of the caller.
    pub(crate) fn step(&mut self, step: Step<'_>) -> Result<(), CompressError> {
        let progress = Progress {
            step,
            layer: self.layer,
            layers: self.layers,
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
        };
        match (self.progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CompressError::Interrupted { kept: None }),
        }
    }

    /// A tensor is done.
    ///
    /// # Errors
    /// [`CompressError::Interrupted`] at the word of the caller.
    pub(crate) fn tensor(
        &mut self,
        bytes: u64,
        tensor: &TensorPlan,
        error: Option<f64>,
        note: Option<Note>,
    ) -> Result<(), CompressError> {
        self.done_bytes += bytes;
        let name = &tensor.name;
        self.step(Step::Tensor { name, error, note })
    }

    /// A unit was done before.
    ///
    /// # Errors
    /// [`CompressError::Interrupted`] at the word of the caller.
    pub(crate) fn resumed(&mut self, bytes: u64) -> Result<(), CompressError> {
        self.done_bytes += bytes;
        self.step(Step::Resumed)
    }
}
