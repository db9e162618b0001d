//! `config.json`: the shape of a model.

pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod precision;
mod scaling;
pub(crate) mod small_file;
mod storage;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use self::fields::{Fields, MAX_SIZE};
use self::small_file::read_small_file;
use crate::ModelError;
use crate::families;
use crate::families::family::{Arch, Family};
use crate::families::spec::LayerSpec;

pub use precision::Precision;
pub use scaling::RopeScaling;
pub(crate) use storage::Storage;

/// More layers than any model has; a limit so that a damaged file cannot ask for terabytes of bookkeeping.
const MAX_LAYERS: usize = 4096;

/// The shape of a model. Fields have the names of Hugging Face's `config.json`; what is absent there is filled in with the
/// default that Transformers has for the family.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family.
    pub arch: Arch,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between gate/up and down.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, even. Need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Positions that the model was made for. See [`Config::context_length`].
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies, above 1.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched to longer contexts.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// What each of the layers does, `[num_hidden_layers]`.
    pub layers: Vec<LayerSpec>,
    /// The token a text starts with.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The dtype of weights in the layout `strip16`, version 1, if this program packed the checkpoint.
    pub packed: Option<Precision>,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] and those of [`Config::from_json`].
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let text = read_small_file(path)?.ok_or_else(|| ModelError::not_found(path))?;
        Self::from_json(&text, path)
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`ModelError::Json`], [`ModelError::MissingField`], [`ModelError::BadField`],
    /// [`ModelError::UnsupportedArchitecture`] or [`ModelError::UnsupportedQuantization`].
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ModelError> {
        Self::describe(json, path).map(|described| described.config)
    }

    /// The same, with how the weights are stored and what was passed over.
    pub(crate) fn describe(json: &[u8], path: &Path) -> Result<Described, ModelError> {
        let map = json::object(json, path)?;
        let fields = Fields::new(path, &map);
        let family = family(&fields)?;
        let storage = storage::read(&fields)?;
        let packed = match storage {
            Storage::Packed(precision) => Some(precision),
            Storage::Plain | Storage::CompressedTensors => None,
        };
        let mut notes = Vec::new();
        let config = read(&fields, family, packed, &mut notes)?;
        check(&fields, &config)?;
        Ok(Described {
            config,
            storage,
            notes,
        })
    }

    /// The same model with its first layers only, so many of them at most.
    pub fn keep_layers(&mut self, layers: usize) {
        self.layers.truncate(layers);
        self.num_hidden_layers = self.layers.len();
    }

    /// Width of the queries of all heads.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, of all heads.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The longest sequence that the model was made for, in tokens: `max_position_embeddings`, or what the scaling of the
    /// rotary frequencies stretches it to where that is known.
    pub fn context_length(&self) -> usize {
        let stretched = match self.rope_scaling {
            // Defined by how far max_position_embeddings is exceeded.
            RopeScaling::Dynamic { factor } => self.max_position_embeddings as f64 * factor,
            // Qwen's instructions add yarn to config.json and leave max_position_embeddings.
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                ..
            } => original_max_position_embeddings as f64 * factor,
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 0.0,
        };
        self.max_position_embeddings
            .max((stretched as usize).min(MAX_SIZE))
    }
}

/// What a `config.json` says.
pub(crate) struct Described {
    pub config: Config,
    pub storage: Storage,
    /// A line each on what was passed over.
    pub notes: Vec<String>,
}

/// The family that `architectures` names, or `model_type` where that is absent.
fn family(fields: &Fields) -> Result<&'static Family, ModelError> {
    let unsupported = |found: &str| ModelError::UnsupportedArchitecture {
        path: fields.path().to_owned(),
        found: found.to_owned(),
        supported: families::names(),
    };
    if let Some(list) = fields.get("architectures") {
        let name = list.get(0).and_then(Value::as_str);
        let name = name.ok_or_else(|| fields.bad("architectures", list, "a list of one name"))?;
        return families::by_architecture(name).ok_or_else(|| unsupported(name));
    }
    let name = fields
        .optional_text("model_type")?
        .ok_or_else(|| fields.missing("architectures"))?;
    families::by_model_type(name).ok_or_else(|| unsupported(name))
}

