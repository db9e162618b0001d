//! The feed-forward part of a layer.

use std::ops::ControlFlow;
use std::slice;

use sparamx_kernels::{Rows, RowsMut, vecops};

use super::projection::{LayerInput, Projection, multiply};
use crate::families::spec::Activation;
use crate::pass::context::{Pass, Stream};
use crate::pass::profile::Op;
use crate::{Config, ModelError};

/// Buffers of a feed-forward part, `[rows, intermediate_size]` each.
#[derive(Default)]
pub(crate) struct FfnBuffers {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
}

impl FfnBuffers {
    /// Makes room for so many rows.
    pub(crate) fn resize(&mut self, c: &Config, rows: usize) {
        self.gate.resize(rows * c.intermediate_size, 0.0);
        self.up.resize(rows * c.intermediate_size, 0.0);
    }
}

/// A feed-forward part. Another kind, such as experts, is a variant here: the layer around it asks for its linear layers and for its
/// result. Where the inputs of linear layers lie, [`super::Layer::input`] says.
#[derive(Clone)]
pub(crate) enum Ffn {
    Gated(Gated),
}

impl Ffn {
    /// The linear layers by what they read, in the order of the forward pass.
    pub(crate) fn groups(&self) -> Vec<(LayerInput, &[Projection])> {
        match self {
            Ffn::Gated(gated) => vec![
                (LayerInput::GateUp, &gated.gate_up[..]),
                (LayerInput::Down, slice::from_ref(&gated.down)),
            ],
        }
    }

    /// The linear layers, in the order of the forward pass.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Projection> {
        match self {
            Ffn::Gated(Gated { gate_up, down, .. }) => gate_up.iter_mut().chain([down]).collect(),
        }
    }

    /// `stream.delta = ffn(stream.normed)`, or the steps as far as the input that is wanted.
    ///
    /// # Errors
    /// What the kernels report.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_>,
        stream: &mut Stream,
        buffers: &mut FfnBuffers,
        until: Option<LayerInput>,
    ) -> Result<ControlFlow<()>, ModelError> {
        match self {
            Ffn::Gated(gated) => gated.forward(pass, stream, buffers, until),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`
#[derive(Clone)]
pub(crate) struct Gated {
    pub activation: Activation,
    /// Gate and up, `[intermediate_size, hidden_size]` each.
    pub gate_up: [Projection; 2],
    /// `[hidden_size, intermediate_size]`
    pub down: Projection,
}

impl Gated {
    fn forward(
        &self,
        pass: &mut Pass<'_>,
        stream: &mut Stream,
        buffers: &mut FfnBuffers,
        until: Option<LayerInput>,
    ) -> Result<ControlFlow<()>, ModelError> {
        if until == Some(LayerInput::GateUp) {
            return Ok(ControlFlow::Break(()));
        }
        let (hidden, inter) = (self.down.linear.weight.n(), self.down.linear.weight.k());
        let rows = stream.x.len() / hidden;
        let FfnBuffers { gate, up } = buffers;
        let x = Rows::new(&stream.normed, rows, hidden);
        let [gate_proj, up_proj] = &self.gate_up;
        multiply(pass, Op::GateUp, x, [(gate_proj, gate), (up_proj, up)])?;
        self.activate(pass, rows, inter, buffers)?;
        if until == Some(LayerInput::Down) {
            return Ok(ControlFlow::Break(()));
        }
        let x = Rows::new(&buffers.gate, rows, inter);
        multiply(pass, Op::Down, x, [(&self.down, &mut stream.delta)])?;
        Ok(ControlFlow::Continue(()))
    }

    /// `gate = activation(gate) * up`, both `[rows, inter]`.
    fn activate(
        &self,
        pass: &mut Pass<'_>,
        rows: usize,
        inter: usize,
        buffers: &mut FfnBuffers,
    ) -> Result<(), ModelError> {
        let FfnBuffers { gate, up } = buffers;
        // The gate is read and written.
        let bytes = 2 * size_of_val(&gate[..]) + size_of_val(&up[..]);
        let (gate, up) = (RowsMut::new(gate, rows, inter), Rows::new(up, rows, inter));
        match self.activation {
            Activation::Silu => pass.time(Op::Silu, bytes, |rt| vecops::silu_mul(rt, gate, up))?,
        }
        Ok(())
    }
}
