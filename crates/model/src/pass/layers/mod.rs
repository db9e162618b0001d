//! The parts of a decoder layer. Each reads a normalized copy of the residual stream and adds its result to the stream.

mod attention;
mod mlp;

pub(crate) use attention::Attention;
pub(crate) use mlp::Mlp;

use sparamx_kernels::{Rows, RowsMut, Runtime, vecops};

use crate::ModelError;
use crate::pass::profile::{Op, Recorder};
use crate::pass::workspace::Stream;

/// One decoder layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub attention: Attention,
    pub mlp: Mlp,
}

/// RMSNorm, with its weight `[hidden_size]`.
#[derive(Clone)]
pub(crate) struct Norm {
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl Norm {
    /// `out = x / rms(x) * weight`, row by row; both `[rows, hidden_size]`.
    pub(crate) fn forward(
        &self,
        rt: &Runtime,
        x: Rows<'_>,
        out: RowsMut<'_>,
    ) -> Result<(), ModelError> {
        Ok(vecops::rms_norm(rt, x, &self.weight, self.eps, out)?)
    }
}

impl Stream {
    /// Normalizes the residual stream into `normed`.
    pub(crate) fn normalize(
        &mut self,
        rt: &Runtime,
        norm: &Norm,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let width = norm.weight.len();
        let rows = self.x.len() / width;
        let bytes = size_of_val(&self.x[..]) + size_of_val(&self.normed[..]);
        let x = Rows::new(&self.x, rows, width);
        let out = RowsMut::new(&mut self.normed, rows, width);
        recorder.time(Op::Norm, bytes, || norm.forward(rt, x, out))
    }

    /// Adds `delta` to the residual stream.
    fn add_delta(
        &mut self,
        rt: &Runtime,
        width: usize,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let rows = self.x.len() / width;
        // The stream is read and written.
        let bytes = 2 * size_of_val(&self.x[..]) + size_of_val(&self.delta[..]);
        let x = RowsMut::new(&mut self.x, rows, width);
        let delta = Rows::new(&self.delta, rows, width);
        Ok(recorder.time(Op::Residual, bytes, || vecops::add(rt, x, delta))?)
    }
}
