//! Compression by what goes through the model on calibration text, one decoder layer after the other.
//!
//! Two streams of hidden states go from layer to layer: `pruned` through the layers as they are written, and `dense` through
//! those of the checkpoint, where a reconstruction needs it. In a layer, the linear layers are solved in the order in which they
//! are run, each on the inputs that it has when those before it are compressed. The targets are the outputs of the dense model.
//!
//! In memory are one layer, the moments of one input of it, and the streams: `4 * hidden_size` bytes for each token and stream.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use rayon::prelude::*;
use sparamx_format::Weight;
use sparamx_format::container::TensorFile;
use sparamx_kernels::{Rows, Runtime};
use sparamx_model::plan::{Role, TensorPlan};
use sparamx_model::{Checkpoint, DecoderLayer, DecoderWorkspace, ModelError, head_input};

use crate::compact::{Compact, Content};
use crate::layer::{self, LayerSpec, Moments, Note, Pattern};
use crate::progress::{Reporter, Step};
use crate::{CompressError, Options, Rounding};

/// Rows that moments are added up from at a time: enough for products of matrices.
const ROWS: usize = 512;

/// Text to compress by, and what runs it through the model.
pub struct Calibration<'a> {
    /// The kernels and threads that run the layers.
    pub runtime: &'a Runtime,
    /// Token ids, at least one window of at least one; each window is a text of its own.
    pub windows: &'a [Vec<u32>],
    /// Where the text is from, for `config.json`.
    pub source: String,
}

/// A tensor to compress: its index in the plan, and its pattern.
pub(crate) type Target = (usize, Pattern);

/// A compressed tensor.
pub(crate) struct Solution {
    pub content: Content<'static>,
    pub error: f64,
    pub note: Option<Note>,
}

/// Hidden states on their way through the model.
pub(crate) struct Calibrator<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    rt: &'a Runtime,
    /// Bytes of each tensor of the plan in the input.
    bytes: Vec<u64>,
    pruned: Stream,
    dense: Option<Stream>,
    ws: DecoderWorkspace,
}

