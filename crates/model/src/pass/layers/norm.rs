//! Norms, and the residual stream that they read.

use sparamx_kernels::{Rows, RowsMut, Runtime, vecops};

use crate::families::spec::NormKind;
use crate::pass::context::{Pass, Stream};
use crate::pass::profile::Op;
use crate::{Config, ModelError};

/// A norm, with its weight `[width]`.
#[derive(Clone)]
pub(crate) struct Norm {
    pub kind: NormKind,
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl Norm {
    /// The norm behind the last layer, of the same kind as that layer's.
    pub(crate) fn last(config: &Config, weight: Vec<f32>) -> Self {
        let last = config.layers.last();
        Self {
            kind: last.map_or(NormKind::Rms, |layer| layer.norm),
            weight,
            eps: config.rms_norm_eps,
        }
    }

    /// `out = norm(x)`, row by row; both `[rows, width]`.
    pub(crate) fn forward(
        &self,
        rt: &Runtime,
        x: Rows<'_>,
        out: RowsMut<'_>,
    ) -> Result<(), ModelError> {
        match self.kind {
            NormKind::Rms => Ok(vecops::rms_norm(rt, x, &self.weight, self.eps, out)?),
        }
    }

    /// `x = norm(x)`, head by head; `x` is `[rows, heads * width]`.
    pub(crate) fn heads(&self, rt: &Runtime, x: RowsMut<'_>) -> Result<(), ModelError> {
        match self.kind {
            NormKind::Rms => Ok(vecops::rms_norm_heads(rt, x, &self.weight, self.eps)?),
        }
    }
}

impl Stream {
    /// Normalizes the residual stream into `normed`.
    pub(crate) fn normalize(&mut self, pass: &mut Pass<'_>, norm: &Norm) -> Result<(), ModelError> {
        let width = norm.weight.len();
        let rows = self.x.len() / width;
        let bytes = size_of_val(&self.x[..]) + size_of_val(&self.normed[..]);
        let x = Rows::new(&self.x, rows, width);
        let out = RowsMut::new(&mut self.normed, rows, width);
        pass.time(Op::Norm, bytes, |rt| norm.forward(rt, x, out))
    }

    /// Adds `delta` to the residual stream, `width` wide.
    pub(crate) fn add_delta(
        &mut self,
        pass: &mut Pass<'_>,
        width: usize,
    ) -> Result<(), ModelError> {
        let rows = self.x.len() / width;
        // The stream is read and written.
        let bytes = 2 * size_of_val(&self.x[..]) + size_of_val(&self.delta[..]);
        let x = RowsMut::new(&mut self.x, rows, width);
        let delta = Rows::new(&self.delta, rows, width);
        Ok(pass.time(Op::Residual, bytes, |rt| vecops::add(rt, x, delta))?)
    }
}
