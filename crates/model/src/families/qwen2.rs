//! Qwen2 and Qwen2.5: Llama with bias on q, k and v, whatever `config.json` says, and windows on some layers. Source:
//! `models/qwen2` of Transformers.

use serde_json::Value;

use super::family::{Arch, Defaults, Family};
use super::spec::LayerSpec;
use crate::ModelError;
use crate::config::fields::Fields;

pub(crate) static QWEN2: Family = Family {
    arch: Arch::Qwen2,
    architectures: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    defaults: Defaults {
        num_key_value_heads: Some(32),
        head_dim: None,
        max_position_embeddings: 32_768,
        bos_token_id: None,
        eos_token_id: None,
    },
    layers: |fields, plain, layers| {
        let layer = LayerSpec {
            qkv_bias: true,
            ..plain
        };
        with_windows(fields, layer, layers)
    },
};

/// The layers of Qwen2 and Qwen3 with the window of each: none unless `use_sliding_window`; then on the layers that `layer_types`
/// names, or on those from `max_window_layers` on.
pub(super) fn with_windows(
    fields: &Fields,
    layer: LayerSpec,
    layers: usize,
) -> Result<Vec<LayerSpec>, ModelError> {
    let windows = windows(fields, layers)?.into_iter();
    Ok(windows
        .map(|window| LayerSpec { window, ..layer })
        .collect())
}

fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let on = fields.flag("use_sliding_window", false)?;
    let window = fields
        .optional_size_or("sliding_window", 4096)?
        .filter(|_| on);
    if let Some(types) = fields.get("layer_types") {
        return layer_types(fields, types, window, layers);
    }
    // Not a size: 0 layers without a window are possible, and more than there are.
    let first = match fields.get("max_window_layers") {
        None => 28,
        Some(v) => v
            .as_u64()
            .ok_or_else(|| fields.bad("max_window_layers", v, "a number of layers"))?,
    };
    Ok((0..layers as u64)
        .map(|layer| window.filter(|_| layer >= first))
        .collect())
}

fn layer_types(
    fields: &Fields,
    types: &Value,
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let list = types.as_array().filter(|list| list.len() == layers);
    let list =
        list.ok_or_else(|| fields.bad("layer_types", types, format!("a list of {layers} names")))?;
    let one = |name: &Value| match name.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => Err(fields.bad(
            "layer_types",
            name,
            "full_attention, as use_sliding_window or sliding_window is off",
        )),
        _ => Err(fields.bad("layer_types", name, "full_attention or sliding_attention")),
    };
    list.iter().map(one).collect()
}
