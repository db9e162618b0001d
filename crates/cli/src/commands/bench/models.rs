//! The models to measure, read or made.

use anyhow::Result;
use sparamx_format::WeightFormat;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Config, Model, Precision, RandomSpec, plan};

use super::measure::Subject;
use crate::args::{Common, Memory};
use crate::{loading, progress};

/// Random weights are the same in every run.
const SEED: u64 = 1;

/// What is to be measured: a checkpoint, or a shape with random weights.
pub struct Source {
    /// As tables call it.
    pub name: String,
    /// Its shape.
    pub config: Config,
    /// None for random weights.
    pub checkpoint: Option<Checkpoint>,
}

/// One model of that source.
#[derive(Clone, Copy)]
pub struct Variant {
    /// What its weights are.
    pub precision: Precision,
    /// Share of zeros in them.
    pub sparsity: f64,
}

impl Variant {
    /// What its random weights are like.
    pub fn random(self) -> RandomSpec {
        RandomSpec {
            sparsity: self.sparsity,
            precision: self.precision,
            seed: SEED,
        }
    }
}

/// The share of zeros in the packed weights of a checkpoint.
///
/// # Errors
/// A weight is damaged.
pub fn stored_sparsity(checkpoint: &Checkpoint) -> Result<f64> {
    let (mut elements, mut non_zeros) = (0, 0);
    for (tensor, info) in checkpoint
        .plan()
        .iter()
        .zip(checkpoint.tensors())
        .filter(|(_, info)| info.packed.is_some_and(WeightFormat::is_sparse))
    {
        elements += tensor.elements();
        non_zeros += checkpoint.nnz(&info.name)? as u64;
    }
    Ok(if elements == 0 {
        0.0
    } else {
        1.0 - non_zeros as f64 / elements as f64
    })
}

/// Loads or makes the models, one after the other.
///
/// # Errors
/// A checkpoint cannot be read, or there is no memory.
pub fn load(
    source: &Source,
    models: &[Variant],
    rt: &Runtime,
    memory: Memory,
    common: Common,
) -> Result<Vec<Subject>> {
    let parameters = plan::tensors(&source.config)
        .iter()
        .map(plan::TensorPlan::elements)
        .sum();
    // A checkpoint has bars of its own.
    let bar = source.checkpoint.is_none().then(|| {
        let count = models.len() as u64;
        progress::count_bar(common, count, "models", "random weights")
    });
    let mut subjects = Vec::new();
    for variant in models {
        let model = match &source.checkpoint {
            // As `run` would have it in memory.
            Some(checkpoint) => {
                let mut model = loading::weights(rt, checkpoint, memory, common)?;
                loading::settle(&mut model, rt, memory, common)?;
                model
            }
            None => Model::random(rt, &source.config, variant.random())?,
        };
        bar.iter().for_each(|bar| bar.inc(1));
        subjects.push(Subject {
            shape: source.name.clone(),
            weights: variant.precision.name(),
            sparsity: variant.sparsity,
            parameters,
            model,
        });
    }
    bar.iter().for_each(|bar| bar.finish_and_clear());
    Ok(subjects)
}
