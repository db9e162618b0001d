//! The tensors that a configuration asks for: names, shapes, and what they are used as.

use super::names::LAYERS;
pub(crate) use super::names::{EMBEDDING, FINAL_NORM, HEAD, layer, layer_of};
use super::parts::{self, PartKind};
use crate::Config;

/// What a tensor is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Rows are looked up by token id; stays dense. With tied embeddings also the output head.
    Embedding,
    /// The matrix `[N, K]` of a linear layer inside a decoder layer; may be packed.
    Projection,
    /// The output head `[vocab_size, hidden_size]`; may be packed.
    Head,
    /// A norm or a bias, `[N]`; kept in f32.
    Vector,
}

impl Role {
    /// The tensor is a matrix that `linear` multiplies with and that may be stored packed.
    pub fn may_be_packed(self) -> bool {
        matches!(self, Self::Projection | Self::Head)
    }
}

/// A tensor that a model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Name in the checkpoint.
    pub name: String,
    /// `[N, K]`, or `[N]` for a vector.
    pub shape: Vec<usize>,
    /// Its use.
    pub role: Role,
}

impl TensorPlan {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// The decoder layer that it is in, counted from 0.
    pub fn layer(&self) -> Option<usize> {
        layer_of(&self.name)
    }

    /// The module of a weight in a decoder layer, such as `mlp.up_proj`.
    pub fn module(&self) -> Option<&str> {
        let (_, part) = self.name.strip_prefix(LAYERS)?.split_once('.')?;
        part.strip_suffix(".weight")
    }
}

/// Every tensor of the model, in the order of the forward pass.
pub fn tensors(c: &Config) -> Vec<TensorPlan> {
    let mut plan = vec![TensorPlan {
        name: EMBEDDING.to_owned(),
        shape: vec![c.vocab_size, c.hidden_size],
        role: Role::Embedding,
    }];
    for l in 0..c.num_hidden_layers {
        layer_tensors(c, l, &mut plan);
    }
    plan.push(TensorPlan {
        name: FINAL_NORM.to_owned(),
        shape: vec![c.hidden_size],
        role: Role::Vector,
    });
    if !c.tie_word_embeddings {
        plan.push(TensorPlan {
            name: HEAD.to_owned(),
            shape: vec![c.vocab_size, c.hidden_size],
            role: Role::Head,
        });
    }
    plan
}

fn layer_tensors(c: &Config, l: usize, plan: &mut Vec<TensorPlan>) {
    let spec = &c.layers[l];
    let mut add = |module: &str, suffix: &str, shape: Vec<usize>| {
        let matrix = shape.len() == 2;
        plan.push(TensorPlan {
            name: layer(l, module, suffix),
            shape,
            role: if matrix {
                Role::Projection
            } else {
                Role::Vector
            },
        });
    };
    for part in parts::of(spec) {
        match part.kind {
            PartKind::Norm { n } => add(part.module, "weight", vec![n(c)]),
            PartKind::Linear { n, k, bias } => {
                add(part.module, "weight", vec![n(c), k(c)]);
                if bias(spec) {
                    add(part.module, "bias", vec![n(c)]);
                }
            }
        }
    }
}
