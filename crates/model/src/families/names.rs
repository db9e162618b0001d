//! Names of tensors that are no part of a layer, and of those that are.

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the last norm.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// Name of the output head, when it is not the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Beginning of the names of tensors in decoder layers.
pub(super) const LAYERS: &str = "model.layers.";

/// Name of a tensor in a layer: `layer(3, "mlp.up_proj", "weight")`.
pub(crate) fn layer(layer: usize, module: &str, suffix: &str) -> String {
    format!("{LAYERS}{layer}.{module}.{suffix}")
}

/// The decoder layer that a name is in.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let (layer, _) = name.strip_prefix(LAYERS)?.split_once('.')?;
    layer.parse().ok()
}