impl<'a> Calibrator<'a> {
    /// Looks up the embeddings of the calibration text.
    ///
    /// # Errors
    /// [`CompressError::Model`] for a damaged embedding or a token that the model does not have.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        options: &'a Options,
        calibration: &'a Calibration<'a>,
    ) -> Result<Self, CompressError> {
        let pruned = Stream::new(checkpoint, calibration.windows)?;
        Ok(Calibrator {
            checkpoint,
            options,
            rt: calibration.runtime,
            bytes: checkpoint.tensors().map(|tensor| tensor.bytes).collect(),
            dense: options.reconstruct.then(|| pruned.clone()),
            pruned,
            ws: DecoderWorkspace::new(checkpoint.config()),
        })
    }

    /// Solves the targets of a decoder layer and takes the streams through it.
    ///
    /// # Errors
    /// [`CompressError`] if tensors cannot be read or solved; [`CompressError::Interrupted`].
    pub(crate) fn layer(
        &mut self,
        index: usize,
        targets: &[Target],
        reporter: &mut Reporter<'_>,
    ) -> Result<BTreeMap<usize, Solution>, CompressError> {
        let dense = DecoderLayer::load(self.checkpoint, index)?;
        let (mut pruned, mut solutions) = (dense.clone(), BTreeMap::new());
        let plan = self.checkpoint.plan();
        for (input, modules) in dense.inputs() {
            let reads = |&&(tensor, _): &&Target| {
                plan[tensor].module().is_some_and(|m| modules.contains(&m))
            };
            let readers: Vec<&Target> = targets.iter().filter(reads).collect();
            let Some(&&(first, _)) = readers.first() else {
                continue;
            };
            let mut moments = self.new_moments(&plan[first]);
            self.each_window(reporter, |rt, x, d, ws| {
                moments.add(pruned.input(rt, input, x, ws)?);
                if let Some(d) = d {
                    moments.add_dense(dense.input(rt, input, d, ws)?);
                }
                Ok(())
            })?;
            let moments = moments.finish();
            for &&target in &readers {
                let solution = self.solve(target, &moments, reporter)?;
                let [n, k] = matrix(&plan[target.0]);
                let module = plan[target.0].module().expect("it is in a layer");
                pruned.set_weight(module, solution.content.weight(n, k)?);
                solutions.insert(target.0, solution);
            }
        }
        self.advance(&pruned, &dense, reporter)?;
        Ok(solutions)
    }

    /// Solves the output head, behind the last layer.
    ///
    /// # Errors
    /// As [`Calibrator::layer`].
    pub(crate) fn head(
        &mut self,
        target: Target,
        reporter: &mut Reporter<'_>,
    ) -> Result<Solution, CompressError> {
        let checkpoint = self.checkpoint;
        let mut moments = self.new_moments(&checkpoint.plan()[target.0]);
        let mut normed = Vec::new();
        self.each_window(reporter, |rt, x, d, _| {
            let mut add = |moments: &mut Accumulator, x: &[f32], dense| {
                normed.resize(x.len(), 0.0);
                head_input(rt, checkpoint, x, &mut normed)?;
                let width = checkpoint.config().hidden_size;
                let rows = Rows::new(&normed, x.len() / width, width);
                if dense {
                    moments.add_dense(rows);
                } else {
                    moments.add(rows);
                }
                Ok::<_, ModelError>(())
            };
            add(&mut moments, x, false)?;
            d.map_or(Ok(()), |d| add(&mut moments, d, true))
        })?;
        self.solve(target, &moments.finish(), reporter)
    }

    /// Takes the streams through a layer that is in `file` already.
    ///
    /// # Errors
    /// [`CompressError`] if it cannot be read; [`CompressError::Interrupted`].
    pub(crate) fn replay(
        &mut self,
        index: usize,
        targets: &[Target],
        file: &Path,
        reporter: &mut Reporter<'_>,
    ) -> Result<(), CompressError> {
        let dense = DecoderLayer::load(self.checkpoint, index)?;
        let (mut pruned, file) = (dense.clone(), TensorFile::open(file)?);
        for &(tensor, _) in targets {
            let tensor = &self.checkpoint.plan()[tensor];
            let [n, k] = matrix(tensor);
            let module = tensor.module().expect("it is in a layer");
            pruned.set_weight(module, Weight::read(&file, &tensor.name, n, k)?);
        }
        self.advance(&pruned, &dense, reporter)
    }

    fn solve(
        &self,
        (index, pattern): Target,
        moments: &Moments,
        reporter: &mut Reporter<'_>,
    ) -> Result<Solution, CompressError> {
        let tensor = &self.checkpoint.plan()[index];
        let rows = self.checkpoint.raw_rows(&tensor.name)?;
        reporter.rounded += rows.inexact as u64;
        let (n, k) = (rows.n, rows.k);
        let values = |&bits| bf16::from_bits(bits).to_f32();
        let weights: Vec<f32> = rows.bits.par_iter().map(values).collect();
        drop(rows);
        self.checkpoint.release(&tensor.name);
        let options = self.options;
        let spec = LayerSpec {
            method: options.method,
            pattern,
            scope: options.scope,
            precision: options.precision,
            rtn: options.rounding == Rounding::Nearest,
            reconstruct: options.reconstruct,
        };
        let outcome = layer::solve(&weights, n, k, Some(moments), &spec)
            .map_err(|error| error.in_tensor(&tensor.name))?;
        drop(weights);
        reporter.tensor(self.bytes[index], tensor, Some(outcome.error), outcome.note)?;
        Ok(Solution {
            content: Compact::solved(outcome.rows, n, k)
                .map_err(|error| error.in_tensor(&tensor.name))?,
            error: outcome.error,
            note: outcome.note,
        })
    }

    fn advance(
        &mut self,
        pruned: &DecoderLayer,
        dense: &DecoderLayer,
        reporter: &mut Reporter<'_>,
    ) -> Result<(), CompressError> {
        self.each_window(reporter, |rt, x, d, ws| {
            pruned.forward(rt, x, ws)?;
            d.map_or(Ok(()), |d| dense.forward(rt, d, ws))
        })
    }

    /// Calls `work` with the hidden states of each window in both streams.
    fn each_window(
        &mut self,
        reporter: &mut Reporter<'_>,
        mut work: impl FnMut(
            &Runtime,
            &mut [f32],
            Option<&mut [f32]>,
            &mut DecoderWorkspace,
        ) -> Result<(), ModelError>,
    ) -> Result<(), CompressError> {
        let windows = self.pruned.0.len();
        for window in 0..windows {
            let dense = self.dense.as_mut().map(|dense| &mut dense.0[window][..]);
            work(self.rt, &mut self.pruned.0[window], dense, &mut self.ws)?;
            reporter.step(Step::Calibrating {
                window: window + 1,
                windows,
            })?;
        }
        Ok(())
    }

    fn new_moments(&self, tensor: &TensorPlan) -> Accumulator {
        let [_, k] = matrix(tensor);
        Accumulator {
            moments: Moments::new(k, self.dense.is_some()),
            x: Vec::new(),
            dense: self.dense.is_some().then(Vec::new),
        }
    }
}

