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
