//! Errors of single layers, method beside method on the same inputs.

use std::ops::ControlFlow;

use half::bf16;
use sparamx_model::plan::TensorPlan;
use sparamx_model::{Checkpoint, DecoderLayer, DecoderWorkspace};

use crate::calibrated::Stream;
use crate::layer::{self, LayerSpec, Moments};
use crate::{Calibration, CompressError};

/// Errors of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerErrors {
    /// Its name.
    pub tensor: String,
    /// [`layer::Outcome::error`] by each spec.
    pub errors: Vec<f64>,
}

/// Compresses every linear layer of the decoder by itself in each of several ways, on the inputs that it has in the dense
/// model, so that errors differ by the way alone; nothing is written. `progress` gets the decoder layers done and in all.
///
/// # Errors
/// [`CompressError::AlreadyPacked`]; [`CompressError::NeedsCalibration`] without windows; tensors that cannot be read or solved;
/// [`CompressError::Interrupted`] at the word of `progress`.
pub fn layer_errors(
    checkpoint: &Checkpoint,
    calibration: &Calibration<'_>,
    specs: &[LayerSpec],
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Vec<LayerErrors>, CompressError> {
    if checkpoint.config().packed.is_some() {
        return Err(CompressError::AlreadyPacked {
            dir: checkpoint.dir().to_owned(),
        });
    }
    if calibration.windows.iter().all(Vec::is_empty) {
        return Err(CompressError::NeedsCalibration {
            what: "a comparison of layers",
        });
    }
    let mut stream = Stream::new(checkpoint, calibration.windows)?;
    let mut workspace = DecoderWorkspace::new(checkpoint.config());
    let layers = checkpoint.config().num_hidden_layers;
    let mut all = Vec::new();
    for index in 0..layers {
        let layer = DecoderLayer::load(checkpoint, index)?;
        for (input, modules) in layer.inputs() {
            let reads = |tensor: &&TensorPlan| {
                let module = tensor.module();
                tensor.layer() == Some(index)
                    && module.is_some_and(|module| modules.contains(&module))
            };
            let mut moments: Option<Moments> = None;
            for window in &mut stream.0 {
                let rows = layer.input(calibration.runtime, input, window, &mut workspace)?;
                let moments = moments.get_or_insert_with(|| Moments::new(rows.cols(), false));
                // Rows may be strided; moments are fastest of many rows at once.
                let rows = (0..rows.rows()).map(|i| rows.row(i));
                moments.add(&rows.collect::<Vec<_>>().concat(), None);
            }
            for tensor in checkpoint.plan().iter().filter(reads) {
                all.push(LayerErrors {
                    tensor: tensor.name.clone(),
                    errors: errors(checkpoint, tensor, moments.as_ref(), specs)?,
                });
            }
        }
        for window in &mut stream.0 {
            layer.forward(calibration.runtime, window, &mut workspace)?;
        }
        if progress(index + 1, layers).is_break() {
            return Err(CompressError::Interrupted { kept: None });
        }
    }
    Ok(all)
}

fn errors(
    checkpoint: &Checkpoint,
    tensor: &TensorPlan,
    moments: Option<&Moments>,
    specs: &[LayerSpec],
) -> Result<Vec<f64>, CompressError> {
    let rows = checkpoint.raw_rows(&tensor.name)?;
    let value = |&bits: &u16| bf16::from_bits(bits).to_f32();
    let weights: Vec<f32> = rows.bits.iter().map(value).collect();
    let error = |spec: &LayerSpec| {
        let solved = layer::solve(&weights, rows.n, rows.k, moments, spec);
        solved
            .map(|outcome| outcome.error)
            .map_err(|error| error.in_tensor(&tensor.name))
    };
    specs.iter().map(error).collect()
}
