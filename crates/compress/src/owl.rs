//! Sparsity by layer from how its outliers are distributed: OWL (Yin et al., arXiv 2310.05175).
//!
//! A weight's score is its magnitude times the norm of its input, as in Wanda. A layer's share of outliers is that of the scores
//! above [`OUTLIER`] times their mean in the layer. The layers' densities are spread by these shares, linearly, over a range of
//! twice [`SPREAD`], and moved so that their mean is what was asked for. Layers with many outliers keep more.

use half::bf16;
use rayon::prelude::*;
use sparamx_kernels::Rows;
use sparamx_model::plan::Role;
use sparamx_model::{Checkpoint, DecoderLayer, DecoderWorkspace, LayerInput};

use crate::CompressError;
use crate::calibrated::{Calibration, Stream};
use crate::progress::{Reporter, Step};

/// Times the mean from which on a score is an outlier: the paper's M.
const OUTLIER: f64 = 5.0;
/// Half the range of densities: the paper's lambda.
const SPREAD: f64 = 0.08;

/// The sparsity of each decoder layer, `sparsity` in the mean.
///
/// # Errors
/// [`CompressError`] if a layer cannot be read; [`CompressError::Interrupted`].
pub(crate) fn sparsities(
    checkpoint: &Checkpoint,
    calibration: &Calibration<'_>,
    sparsity: f64,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<f64>, CompressError> {
    let (rt, config) = (calibration.runtime, checkpoint.config());
    let mut stream = Stream::new(checkpoint, calibration.windows)?;
    let mut ws = DecoderWorkspace::new(config);
    let mut shares = Vec::new();
    for index in 0..config.num_hidden_layers {
        reporter.layer = Some(index);
        let layer = DecoderLayer::load(checkpoint, index)?;
        let inputs = layer.inputs();
        let mut squares = vec![Vec::new(); inputs.len()];
        let windows = stream.0.len();
        for (window, x) in stream.0.iter_mut().enumerate() {
            for ((input, _), squares) in inputs.iter().zip(&mut squares) {
                add_squares(layer.input(rt, *input, x, &mut ws)?, squares);
            }
            layer.forward(rt, x, &mut ws)?;
            let window = window + 1;
            reporter.step(Step::Calibrating { window, windows })?;
        }
        shares.push(outliers(checkpoint, index, &inputs, &squares)?);
    }
    reporter.layer = None;
    Ok(spread(&shares, sparsity))
}

/// Adds the square of every element to the sum of its column.
fn add_squares(rows: Rows<'_>, sums: &mut Vec<f64>) {
    sums.resize(rows.cols(), 0.0);
    for i in 0..rows.rows() {
        for (sum, &x) in sums.iter_mut().zip(rows.row(i)) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
}

/// The share of outliers among all weights of a layer, given the sums of squares of its inputs.
fn outliers(
    checkpoint: &Checkpoint,
    index: usize,
    inputs: &[(LayerInput, Vec<&str>)],
    squares: &[Vec<f64>],
) -> Result<f64, CompressError> {
    let (mut sum, mut count) = (0.0, 0);
    let mut matrices = Vec::new();
    for tensor in checkpoint.plan() {
        let in_layer = tensor.layer() == Some(index) && tensor.role == Role::Projection;
        let module = tensor.module();
        let reads =
            |(_, modules): &(LayerInput, Vec<&str>)| module.is_some_and(|m| modules.contains(&m));
        let input = inputs.iter().position(reads);
        let Some(input) = input.filter(|_| in_layer) else {
            continue;
        };
        let norms: Vec<f64> = squares[input].iter().map(|square| square.sqrt()).collect();
        sum += over_rows(checkpoint, &tensor.name, &norms, &|scores| scores.sum())?;
        count += tensor.elements();
        matrices.push((&tensor.name, norms));
    }
    let limit = OUTLIER * sum / count as f64;
    let mut above = 0.0;
    for (name, norms) in &matrices {
        above += over_rows(checkpoint, name, norms, &|scores| {
            scores.filter(|&score| score > limit).count() as f64
        })?;
        checkpoint.release(name);
    }
    Ok(above / count as f64)
}

/// The sum of what `of_row` makes of the scores of each row of a matrix.
fn over_rows(
    checkpoint: &Checkpoint,
    name: &str,
    norms: &[f64],
    of_row: &(dyn Fn(&mut dyn Iterator<Item = f64>) -> f64 + Sync),
) -> Result<f64, CompressError> {
    let rows = checkpoint.raw_rows(name)?;
    let row = |row: &[u16]| {
        let score =
            |(&bits, norm): (&u16, &f64)| f64::from(bf16::from_bits(bits).to_f32().abs()) * norm;
        of_row(&mut row.iter().zip(norms).map(score))
    };
    let sums: Vec<f64> = rows.bits.par_chunks(rows.k).map(row).collect();
    Ok(sums.iter().sum())
}

/// Sparsities whose mean is `sparsity`, less where the share is greater.
fn spread(shares: &[f64], sparsity: f64) -> Vec<f64> {
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if shares.is_empty() || most <= least {
        return vec![sparsity; shares.len()];
    }
    // A density differs from the mean by less than the range, which so stays within 0 and 1.
    let range = (2.0 * SPREAD).min(sparsity).min(1.0 - sparsity);
    let places: Vec<f64> = shares
        .iter()
        .map(|share| (share - least) / (most - least))
        .collect();
    let mean = places.iter().sum::<f64>() / places.len() as f64;
    places
        .iter()
        .map(|place| sparsity - range * (place - mean))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_follow_outliers_and_keep_the_mean() {
        let found = spread(&[0.01, 0.03, 0.02, 0.01], 0.5);
        // Places 0, 1, 1/2, 0 with a mean of 3/8, over a range of 0.16.
        let wanted = [0.56, 0.4, 0.48, 0.56];
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
        for sparsity in [0.0, 0.05, 0.3, 0.97] {
            let found = spread(&[0.1, 0.1, 0.1, 0.9, 0.4], sparsity);
            let mean = found.iter().sum::<f64>() / found.len() as f64;
            assert!((mean - sparsity).abs() < 1e-12, "{sparsity} {mean}");
            assert!(found.iter().all(|s| (0.0..1.0).contains(s)), "{found:?}");
        }
        assert_eq!(spread(&[0.2, 0.2], 0.5), [0.5, 0.5]);
        assert!(spread(&[], 0.5).is_empty());
    }
}
