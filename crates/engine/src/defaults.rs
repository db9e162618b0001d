//! What a model's `generation_config.json` says of sampling.

use std::path::Path;

use serde_json::Value;

use crate::folder::read_object;
use crate::{EngineError, SamplingParams};

/// How a model wants its tokens chosen; none where it does not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingDefaults {
    /// See [`SamplingParams::temperature`]. 0 where the file says `"do_sample": false`.
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// The file.
    pub const FILE: &str = "generation_config.json";

    /// Reads `dir/generation_config.json`, or what a GGUF file `dir` has in its place. Without the file nothing is said.
    ///
    /// # Errors
    /// The file cannot be read, or is not a JSON object. Values are checked when they are used.
    pub fn read(dir: &Path) -> Result<Self, EngineError> {
        Ok(Self::of(&read_object(dir, Self::FILE)?))
    }

    fn of(file: &Value) -> Self {
        let number = |name: &str| file[name].as_f64().map(|number| number as f32);
        let greedy = file["do_sample"] == false;
        Self {
            temperature: if greedy {
                Some(0.0)
            } else {
                number("temperature")
            },
            top_k: file["top_k"].as_u64().map(|top_k| top_k as usize),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
        }
    }

    /// The parameters for this model: what it says, and [`SamplingParams::default`] for the rest.
    pub fn params(&self) -> SamplingParams {
        let ours = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(ours.temperature),
            top_k: self.top_k.unwrap_or(ours.top_k),
            top_p: self.top_p.unwrap_or(ours.top_p),
            min_p: self.min_p.unwrap_or(ours.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(ours.repetition_penalty),
            ..ours
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_model_comes_before_our_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            SamplingDefaults::read(dir.path()).unwrap().params(),
            SamplingParams::default()
        );
        let config = r#"{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}"#;
        std::fs::write(dir.path().join(SamplingDefaults::FILE), config).unwrap();
        assert_eq!(
            SamplingDefaults::read(dir.path()).unwrap().params(),
            SamplingParams {
                temperature: 0.6,
                top_k: 20,
                ..SamplingParams::default()
            }
        );
    }

    #[test]
    fn greedy_is_temperature_zero_and_what_is_no_number_is_not_there() {
        let greedy = SamplingDefaults::of(&json!({"do_sample": false, "temperature": 0.6}));
        assert_eq!(greedy.temperature, Some(0.0));
        assert_eq!(
            SamplingDefaults::of(&json!({"do_sample": true, "top_k": null, "temperature": "hot"})),
            SamplingDefaults::default()
        );
    }
}
