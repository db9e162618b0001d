//! The gated feed-forward part of a layer.

use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, Runtime, linear, vecops};

use super::Norm;
use crate::ModelError;
use crate::workspace::{MlpBuffers, Stream};

/// `x += down(silu(gate(norm(x))) * up(norm(x)))`
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
    ) -> Result<(), ModelError> {
        let (hidden, inter) = (self.down.weight.n(), self.down.weight.k());
        let rows = stream.x.len() / hidden;
        stream.normalize(rt, &self.norm)?;
        // One pass over the pool for both: they read the same rows.
        linear(
            rt,
            Rows::new(&stream.normed, rows, hidden),
            &mut [
                LinearJob {
                    linear: &self.gate,
                    y: RowsMut::new(&mut ws.gate, rows, inter),
                },
                LinearJob {
                    linear: &self.up,
                    y: RowsMut::new(&mut ws.up, rows, inter),
                },
            ],
        )?;
        vecops::silu_mul(
            rt,
            RowsMut::new(&mut ws.gate, rows, inter),
            Rows::new(&ws.up, rows, inter),
        )?;
        linear(
            rt,
            Rows::new(&ws.gate, rows, inter),
            &mut [LinearJob {
                linear: &self.down,
                y: RowsMut::new(&mut stream.delta, rows, hidden),
            }],
        )?;
        stream.add_delta(rt, hidden)
    }
}
