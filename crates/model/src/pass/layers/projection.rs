//! The linear layers of a model, and how they are multiplied.

use sparamx_kernels::{Linear, LinearJob, Rows, RowsMut, linear};

use crate::ModelError;
use crate::pass::context::Pass;
use crate::pass::profile::Op;

/// A linear layer with its name.
#[derive(Clone)]
pub(crate) struct Projection {
    /// The module, without the layer that it is in: `mlp.up_proj`.
    pub module: &'static str,
    pub linear: Linear,
}

/// What linear layers of a decoder layer read, in the order of the forward pass. Which ones read it, the layer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerInput {
    /// The normalized residual stream, `[tokens, hidden_size]`: input of `q_proj`, `k_proj` and `v_proj`.
    Qkv,
    /// What the heads attended to, `[tokens, heads * head_dim]`: input of `o_proj`.
    O,
    /// The residual stream after the attention, normalized, `[tokens, hidden_size]`: input of `gate_proj` and `up_proj`.
    GateUp,
    /// The gated activations, `[tokens, intermediate_size]`: input of `down_proj`.
    Down,
}

/// `y = x W^T + bias` for linear layers that read the same rows, in one pass over the pool: `x` is `[rows, K]`, each output
/// `[rows, N]`. Every linear layer of a model is multiplied here, so that what is added to its product, such as the `B A x` of a
/// low-rank adapter, is added here.
///
/// # Errors
/// What the kernels report.
pub(crate) fn multiply<const N: usize>(
    pass: &mut Pass<'_>,
    op: Op,
    x: Rows<'_>,
    outputs: [(&Projection, &mut [f32]); N],
) -> Result<(), ModelError> {
    let bytes = outputs
        .iter()
        .map(|(projection, _)| projection.linear.weight.bytes())
        .sum();
    let mut jobs = outputs.map(|(projection, y)| LinearJob {
        linear: &projection.linear,
        y: RowsMut::new(y, x.rows(), projection.linear.weight.n()),
    });
    Ok(pass.time(op, bytes, |rt| linear(rt, x, &mut jobs))?)
}
