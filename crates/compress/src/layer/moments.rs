//! Second moments of the inputs of a layer.

use rayon::prelude::*;

use super::panels::{BLOCK, Panels, blocks, multiply, view};

/// Tokens that are multiplied at a time, which is also how many the sums are rounded after. The copy in f64 is 28 MiB at
/// k = 14336.
const TOKENS: usize = 256;

/// Second moments of the inputs of a layer on calibration data: of the pruned model (x), and where it is asked for of the dense
/// one (d), whose outputs are to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    k: usize,
    tokens: u64,
    /// Sum of `x x^T`.
    xx: Panels,
    dense: Option<Dense>,
}

#[derive(Clone, Debug, PartialEq)]
struct Dense {
    /// Sum of `d d^T`.
    dd: Panels,
    /// Sum of `d x^T`, in panels of 128 columns of x, each row-major `[k, columns]`.
    dx: Vec<Vec<f64>>,
}

impl Moments {
    /// Of no tokens. Takes about 4 k^2 bytes, with the dense model 16 k^2.
    pub fn new(k: usize, with_dense: bool) -> Self {
        let dense = || Dense {
            dd: Panels::new(k),
            dx: blocks(k).map(|(_, width)| vec![0.0; k * width]).collect(),
        };
        Moments {
            k,
            tokens: 0,
            xx: Panels::new(k),
            dense: with_dense.then(dense),
        }
    }

    /// Inputs of the layer.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds tokens: `x` is row-major, rows of k; `dense` the same tokens in the dense model. Many at once are faster. The same
    /// calls give the same bits for any number of threads.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `dense` is not there exactly if [`Moments::new`] was asked for it, as long as `x`.
    pub fn add(&mut self, x: &[f32], dense: Option<&[f32]>) {
        let k = self.k;
        assert!(
            k > 0 && x.len().is_multiple_of(k),
            "{} numbers in rows of {k}",
            x.len()
        );
        assert_eq!(
            dense.map(<[f32]>::len),
            self.dense.as_ref().map(|_| x.len()),
            "numbers of the dense model for {} of the pruned one",
            x.len()
        );
        self.tokens += (x.len() / k) as u64;
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        for start in (0..x.len()).step_by(TOKENS * k) {
            let range = start..x.len().min(start + TOKENS * k);
            let x = wide(&x[range.clone()]);
            self.xx.add_gram(&x);
            if let (Some(sums), Some(dense)) = (&mut self.dense, dense) {
                sums.add(&x, &wide(&dense[range]), k);
            }
        }
    }

    /// The norm over all tokens of each input of the pruned model.
    pub fn norms(&self) -> Vec<f64> {
        self.xx.diagonal().into_iter().map(f64::sqrt).collect()
    }

    /// The first input with a sum that is not finite.
    pub(super) fn not_finite(&self) -> Option<usize> {
        let bad = |panels: &Panels| panels.diagonal().iter().position(|v| !v.is_finite());
        bad(&self.xx).or_else(|| bad(&self.dense.as_ref()?.dd))
    }

    /// Sum of `x x^T`.
    pub(super) fn xx(&self) -> &Panels {
        &self.xx
    }

    #[cfg(test)]
    pub(super) fn xx_mut(&mut self) -> &mut Panels {
        &mut self.xx
    }

    /// Sum of `d d^T`, `x x^T` where the two are the same.
    pub(super) fn dd(&self) -> &Panels {
        self.dense.as_ref().map_or(&self.xx, |dense| &dense.dd)
    }

    /// True if the dense model's inputs are others than the pruned one's.
    pub(super) fn with_dense(&self) -> bool {
        self.dense.is_some()
    }

    /// `p` of `[rows, k]` times the sum of `d x^T`, on the calling thread.
    pub(super) fn cross_product(&self, p: &[f64], out: &mut [f64]) {
        let Some(dense) = &self.dense else {
            return self.xx.symmetric_product(p, out);
        };
        let k = self.k;
        let rows = p.len() / k;
        let mut out = faer::MatMut::from_row_major_slice_mut(out, rows, k);
        for ((start, width), panel) in blocks(k).zip(&dense.dx) {
            let target = out.as_mut().subcols_mut(start, width);
            multiply(
                target,
                false,
                view(p, rows, k, k),
                view(panel, k, width, width),
                1.0,
            );
        }
    }
}

impl Dense {
    fn add(&mut self, x: &[f64], d: &[f64], k: usize) {
        self.dd.add_gram(d);
        let rows = x.len() / k;
        self.dx.par_iter_mut().enumerate().for_each(|(j, panel)| {
            let width = panel.len() / k;
            let (x, d) = (view(x, rows, k, k), view(d, rows, k, k));
            let panel = faer::MatMut::from_row_major_slice_mut(panel, k, width);
            multiply(panel, true, d.transpose(), x.subcols(j * BLOCK, width), 1.0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_all_tokens_however_they_come() {
        let (k, tokens) = (3, 2 * TOKENS + 5);
        let number = |i: usize| ((i * 7919) % 32) as f32 - 16.0;
        let x: Vec<f32> = (0..k * tokens).map(number).collect();
        let d: Vec<f32> = x.iter().rev().copied().collect();
        let mut whole = Moments::new(k, true);
        whole.add(&x, Some(&d));
        let mut parts = Moments::new(k, true);
        for (x, d) in x.chunks(k * 100).zip(d.chunks(k * 100)) {
            parts.add(x, Some(d));
        }
        // Sums of small whole numbers are exact.
        assert!(whole == parts);
        assert_eq!(whole.tokens(), tokens as u64);
        let sum = |a: &[f32], i: usize, b: &[f32], j: usize| -> f64 {
            let products = a.chunks(k).zip(b.chunks(k)).map(|(a, b)| a[i] * b[j]);
            products.map(f64::from).sum()
        };
        for (i, norm) in whole.norms().into_iter().enumerate() {
            assert_eq!(norm, sum(&x, i, &x, i).sqrt());
        }
        assert_eq!(whole.xx().at(0, 2), sum(&x, 0, &x, 2));
        assert_eq!(whole.dd().at(1, 2), sum(&d, 1, &d, 2));
        let mut cross = [0.0; 3];
        whole.cross_product(&[0.0, 1.0, 0.0], &mut cross);
        assert_eq!(cross, [0, 1, 2].map(|j| sum(&d, 1, &x, j)));
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let mut moments = Moments::new(3, false);
        moments.add(&[1.0, 2.0, 3.0], None);
        assert_eq!(moments.not_finite(), None);
        moments.add(&[1.0, f32::NAN, f32::INFINITY], None);
        assert_eq!(moments.not_finite(), Some(1));
    }

    #[test]
    #[should_panic(expected = "numbers of the dense model")]
    fn the_dense_inputs_are_not_forgotten() {
        Moments::new(2, true).add(&[1.0, 2.0], None);
    }
}
