//! How far a result may be from the exact one. Derived, in one place.

/// Distance from 1 to the next bf16 (8 bits of significand), the unit in which rounding to bf16 errs by half.
pub const BF16_EPS: f64 = 1.0 / 128.0;

/// Bound for a sum of `k` products and a bias computed in f32 in any order, against the exact sum.
///
/// Each product errs by at most u = eps / 2 relative, each of the k additions by u of a partial sum, and no partial sum exceeds
/// (k + 1) max|a| max|w| or, with a bias, max|bias| more. First order (Higham, Accuracy and Stability of Numerical Algorithms,
/// 3.1): error <= (k + 1) u sum|a_i w_i| <= (k + 1) u (k max|a| max|w| + max|bias|). `magnitude` is sum|a_i w_i| + |bias| for the
/// element in question, so the bound is sharp in the magnitudes; the factor 2 covers the second-order terms, and on CPUs that
/// flush denormals (bf16 dot products) `k` times the smallest normal f32 is added.
pub fn sum_tolerance(k: usize, magnitude: f64) -> f64 {
    let u = f64::from(f32::EPSILON) / 2.0;
    2.0 * (k as f64 + 1.0) * u * magnitude + (k as f64 + 1.0) * f64::from(f32::MIN_POSITIVE)
}
