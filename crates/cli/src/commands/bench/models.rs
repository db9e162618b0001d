//! The models to measure, read or made.

use anyhow::Result;
use sparamx_format::container::PackedFormat;
use sparamx_kernels::Runtime;
use sparamx_model::{Checkpoint, Model, plan};

use super::measure::Subject;
use super::{Source, Variant};
use crate::args::{Common, Memory};
use crate::{loading, progress};

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
        .filter(|(_, info)| info.packed.is_some_and(PackedFormat::is_sparse))
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
