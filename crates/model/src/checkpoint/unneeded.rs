//! Tensors in the files that the model has no use for, and how they differ from those that it would be wrong without.

use std::collections::BTreeMap;

use crate::Config;
use crate::families::plan;

/// What is computed anew: positions, masks and rotary tables that old versions of Transformers saved.
const COMPUTED: [&str; 5] = [
    "position_ids",
    "self_attn.masked_bias",
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
];
/// Scales of activations and of the KV cache: kernels quantize by themselves, or not at all.
const ACTIVATIONS: [&str; 17] = [
    ".prob_output_scale",
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
    ".prob_scale",
    ".q_zero_point",
    ".k_zero_point",
    ".v_zero_point",
    ".q_global_scale",
    ".k_global_scale",
    ".v_global_scale",
];
/// Heads inside `model` that grade texts.
const GRADES: [&str; 2] = ["value_head", "score"];
/// Modules beside the decoder, also inside `model`, that predict several tokens.
const DRAFTS: [&str; 5] = ["mtp", "mtp_layers", "mtp_block", "medusa_head", "nextn"];
/// Modules beside the decoder, also inside `model`, that look and listen.
const SENSES: [&str; 10] = [
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "vision_embed_tokens",
    "visual",
    "multi_modal_projector",
    "mm_projector",
    "image_newline",
    "patch_merger",
    "audio_tower",
];
/// First parts of names that a language model may have: what is unknown there is not left out.
const OF_A_DECODER: [&str; 10] = [
    "model",
    "lm_head",
    "base_model",
    "language_model",
    "transformer",
    "backbone",
    "decoder",
    "layers",
    "embed_tokens",
    "norm",
];

/// What a tensor is that is in the files and not in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nothing is lost with it: no note.
    Silent,
    /// Noted in these words.
    Noted(&'static str),
}

const SCALES: Kind = Kind::Noted("scales of activations or of a KV cache");
/// Of layers that `num_hidden_layers` does not count.
pub(crate) const LATER_LAYERS: Kind = Kind::Noted("in layers after the last one");
pub(crate) const PREDICTION: Kind = Kind::Noted("of multi-token prediction");
/// Of modules that the architecture does not have, such as a value head.
pub(crate) const OTHER: Kind = Kind::Noted("of modules beside the language model");

/// What `name` is, if the model computes the same without it. A tensor of an unknown name in a layer that runs, in the embedding or
/// in the head is none of these: the model would be wrong without it.
pub(crate) fn kind(config: &Config, name: &str) -> Option<Kind> {
    if COMPUTED.iter().any(|part| name.ends_with(part)) {
        return Some(Kind::Silent);
    }
    // A copy: if it were another matrix, the plan would have it.
    if config.tie_word_embeddings && name == plan::HEAD {
        return Some(Kind::Silent);
    }
    if let Some(layer) = plan::layer_of(name)
        && layer >= config.num_hidden_layers
    {
        return Some(LATER_LAYERS);
    }
    if ACTIVATIONS.iter().any(|part| name.ends_with(part)) {
        return Some(SCALES);
    }
    if name.contains("lora_") {
        return None;
    }
    let module = name.strip_prefix("model.").unwrap_or(name);
    let (module, _) = module.split_once('.').unwrap_or((module, ""));
    if DRAFTS.contains(&module) {
        return Some(PREDICTION);
    }
    let (first, _) = name.split_once('.')?;
    let beside =
        SENSES.contains(&module) || GRADES.contains(&module) || !OF_A_DECODER.contains(&first);
    beside.then_some(OTHER)
}

/// Counts what is left out.
#[derive(Default)]
pub(crate) struct LeftOut(BTreeMap<Kind, (usize, String)>);

impl LeftOut {
    /// Another one.
    pub(crate) fn add(&mut self, kind: Kind, name: &str) {
        let (count, _) = self.0.entry(kind).or_insert_with(|| (0, name.to_owned()));
        *count += 1;
    }

    /// One line about all of them, if there is anything to note.
    pub(crate) fn note(&self) -> Option<String> {
        let noted = self
            .0
            .iter()
            .filter_map(|(kind, (count, name))| match kind {
                Kind::Silent => None,
                Kind::Noted(what) => Some((count, what, name)),
            });
        let noted: Vec<_> = noted.collect();
        let all: usize = noted.iter().map(|(count, ..)| *count).sum();
        let parts = noted.iter().map(|(count, what, name)| {
            format!("{count} {what} ('{}')", sparamx_format::Short(name))
        });
        let parts = parts.collect::<Vec<_>>().join(", ");
        (all > 0).then(|| format!("tensors that the model does not use are left out: {parts}"))
    }
}
