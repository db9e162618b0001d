//! A model in memory.

use sparamx_format::DenseBf16;
use sparamx_kernels::Weight;
use sparamx_kernels::linear::WeightFormat;

use crate::Config;
use crate::pass::layers::Layer;
use crate::pass::layers::norm::Norm;
use crate::pass::layers::projection::Projection;
use crate::pass::rope::Rope;

/// A model in memory.
pub struct Model {
    pub(crate) config: Config,
    pub(crate) embedding: DenseBf16,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    /// With tied embeddings its weight shares the embedding's memory.
    pub(crate) lm_head: Projection,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) inexact: Inexact,
}

/// Threads share a model.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Model>();
};

/// Values of a checkpoint that bf16 cannot hold and that were rounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inexact {
    /// Values in matrices.
    pub values: u64,
    /// How many of them were rounded.
    pub rounded: u64,
}

impl Model {
    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Values that were rounded when the model was loaded.
    pub fn inexact(&self) -> Inexact {
        self.inexact
    }

    /// Bytes of weights that a forward pass of one token reads: every matrix but the embedding, unless it is also the output
    /// head.
    pub fn weight_bytes(&self) -> u64 {
        let layers: usize = self.layer_weights().map(|weight| weight.bytes()).sum();
        (layers + self.lm_head.linear.weight.bytes()) as u64
    }

    /// Elements of the matrices in the decoder layers, and those of them that are not zero. Of dense matrices they are counted.
    pub fn elements(&self) -> (u64, u64) {
        self.layer_weights()
            .fold((0, 0), |(elements, nnz), weight| {
                let these = weight.n() as u64 * weight.k() as u64;
                (elements + these, nnz + weight.nnz() as u64)
            })
    }

    /// The form of the matrices in the decoder layers; where there are several, that of most bytes.
    pub fn weight_format(&self) -> WeightFormat {
        let bytes = |format: &WeightFormat| {
            let weights = self
                .layer_weights()
                .filter(|weight| weight.format() == *format);
            weights.map(|weight| weight.bytes()).sum::<usize>()
        };
        let most = WeightFormat::ALL.into_iter().max_by_key(bytes);
        most.unwrap_or(WeightFormat::DenseBf16)
    }

    /// The matrices in the decoder layers.
    fn layer_weights(&self) -> impl Iterator<Item = &Weight> {
        let linears = self.layers.iter().flat_map(Layer::linears);
        linears.map(|projection| &projection.linear.weight)
    }

    /// All linear layers, the output head last.
    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let layers = self.layers.iter_mut().flat_map(Layer::linears_mut);
        layers.chain([&mut self.lm_head])
    }
}