fn read(
    fields: &Fields,
    family: &Family,
    packed: Option<Precision>,
    notes: &mut Vec<String>,
) -> Result<Config, ModelError> {
    let defaults = &family.defaults;
    let num_hidden_layers = fields.size("num_hidden_layers")?;
    if num_hidden_layers > MAX_LAYERS {
        return Err(fields.bad(
            "num_hidden_layers",
            num_hidden_layers,
            format!("at most {MAX_LAYERS}"),
        ));
    }
    let max_position_embeddings = fields
        .optional_size("max_position_embeddings")?
        .unwrap_or(defaults.max_position_embeddings);
    let num_attention_heads = fields.size("num_attention_heads")?;
    let hidden_size = fields.size("hidden_size")?;
    let vocab_size = fields.size("vocab_size")?;
    let (rope_theta, rope_scaling) = scaling::read(fields, max_position_embeddings)?;
    let head_dim = head_dim(fields, defaults.head_dim, hidden_size, num_attention_heads)?;
    let layers = (family.layers)(fields, LayerSpec::plain(head_dim), num_hidden_layers)?;
    let mut ids = |field, default| token_ids(fields, field, default, vocab_size, notes);
    let bos_token_id = ids("bos_token_id", defaults.bos_token_id)?;
    let eos_token_id = ids("eos_token_id", defaults.eos_token_id)?;
    Ok(Config {
        arch: family.arch,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: key_value_heads(
            fields,
            defaults.num_key_value_heads,
            num_attention_heads,
        )?,
        head_dim,
        vocab_size,
        max_position_embeddings,
        rms_norm_eps: fields.number_above("rms_norm_eps", 0.0, Some(1e-6))? as f32,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        layers,
        bos_token_id: bos_token_id.first().copied(),
        eos_token_id,
        packed,
    })
}

fn key_value_heads(
    fields: &Fields,
    default: Option<usize>,
    heads: usize,
) -> Result<usize, ModelError> {
    match fields.optional_size("num_key_value_heads")? {
        Some(found) => Ok(found),
        None if fields.is_null("num_key_value_heads") => Ok(heads),
        None => Ok(default.unwrap_or(heads)),
    }
}

fn head_dim(
    fields: &Fields,
    default: Option<usize>,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ModelError> {
    let given = fields.optional_size("head_dim")?;
    match given.or(default.filter(|_| !fields.is_null("head_dim"))) {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None => Err(fields.bad(
            "num_attention_heads",
            heads,
            format!("a divisor of hidden_size {hidden_size}, as there is no head_dim"),
        )),
    }
}

/// One id, a list of ids, or none. Absent is the default, if the vocabulary has it; null is none. An id that the vocabulary does not
/// have, left from another tokenizer or -1 for none, can neither be read nor written by the model: it is passed over with a note.
fn token_ids(
    fields: &Fields,
    field: &str,
    default: Option<u32>,
    vocab_size: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<u32>, ModelError> {
    let in_range = |id: u32| (id as usize) < vocab_size;
    let mut ids = Vec::new();
    let mut add = |value: &Value| {
        if !value.is_i64() && !value.is_u64() {
            return Err(fields.bad(field, value, "token ids"));
        }
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        match id.filter(|&id| in_range(id)) {
            Some(id) => ids.push(id),
            // The usual way to write none.
            None if value.as_i64() == Some(-1) => {}
            None => notes.push(format!(
                "{field} {value} is not below vocab_size {vocab_size}, so the model has no such token: it is passed over"
            )),
        }
        Ok(())
    };
    match fields.get(field) {
        None if fields.is_null(field) => {}
        None => ids.extend(default.filter(|&id| in_range(id))),
        Some(Value::Array(list)) => list.iter().try_for_each(add)?,
        Some(value) => add(value)?,
    }
    Ok(ids)
}

/// Checks what fields say together, and refuses what the forward pass does not do.
fn check(fields: &Fields, c: &Config) -> Result<(), ModelError> {
    if !c.num_attention_heads.is_multiple_of(c.num_key_value_heads) {
        let expected = format!("a divisor of num_attention_heads {}", c.num_attention_heads);
        return Err(fields.bad("num_key_value_heads", c.num_key_value_heads, expected));
    }
    if !c.head_dim.is_multiple_of(2) {
        return Err(fields.bad(
            "head_dim",
            c.head_dim,
            "an even number: rotary embeddings turn pairs",
        ));
    }
    // Both factors are at most 2^24, so this is the product and not what is left of it.
    if c.q_width() > MAX_SIZE {
        let expected = format!(
            "at most {MAX_SIZE} together with num_attention_heads {}",
            c.num_attention_heads
        );
        return Err(fields.bad("head_dim", c.head_dim, expected));
    }
    if matches!(c.rope_scaling, RopeScaling::Dynamic { .. }) && c.head_dim < 4 {
        return Err(fields.bad(
            "head_dim",
            c.head_dim,
            "at least 4 for dynamic rope scaling",
        ));
    }
    if let Some(act) = fields
        .optional_text("hidden_act")?
        .filter(|&act| act != "silu")
    {
        return Err(fields.bad("hidden_act", act, "silu"));
    }
    let rotated = fields.optional_number("partial_rotary_factor")?;
    if let Some(part) = rotated.filter(|&part| part != 1.0) {
        return Err(fields.bad("partial_rotary_factor", part, "1.0 for this architecture"));
    }
    Ok(())
}
