//! A decoder layer: attention and a feed-forward part around the residual stream. Each part reads a normalized copy of the stream,
//! and what it computes is added to it.

pub(crate) mod attention;
pub(crate) mod ffn;
pub(crate) mod norm;
pub(crate) mod projection;

use attention::Attention;
use ffn::Ffn;
use norm::Norm;
use projection::{LayerInput, Projection};

use crate::ModelError;
use crate::families::spec::NormPlace;
use crate::pass::cache::Input;
use crate::pass::context::{Pass, Stream};
use crate::pass::workspace::Buffers;

/// One decoder layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub norm_place: NormPlace,
    pub attention_norm: Norm,
    pub attention: Attention,
    pub ffn_norm: Norm,
    pub ffn: Ffn,
}

impl Layer {
    /// The linear layers by what they read, in the order of the forward pass.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (LayerInput, &[Projection])> {
        self.attention.groups().into_iter().chain(self.ffn.groups())
    }

    /// The linear layers, in the order of the forward pass.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Projection> {
        self.groups().flat_map(|(_, projections)| projections)
    }

    /// The linear layers, in the order of the forward pass.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let attention = self.attention.linears_mut().into_iter();
        attention.chain(self.ffn.linears_mut())
    }

    /// Takes the residual stream through the layer; where an input of linear layers is wanted, only as far as that.
    ///
    /// # Errors
    /// What the caches and kernels report.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_>,
        inputs: &mut [Input<'_>],
        buffers: &mut Buffers,
        until: Option<LayerInput>,
    ) -> Result<(), ModelError> {
        let Buffers {
            stream,
            attention,
            ffn,
        } = buffers;
        let width = self.attention_norm.weight.len();
        self.enter(pass, &self.attention_norm, stream)?;
        let reached = self
            .attention
            .forward(pass, inputs, stream, attention, until)?;
        if reached.is_break() {
            return Ok(());
        }
        stream.add_delta(pass, width)?;
        self.enter(pass, &self.ffn_norm, stream)?;
        if self.ffn.forward(pass, stream, ffn, until)?.is_break() {
            return Ok(());
        }
        stream.add_delta(pass, width)
    }

    /// What a part reads.
    fn enter(
        &self,
        pass: &mut Pass<'_>,
        norm: &Norm,
        stream: &mut Stream,
    ) -> Result<(), ModelError> {
        match self.norm_place {
            NormPlace::Before => stream.normalize(pass, norm),
        }
    }

    /// The input of linear layers as [`Layer::forward`] left it when it was wanted.
    pub(crate) fn input(input: LayerInput, buffers: &Buffers) -> &[f32] {
        match input {
            LayerInput::Qkv | LayerInput::GateUp => &buffers.stream.normed,
            LayerInput::O => &buffers.attention.attended,
            LayerInput::Down => &buffers.ffn.gate,
        }
    }
}
