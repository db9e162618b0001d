//! What the layers of a forward pass share.

use sparamx_kernels::Runtime;

use crate::pass::profile::{Op, Recorder};

/// What a forward pass needs in every layer, beside the layer's own buffers.
pub(crate) struct Pass<'a> {
    pub rt: &'a Runtime,
    /// For each rotation of the model.
    pub angles: &'a [Angles],
    pub recorder: &'a mut Recorder,
}

impl Pass<'_> {
    /// Does an operation that reads and writes so many bytes.
    pub fn time<R>(&mut self, op: Op, bytes: usize, f: impl FnOnce(&Runtime) -> R) -> R {
        let rt = self.rt;
        self.recorder.time(op, bytes, || f(rt))
    }
}

/// The residual stream and what is computed from it and added to it, `[rows, hidden_size]` each.
#[derive(Default)]
pub(crate) struct Stream {
    pub x: Vec<f32>,
    pub normed: Vec<f32>,
    pub delta: Vec<f32>,
}

/// Cosine and sine of one rotation for each row, `[rows, head_dim / 2]` each.
#[derive(Default)]
pub(crate) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// Frequencies that hold for one call only, `[head_dim / 2]`.
    pub frequencies: Vec<f32>,
}
