//! `rope_scaling` and `rope_parameters`: how rotary frequencies are stretched to longer contexts.
//!
//! Names, defaults and the meaning of each field follow `modeling_rope_utils.py` of Transformers 5.

use super::fields::Fields;
use crate::ModelError;

/// How the rotary frequencies are stretched. `rope.rs` has the formulas.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// The base grows with the length of the sequence, once it exceeds `max_position_embeddings`.
    Dynamic {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions before the stretching.
        original_max_position_embeddings: usize,
    },
    /// YaRN: like `Llama3` with a linear ramp over the index of the frequency, and sharper attention.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Cosine and sine are multiplied by this.
        attention_factor: f64,
        /// Frequencies that turn more often than this in the original context are kept.
        beta_fast: f64,
        /// Frequencies that turn less often than this are divided.
        beta_slow: f64,
        /// Positions before the stretching.
        original_max_position_embeddings: usize,
        /// The ends of the ramp are rounded to whole indices.
        truncate: bool,
    },
}

/// `(rope_theta, scaling)` from the fields of `config.json`, old or new.
pub(super) fn read(
    config: &Fields,
    max_position_embeddings: usize,
) -> Result<(f64, RopeScaling), ModelError> {
    // As in Transformers, the old object wins when there are both.
    let object = match config.object("rope_scaling")? {
        Some(object) => Some(object),
        None => config.object("rope_parameters")?,
    };
    let theta = config.number_above("rope_theta", 1.0, Some(10_000.0))?;
    let Some(rope) = object else {
        return Ok((theta, RopeScaling::None));
    };
    if let Some(layer_type) = rope.objects().next() {
        return Err(rope.bad(
            layer_type,
            "an object",
            "one set of parameters for all layers",
        ));
    }
    let theta = rope.number_above("rope_theta", 1.0, Some(theta))?;
    let field = if rope.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
    let scaling = match rope.optional_text(field)?.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: factor(&rope)?,
        },
        "dynamic" => RopeScaling::Dynamic {
            factor: factor(&rope)?,
        },
        "llama3" => llama3(&rope, original(config, &rope, max_position_embeddings)?)?,
        "yarn" => yarn(&rope, original(config, &rope, max_position_embeddings)?)?,
        other => return Err(rope.bad(field, other, "default, linear, dynamic, llama3 or yarn")),
    };
    if let Some(part) = rope
        .optional_number("partial_rotary_factor")?
        .filter(|&part| part != 1.0)
    {
        return Err(rope.bad("partial_rotary_factor", part, "1.0 for this architecture"));
    }
    Ok((theta, scaling))
}

fn factor(rope: &Fields) -> Result<f64, ModelError> {
    match rope
        .optional_number("factor")?
        .ok_or_else(|| rope.missing("factor"))?
    {
        factor if factor >= 1.0 => Ok(factor),
        factor => Err(rope.bad("factor", factor, "at least 1")),
    }
}

fn original(
    config: &Fields,
    rope: &Fields,
    max_position_embeddings: usize,
) -> Result<usize, ModelError> {
    const FIELD: &str = "original_max_position_embeddings";
    let given = config.optional_size(FIELD)?.or(rope.optional_size(FIELD)?);
    Ok(given.unwrap_or(max_position_embeddings))
}

fn llama3(
    rope: &Fields,
    original_max_position_embeddings: usize,
) -> Result<RopeScaling, ModelError> {
    let low_freq_factor = rope.number_above("low_freq_factor", 0.0, None)?;
    let high_freq_factor = rope.number_above("high_freq_factor", 0.0, None)?;
    if high_freq_factor as f32 <= low_freq_factor as f32 {
        let expected = format!("above low_freq_factor {low_freq_factor}");
        return Err(rope.bad("high_freq_factor", high_freq_factor, expected));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(rope)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    })
}

fn yarn(rope: &Fields, original_max_position_embeddings: usize) -> Result<RopeScaling, ModelError> {
    let factor = factor(rope)?;
    // The paper's temperature of the softmax, 0.1 ln(s) + 1 on queries and on keys.
    let mscale = |m: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * m * factor.ln() + 1.0
        }
    };
    let given = rope.optional_number("attention_factor")?;
    let mscales = (
        rope.optional_number("mscale")?,
        rope.optional_number("mscale_all_dim")?,
    );
    let attention_factor = match (given, mscales) {
        (Some(given), _) => given,
        (None, (Some(m), Some(all))) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
        _ => mscale(1.0),
    };
    if !(attention_factor > 0.0 && (attention_factor as f32).is_finite()) {
        return Err(rope.bad("attention_factor", attention_factor, "a number above 0"));
    }
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: rope.number_above("beta_fast", 0.0, Some(32.0))?,
        beta_slow: rope.number_above("beta_slow", 0.0, Some(1.0))?,
        original_max_position_embeddings,
        truncate: rope.flag("truncate", true)?,
    })
}
