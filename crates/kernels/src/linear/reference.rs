//! What every linear kernel must agree with.

use crate::Rows;

/// `x W^T + bias` by three plain loops, `w` row-major `[n, k]`, summed in f64: `[x.rows(), n]`.
///
/// With activations that were rounded to bf16 before, it is the oracle of the kernels that round them.
pub fn linear(x: Rows<'_>, w: &[f32], n: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let k = x.cols();
    assert_eq!(w.len(), n * k, "weight of {n} x {k}");
    let mut y = Vec::with_capacity(x.rows() * n);
    for i in 0..x.rows() {
        for j in 0..n {
            let mut sum = 0.0;
            for (&a, &b) in x.row(i).iter().zip(&w[j * k..][..k]) {
                sum += f64::from(a) * f64::from(b);
            }
            y.push(sum + bias.map_or(0.0, |bias| f64::from(bias[j])));
        }
    }
    y
}

/// Levels of a quantized weight `[n, k]`, row-major, with a scale for each row and group of `group` columns.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// `[n, k]`
    pub levels: Vec<i8>,
    /// `[n, k / group rounded up]`
    pub scales: Vec<f32>,
    /// Columns of a group.
    pub group: usize,
}

/// What kernels for int8 and int4 weights must compute to the bit, `[x.rows(), n]`, by plain loops: every row of activations
/// is quantized by its own scale, sums in a group are exact, everything else is f32, each operation rounded.
pub fn linear_int(x: Rows<'_>, w: &Quantized, n: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let k = x.cols();
    let groups = k.div_ceil(w.group);
    assert_eq!(w.levels.len(), n * k, "levels of {n} x {k}");
    assert_eq!(w.scales.len(), n * groups, "scales of {n} x {groups}");
    let mut y = Vec::with_capacity(x.rows() * n);
    for i in 0..x.rows() {
        let most = x.row(i).iter().fold(0f32, |most, v| most.max(v.abs()));
        let (scale, inverse) = if most > 0.0 {
            (most / 127.0, 127.0 / most)
        } else {
            (0.0, 0.0)
        };
        let q: Vec<i64> = x
            .row(i)
            .iter()
            .map(|v| (v * inverse).round_ties_even() as i64)
            .collect();
        for j in 0..n {
            let mut sum = 0f32;
            let levels = w.levels[j * k..][..k].chunks(w.group);
            for (g, (levels, q)) in levels.zip(q.chunks(w.group)).enumerate() {
                let products = levels.iter().zip(q).map(|(&l, &q)| i64::from(l) * q);
                sum += products.sum::<i64>() as f32 * w.scales[j * groups + g];
            }
            y.push(sum * scale + bias.map_or(0.0, |bias| bias[j]));
        }
    }
    y
}
