//! How the next token is chosen: options, the defaults of the model, and ours, in this order.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use sparamx_engine::{GenerateParams, SamplingDefaults, SamplingParams};

use crate::args;

/// Options of sampling.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the most probable token [default: the model's, or 0.8]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// Choose among the K most probable tokens; 0 means all [default: the model's, or 0]
    #[arg(long, value_name = "K", value_parser = args::whole::<usize>)]
    top_k: Option<usize>,
    /// Choose among the most probable tokens that together have this probability [default: the model's, or 0.95]
    #[arg(long, value_name = "P", value_parser = share)]
    top_p: Option<f32>,
    /// Leave out tokens with less than this share of the highest probability [default: the model's, or 0]
    #[arg(long, value_name = "P", value_parser = share)]
    min_p: Option<f32>,
    /// Make tokens that are in the text already less probable; 1 changes nothing [default: the model's, or 1]
    #[arg(long, value_name = "R", value_parser = penalty)]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same text [default: another one every time]
    #[arg(long, value_name = "N", value_parser = args::whole::<u64>)]
    seed: Option<u64>,
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |value| value >= 0.0, "0 or more is needed")
}

fn share(text: &str) -> Result<f32, String> {
    number(
        text,
        |value| (0.0..=1.0).contains(&value),
        "a number from 0 to 1 is needed",
    )
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, |value| value > 0.0, "more than 0 is needed")
}

fn number(text: &str, fits: impl Fn(f32) -> bool, wanted: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && fits(value) => Ok(value),
        _ => Err(wanted.to_owned()),
    }
}

impl SamplingArgs {
    /// The parameters for the model in a directory, which has these defaults.
    ///
    /// # Errors
    /// One of them has a value that means nothing.
    pub fn params(&self, defaults: &SamplingDefaults, directory: &Path) -> Result<SamplingParams> {
        let model = defaults.params();
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            min_p: self.min_p.unwrap_or(model.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            // The keys of a hasher are the standard library's only source of randomness.
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
            ..model
        };
        // Options were checked when they were read.
        params.validate().with_context(|| {
            let path = directory.join(SamplingDefaults::FILE);
            format!(
                "{}: choose another value by the option of this name",
                path.display()
            )
        })?;
        Ok(params)
    }
}

/// Changes one parameter, named as in `generation_config.json` or as the option.
///
/// # Errors
/// There is no such parameter; a value that it cannot have.
pub fn set(params: &mut GenerateParams, name: &str, value: &str) -> Result<(), String> {
    fn read<T: std::str::FromStr>(value: &str, to: &mut T) -> Result<(), String> {
        *to = value
            .parse()
            .map_err(|_| format!("'{value}' is not the number that is needed"))?;
        Ok(())
    }
    let mut new = params.clone();
    let sampling = &mut new.sampling;
    match name.trim_start_matches('-').replace('-', "_").as_str() {
        "temperature" => read(value, &mut sampling.temperature)?,
        "top_k" => read(value, &mut sampling.top_k)?,
        "top_p" => read(value, &mut sampling.top_p)?,
        "min_p" => read(value, &mut sampling.min_p)?,
        "repetition_penalty" => read(value, &mut sampling.repetition_penalty)?,
        "seed" => read(value, &mut sampling.seed)?,
        "max_tokens" => read(value, &mut new.max_tokens)?,
        _ => return Err(format!("there is no parameter '{name}' (see /help)")),
    }
    if new.max_tokens == 0 {
        return Err("max_tokens is 0, allowed is 1 or more".to_owned());
    }
    new.sampling.validate().map_err(|error| error.to_string())?;
    *params = new;
    Ok(())
}

/// The parameters that [`set`] changes.
pub fn show(params: &GenerateParams) -> String {
    let sampling = &params.sampling;
    format!(
        "temperature {}, top_k {}, top_p {}, min_p {}, repetition_penalty {}, seed {}, max_tokens {}",
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.seed,
        params.max_tokens
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn options_come_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = r#"{"temperature": 0.6, "top_k": 20}"#;
        fs::write(directory.path().join("generation_config.json"), config).expect("a file");
        let args = SamplingArgs {
            temperature: Some(0.0),
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            seed: Some(7),
        };
        let read = || {
            let defaults = SamplingDefaults::read(directory.path()).expect("defaults");
            args.params(&defaults, directory.path())
        };
        let params = read().expect("parameters");
        assert_eq!(
            (params.temperature, params.top_k, params.top_p, params.seed),
            (0.0, 20, SamplingParams::default().top_p, 7)
        );
        fs::write(
            directory.path().join("generation_config.json"),
            r#"{"top_p": 2.0}"#,
        )
        .expect("a file");
        let error = format!("{:#}", read().expect_err("2 is no share"));
        assert!(
            error.contains("generation_config.json") && error.contains("top_p is 2"),
            "{error}"
        );
    }

    #[test]
    fn parameters_are_set_by_name() {
        let mut params = GenerateParams::default();
        set(&mut params, "top-p", "0.5").expect("a share");
        set(&mut params, "max_tokens", "7").expect("a number");
        assert_eq!((params.sampling.top_p, params.max_tokens), (0.5, 7));
        for (name, value) in [
            ("top_p", "2"),
            ("top_k", "-1"),
            ("max_tokens", "0"),
            ("mood", "1"),
        ] {
            let before = params.clone();
            set(&mut params, name, value).expect_err(name);
            assert_eq!(params, before);
        }
    }
}
