//! What one decoder layer does, as data: a family fills it, the forward pass reads it.

/// What one decoder layer does. Every field is one that the forward pass follows; what a family needs beyond them, it refuses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// The kind of its norms.
    pub norm: NormKind,
    /// Where the norms stand.
    pub norm_place: NormPlace,
    /// The q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// The o projection has a bias.
    pub o_bias: bool,
    /// The heads of q and k are normalized before they are rotated.
    pub qk_norm: bool,
    /// Which rotation of the model turns q and k: 0 is that of `rope_theta` and `rope_scaling`, the only one there is.
    pub rotation: usize,
    /// Factor of the scores before the softmax.
    pub score_scale: f32,
    /// A token attends to this many tokens, itself counted; `None` is all before it.
    pub window: Option<usize>,
    /// The kind of the feed-forward part.
    pub ffn: FfnKind,
    /// Between gate and down.
    pub activation: Activation,
    /// The gate, up and down projections have a bias.
    pub mlp_bias: bool,
}

/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * weight`
    Rms,
}

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// Before attention and before the feed-forward part: `x += part(norm(x))`.
    Before,
}

/// The kind of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FfnKind {
    /// `down(activation(gate(x)) * up(x))`
    Gated,
}

/// A function of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
}

impl LayerSpec {
    /// The layer of Llama with heads of this width: norms before both parts, no bias, no window.
    pub(crate) fn plain(head_dim: usize) -> Self {
        Self {
            norm: NormKind::Rms,
            norm_place: NormPlace::Before,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            rotation: 0,
            score_scale: (head_dim as f32).sqrt().recip(),
            window: None,
            ffn: FfnKind::Gated,
            activation: Activation::Silu,
            mlp_bias: false,
        }
    }
}