/// N and K of a tensor that is a matrix.
fn matrix(tensor: &TensorPlan) -> [usize; 2] {
    tensor.shape[..].try_into().expect("a matrix")
}

/// Hidden states after some layer, `[tokens, hidden_size]` for each window.
#[derive(Clone)]
pub(crate) struct Stream(pub Vec<Vec<f32>>);

impl Stream {
    /// The embeddings of the tokens.
    ///
    /// # Errors
    /// [`CompressError::Model`] for a damaged embedding or a token that the model does not have.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        windows: &[Vec<u32>],
    ) -> Result<Self, CompressError> {
        let embedding = checkpoint
            .plan()
            .iter()
            .find(|tensor| tensor.role == Role::Embedding)
            .expect("every model has an embedding");
        let rows = checkpoint.raw_rows(&embedding.name)?;
        let (vocab_size, width) = (rows.n, rows.k);
        let mut tokens = windows.iter().flatten();
        if let Some(&token) = tokens.find(|&&token| token as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { token, vocab_size }.into());
        }
        let row = |&token: &u32| &rows.bits[token as usize * width..][..width];
        let states = |window: &Vec<u32>| {
            let bits = window.iter().flat_map(row);
            bits.map(|&bits| bf16::from_bits(bits).to_f32()).collect()
        };
        let states = windows.par_iter().map(states).collect();
        drop(rows);
        checkpoint.release(&embedding.name);
        Ok(Stream(states))
    }
}

/// Collects rows for [`Moments`].
struct Accumulator {
    moments: Moments,
    x: Vec<f32>,
    dense: Option<Vec<f32>>,
}

impl Accumulator {
    /// Adds what a window reads in the pruned model; in the dense model it follows with [`Accumulator::add_dense`].
    fn add(&mut self, rows: Rows<'_>) {
        if self.x.len() >= ROWS * self.moments.k() {
            self.flush();
        }
        extend(&mut self.x, rows);
    }

    fn add_dense(&mut self, rows: Rows<'_>) {
        extend(self.dense.as_mut().expect("two streams"), rows);
    }

    fn flush(&mut self) {
        self.moments.add(&self.x, self.dense.as_deref());
        self.x.clear();
        if let Some(dense) = &mut self.dense {
            dense.clear();
        }
    }

    fn finish(mut self) -> Moments {
        self.flush();
        self.moments
    }
}

fn extend(buffer: &mut Vec<f32>, rows: Rows<'_>) {
    for i in 0..rows.rows() {
        buffer.extend_from_slice(rows.row(i));
    }
}
