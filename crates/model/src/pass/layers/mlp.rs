//! The gated feed-forward part of a layer.

use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, linear, vecops};

use super::Norm;
use crate::ModelError;
use crate::pass::profile::{Op, Recorder};
use crate::pass::workspace::{MlpBuffers, Stream};

/// `x += down(silu(gate(norm(x))) * up(norm(x)))`
#[derive(Clone)]
pub(crate) struct Mlp {
    pub norm: Norm,
    /// `[intermediate_size, hidden_size]`
    pub gate: Linear,
    /// `[intermediate_size, hidden_size]`
    pub up: Linear,
    /// `[hidden_size, intermediate_size]`
    pub down: Linear,
}

impl Mlp {
    pub(crate) fn forward(
        &self,
        rt: &Runtime,
        stream: &mut Stream,
        ws: &mut MlpBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        self.activate(rt, stream, ws, recorder)?;
        self.output(rt, stream, ws, recorder)
    }

    /// All but the last step: `ws.gate` is the input of `down` then, and `stream.normed` still that of gate and up.
    pub(crate) fn activate(
        &self,
        rt: &Runtime,
        stream: &mut Stream,
        ws: &mut MlpBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (hidden, inter) = (self.down.weight.n(), self.down.weight.k());
        let rows = stream.x.len() / hidden;
        stream.normalize(rt, &self.norm, recorder)?;
        // One pass over the pool for both: they read the same rows.
        let x = Rows::new(&stream.normed, rows, hidden);
        let mut jobs = [
            LinearJob {
                linear: &self.gate,
                y: RowsMut::new(&mut ws.gate, rows, inter),
            },
            LinearJob {
                linear: &self.up,
                y: RowsMut::new(&mut ws.up, rows, inter),
            },
        ];
        let bytes = self.gate.weight.bytes() + self.up.weight.bytes();
        recorder.time(Op::GateUp, bytes, || linear(rt, x, &mut jobs))?;

        // The gate is read and written.
        let bytes = 2 * size_of_val(&ws.gate[..]) + size_of_val(&ws.up[..]);
        let gate = RowsMut::new(&mut ws.gate, rows, inter);
        let up = Rows::new(&ws.up, rows, inter);
        recorder.time(Op::Silu, bytes, || vecops::silu_mul(rt, gate, up))?;
        Ok(())
    }

    /// The last step: what was activated goes through `down` and into the stream.
    pub(crate) fn output(
        &self,
        rt: &Runtime,
        stream: &mut Stream,
        ws: &MlpBuffers,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let (hidden, inter) = (self.down.weight.n(), self.down.weight.k());
        let rows = stream.x.len() / hidden;
        let x = Rows::new(&ws.gate, rows, inter);
        let mut jobs = [LinearJob {
            linear: &self.down,
            y: RowsMut::new(&mut stream.delta, rows, hidden),
        }];
        let bytes = self.down.weight.bytes();
        recorder.time(Op::Down, bytes, || linear(rt, x, &mut jobs))?;
        stream.add_delta(rt, hidden, recorder)
    }
}
