//! Oracles of the operations on rows, in f64, and how far an f32 result may be from them.
//!
//! Bounds are first order in [`U`], with a factor 2 for the higher orders, as in [`sparamx_kernels::tolerance::sum_tolerance`];
//! the smallest normal number is added for results that underflow.

/// Half the distance from 1 to the next f32: the relative error of one rounding.
pub const U: f64 = f32::EPSILON as f64 / 2.0;

/// Relative error of the vector exponential in units of [`U`]: 2 units in the last place are at most 4 of them.
pub const EXP_ERROR: f64 = 4.0;

/// Below this argument the vector exponential is 0, however far below.
pub const EXP_ZERO: f64 = -104.0;

/// A value and how far from it a result may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounded {
    /// The exact value, but for errors of f64.
    pub value: f64,
    /// The largest error allowed.
    pub allowed: f64,
}

impl Bounded {
    fn relative(value: f64, roundings: f64) -> Self {
        let allowed = 2.0 * roundings * U * value.abs() + f64::from(f32::MIN_POSITIVE);
        Self { value, allowed }
    }

    /// Panics with `context` if `got` is too far off.
    pub fn check(&self, got: f32, context: &str) {
        let Bounded { value, allowed } = *self;
        let error = (f64::from(got) - value).abs();
        assert!(
            error <= allowed,
            "{context}: {got:e} and not {value:e}, {error:e} off where {allowed:e} is allowed"
        );
    }
}

/// One row of `x / sqrt(mean(x^2) + eps) * weight`.
///
/// The sum of n squares errs by n U at most (no term is negative), the division and the addition of eps by one each, and the
/// root halves all that; the root, its reciprocal and two products round once each.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<Bounded> {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    let values = x
        .iter()
        .zip(weight)
        .map(|(&x, &w)| f64::from(x) * factor * f64::from(w));
    values
        .map(|value| Bounded::relative(value, (n + 2.0) / 2.0 + 4.0))
        .collect()
}

/// One row of the softmax.
///
/// `x - max` errs by `U |x - max|`, which is a relative error of its exponential, beside the exponential's own. The sum has the
/// largest of these errors and n additions; reciprocal and product round once each.
pub fn softmax(x: &[f32]) -> Vec<Bounded> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let argument = |x: f32| (f64::from(x) - f64::from(max)).max(EXP_ZERO);
    let weight = |x: f32| (f64::from(x) - f64::from(max)).exp();
    let sum: f64 = x.iter().map(|&x| weight(x)).sum();
    let widest = x.iter().map(|&x| -argument(x)).fold(0.0, f64::max);
    let in_sum = widest + EXP_ERROR + x.len() as f64;
    let bounded =
        |&x: &f32| Bounded::relative(weight(x) / sum, in_sum + EXP_ERROR - argument(x) + 2.0);
    x.iter().map(bounded).collect()
}

/// `x / (1 + exp(-x)) * up`: one exponential, an addition, a division, a product.
///
/// Where `exp(-x)` overflows the result is 0: the value is at most 88.8 / 2^128 then, under 23 times the smallest normal number.
pub fn silu_mul(x: f32, up: f32) -> Bounded {
    let (x, up) = (f64::from(x), f64::from(up));
    let mut bounded = Bounded::relative(x / (1.0 + (-x).exp()) * up, EXP_ERROR + 3.0);
    bounded.allowed += 23.0 * f64::from(f32::MIN_POSITIVE) * up.abs();
    bounded
}

/// The pair (a, b) turned: `(a cos - b sin, b cos + a sin)`. Each product rounds, and so does their sum.
pub fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> [Bounded; 2] {
    let [a, b, cos, sin] = [a, b, cos, sin].map(f64::from);
    [(a * cos, -b * sin), (b * cos, a * sin)].map(|(x, y)| Bounded {
        value: x + y,
        allowed: 2.0 * 2.0 * U * (x.abs() + y.abs()) + f64::from(f32::MIN_POSITIVE),
    })
}

/// `a + b`, rounded once.
pub fn add(a: f32, b: f32) -> Bounded {
    Bounded::relative(f64::from(a) + f64::from(b), 1.0)
}
