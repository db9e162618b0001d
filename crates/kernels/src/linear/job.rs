//! A linear layer, and where its output goes.

use crate::{RowsMut, Weight};

/// A linear layer.
#[derive(Clone)]
pub struct Linear {
    /// `[N, K]`
    pub weight: Weight,
    /// `[N]`
    pub bias: Option<Vec<f32>>,
}

/// One layer of a call of [`linear()`](crate::linear()), and where its output goes.
pub struct LinearJob<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// `[M, N]`
    pub y: RowsMut<'a>,
}
