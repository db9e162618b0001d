//! What is asked for, from the command line and the sparsity file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use sparamx_compress::layer::{self, Pattern};
use sparamx_compress::{Allocation, Options, Rounding, Scope};
use sparamx_model::Precision;

use super::{Allocate, CompressArgs, Method, Reconstruct, RoundingArg, ScopeArg, Weights};
use crate::args::{self, UsageError};
use crate::texts;

/// Columns of a group if nobody says.
const DEFAULT_GROUP: usize = 128;

/// Reads a pattern such as `2:4`.
pub fn pattern(text: &str) -> Result<Pattern, String> {
    let numbers = text
        .split_once(':')
        .and_then(|(keep, of)| Some((keep.parse().ok()?, of.parse::<usize>().ok()?)));
    match numbers {
        Some((keep, of)) if of.is_power_of_two() && of <= 128 && (1..=of).contains(&keep) => {
            Ok(Pattern::NofM { keep, of })
        }
        _ => Err("weights to keep of a power of two up to 128 are needed, such as 2:4".to_owned()),
    }
}

/// The options that the arguments stand for.
///
/// # Errors
/// Arguments that contradict each other, or a sparsity file that cannot be used.
pub fn options(args: &CompressArgs) -> Result<Options> {
    let usage = |message: &str| UsageError(message.to_owned());
    args.calibration.check()?;
    if args.scope.is_some() && args.method == Method::Wanda {
        bail!(usage(
            "--scope is for magnitude and sparsegpt: wanda prunes by row"
        ));
    }
    if args.rounding.is_some() && args.weights == Weights::Bf16 {
        bail!(usage("--rounding is for --weights int8 and int4"));
    }
    if args.allocate == Allocate::Owl && args.pattern.is_some() {
        bail!(usage(
            "--allocate owl is for --sparsity: with --pattern all layers have the same"
        ));
    }
    let mut options = Options {
        method: match args.method {
            Method::Magnitude => layer::Method::Magnitude,
            Method::Wanda => layer::Method::Wanda,
            Method::Sparsegpt => layer::Method::SparseGpt,
        },
        pattern: args.pattern.unwrap_or(Pattern::Unstructured(args.sparsity)),
        patterns: match &args.sparsity_file {
            Some(file) => patterns(file)?,
            None => Vec::new(),
        },
        allocation: match args.allocate {
            Allocate::Uniform => Allocation::Uniform,
            Allocate::Owl => Allocation::Owl,
        },
        skip: args.skip.clone(),
        scope: match args.scope {
            None | Some(ScopeArg::Tensor) => Scope::Tensor,
            Some(ScopeArg::Row) => Scope::Row,
        },
        precision: precision(args)?,
        reconstruct: match args.reconstruct {
            Reconstruct::On => true,
            Reconstruct::Off => false,
            Reconstruct::Auto => args.method != Method::Magnitude,
        },
        include_lm_head: args.include_lm_head,
        resume: args.resume,
        ..Options::default()
    };
    let calibrated = options.needs_calibration().is_some();
    options.rounding = match args.rounding {
        Some(RoundingArg::Gptq) => Rounding::Compensated,
        None if calibrated => Rounding::Compensated,
        None | Some(RoundingArg::Nearest) => Rounding::Nearest,
    };
    check_prunes(&options)?;
    if args.calibration.given() && options.needs_calibration().is_none() {
        bail!(usage(
            "--calibration changes nothing here: give --method wanda or sparsegpt, --reconstruct on or --rounding gptq"
        ));
    }
    Ok(options)
}

/// Refuses to run a text through the model for nothing.
fn check_prunes(options: &Options) -> Result<()> {
    let prunes = |pattern: Pattern| match pattern {
        Pattern::Unstructured(sparsity) => sparsity > 0.0,
        Pattern::NofM { keep, of } => keep < of,
    };
    let common = prunes(options.pattern);
    if options.allocation == Allocation::Owl && !common {
        bail!(UsageError(
            "--allocate owl shares out --sparsity, which is 0".to_owned()
        ));
    }
    let nothing = !common && !options.patterns.iter().any(|&(_, pattern)| prunes(pattern));
    match options.needs_calibration() {
        Some(what) if nothing && options.precision == Precision::Bf16 => {
            bail!(UsageError(format!(
                "nothing to prune, and {what} would run a text through the model: give --sparsity, --pattern or --sparsity-file"
            )))
        }
        _ => Ok(()),
    }
}

/// The numbers asked for.
fn precision(args: &CompressArgs) -> Result<Precision> {
    Ok(match (args.weights, args.group) {
        (Weights::Bf16, None) => Precision::Bf16,
        (Weights::Int8, None) => Precision::Int8,
        (Weights::Int4, group) => Precision::Int4 {
            group_elems: group.unwrap_or(DEFAULT_GROUP),
        },
        (_, Some(_)) => bail!(UsageError(
            "--group is for --weights int4: int8 has a scale for each output row, bf16 has none"
                .to_owned()
        )),
    })
}

/// Reads a sparsity file: names, and a fraction or a pattern for each.
fn patterns(path: &Path) -> Result<Vec<(String, Pattern)>> {
    let name = path.display();
    let text = texts::read(path)?;
    let entries: Map<String, Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{name}: not a JSON object such as {{\"mlp.down_proj\": 0.4}}"))?;
    let entry = |(module, value): (String, Value)| {
        let found = match &value {
            Value::Number(number) => args::sparsity(&number.to_string()).map(Pattern::Unstructured),
            Value::String(text) => pattern(text),
            _ => Err(
                "a fraction of zeros such as 0.5, or a pattern such as \"2:4\" is needed"
                    .to_owned(),
            ),
        };
        match found {
            Ok(pattern) => Ok((module, pattern)),
            Err(error) => bail!("{name}: \"{module}\" is {value}: {error}"),
        }
    };
    entries.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read() {
        for (text, keep, of) in [("2:4", 2, 4), ("4:8", 4, 8), ("8:16", 8, 16), ("1:1", 1, 1)] {
            assert_eq!(pattern(text), Ok(Pattern::NofM { keep, of }), "{text}");
        }
        for text in [
            "", "2", "2:", ":4", "0:4", "5:4", "2:3", "2:256", "-2:4", "2:4:8", "a:b",
        ] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }
}
