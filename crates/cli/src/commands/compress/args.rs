//! Options of `compress`, and what they and the sparsity file ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use sparamx_compress::{Allocation, Method, Options, Pattern, Rounding, Scope};
use sparamx_format::{ElementKind, GROUP_ELEMS};
use sparamx_model::Precision;

use crate::args::{self, Threads, UsageError};
use crate::calibration::CalibrationArgs;
use crate::texts;

/// Columns of a group by default.
const DEFAULT_GROUP: usize = 128;

/// Options of `compress`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sparamx compress models/stories-5m -o stories-5m-50 --sparsity 0.5 --method sparsegpt
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50 --method wanda --sparsity 0.5 --calibration c4.jsonl
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50-int8 --method sparsegpt --sparsity 0.5 --weights int8
  sparamx compress meta-llama/Llama-3.1-8B -o llama-24 --method sparsegpt --pattern 2:4
  sparamx compress meta-llama/Llama-3.1-8B -o llama-int4 --weights int4 --group 64 --rounding gptq
  sparamx compress meta-llama/Llama-3.1-8B -o llama-50-fast --sparsity 0.5
  sparamx compress a-pruned-model -o a-pruned-model-packed

Weights of the decoder's linear layers become zero, and with --weights int8 or int4 the others are rounded to 8 or 4 bits. Embeddings,
norms and the output head stay as they are. A tensor is packed, with a bitmap of what is not zero, where that makes it smaller.

Magnitude is quick and needs nothing but the model. wanda and sparsegpt run a text through it, layer by layer, and keep more quality.
NAME is one or more consecutive parts of a module's name, * for any characters: layers.0, mlp.down_proj, layers.1*.self_attn.
--sparsity-file is a JSON object such as {\"down_proj\": 0.4, \"layers.0\": 0.3, \"layers.5.mlp\": \"2:4\"}; the last name that fits counts.

The output directory appears when it is complete. A run that is stopped leaves what it has in .DIR.partial beside it: --resume goes
on from there, to the same bytes; without it, remove the directory to begin anew.")]
pub struct CompressArgs {
    /// Directory, GGUF file or hub id of a model that is not packed yet
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Directory to write; it must not exist yet, or be empty
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// How the weights to prune are chosen
    #[arg(long, value_name = "METHOD", default_value = "magnitude", value_parser = args::one_of(&METHODS, Method::name))]
    method: Method,
    /// Fraction of zeros in every pruned tensor; 0 packs the zeros that are there
    #[arg(long, value_name = "FRACTION", default_value = "0", value_parser = args::sparsity)]
    sparsity: f64,
    /// Keep N of every M consecutive weights of a row instead: 2:4, 4:8, 8:16
    #[arg(long, value_name = "N:M", value_parser = pattern, conflicts_with_all = ["sparsity", "scope"])]
    pattern: Option<Pattern>,
    /// Other sparsities for some tensors: a JSON object of names and fractions or N:M
    #[arg(long, value_name = "FILE")]
    pub sparsity_file: Option<PathBuf>,
    /// How the sparsity is shared out among layers
    #[arg(long, value_name = "HOW", default_value = "uniform", value_parser = args::one_of(&ALLOCATIONS, Allocation::name))]
    allocate: Allocation,
    /// Tensors to leave as they are, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Which weights are compared with each other, for magnitude and sparsegpt [default: tensor]
    #[arg(long, value_name = "SCOPE", value_parser = args::one_of(&SCOPES, Scope::name))]
    scope: Option<Scope>,
    /// Refit the kept weights to the outputs of the dense model [default: auto]
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    reconstruct: Reconstruct,
    /// Dtype of the pruned tensors
    #[arg(long, value_name = "FORMAT", default_value = "bf16", value_parser = args::one_of(&WEIGHTS, ElementKind::name))]
    weights: ElementKind,
    /// Columns that share a scale, for int4: 32, 64 or 128 [default: 128]
    #[arg(long, value_name = "COLUMNS", value_parser = group)]
    group: Option<usize>,
    /// How weights become int8 or int4 [default: gptq where there is calibration, else nearest]
    #[arg(long, value_name = "HOW", value_parser = args::one_of(&ROUNDINGS, Rounding::name))]
    rounding: Option<Rounding>,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Prune and quantize the output head too
    #[arg(long)]
    include_lm_head: bool,
    /// Continue a run with the same options that was stopped
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub threads: Threads,
}

/// Ways to choose the weights to prune.
const METHODS: [(Method, &str); 3] = [
    (Method::Magnitude, "Prune the smallest"),
    (
        Method::Wanda,
        "Prune the smallest by weight times the norm of its input, within each output row",
    ),
    (
        Method::SparseGpt,
        "Prune those that the others can best make up for, and change the others accordingly",
    ),
];

/// Ways to share out a sparsity.
const ALLOCATIONS: [(Allocation, &str); 2] = [
    (Allocation::Uniform, "The same in each layer"),
    (
        Allocation::Owl,
        "Less in layers with many outliers, the same in the mean",
    ),
];

/// Ways to round.
const ROUNDINGS: [(Rounding, &str); 2] = [
    (Rounding::Nearest, "Each weight to the nearest"),
    (
        Rounding::Compensated,
        "Column by column, the later ones making up for the error",
    ),
];

/// Sets of weights that are pruned to the same sparsity.
const SCOPES: [(Scope, &str); 2] = [
    (Scope::Tensor, "All weights of a tensor"),
    (Scope::Row, "The weights of each output row"),
];

/// Whether to reconstruct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reconstruct {
    /// Always
    On,
    /// Never
    Off,
    /// For wanda and sparsegpt
    Auto,
}

/// Dtypes of weights.
const WEIGHTS: [(ElementKind, &str); 3] = [
    (ElementKind::Bf16, "bf16, as the model has them"),
    (ElementKind::Int8, "8 bits, and a scale for each output row"),
    (
        ElementKind::Int4,
        "4 bits, and a scale for each group of columns",
    ),
];

/// Reads a number of columns that the format has.
fn group(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(columns) if GROUP_ELEMS.contains(&columns) => Ok(columns),
        _ => Err("a group has 32, 64 or 128 columns".to_owned()),
    }
}

/// Reads a pattern such as `2:4`.
fn pattern(text: &str) -> Result<Pattern, String> {
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
    if args.rounding.is_some() && args.weights == ElementKind::Bf16 {
        bail!(usage("--rounding is for --weights int8 and int4"));
    }
    if args.allocate == Allocation::Owl && args.pattern.is_some() {
        bail!(usage(
            "--allocate owl is for --sparsity: with --pattern all layers have the same"
        ));
    }
    let mut options = Options {
        method: args.method,
        pattern: args.pattern.unwrap_or(Pattern::Unstructured(args.sparsity)),
        patterns: match &args.sparsity_file {
            Some(file) => patterns(file)?,
            None => Vec::new(),
        },
        allocation: args.allocate,
        skip: args.skip.clone(),
        scope: args.scope.unwrap_or_default(),
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
    let usual = if calibrated {
        Rounding::Compensated
    } else {
        Rounding::Nearest
    };
    options.rounding = args.rounding.unwrap_or(usual);
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

/// The dtype asked for.
fn precision(args: &CompressArgs) -> Result<Precision> {
    let precision = Precision::new(args.weights, args.group.unwrap_or(DEFAULT_GROUP));
    if args.group.is_some() && precision.group_elems().is_none() {
        bail!(UsageError(
            "--group is for --weights int4: int8 has a scale for each output row, bf16 has none"
                .to_owned()
        ));
    }
    Ok(precision)
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
    fn nothing_that_the_library_has_is_left_out() {
        assert_eq!(METHODS.map(|(method, _)| method), Method::ALL);
        assert_eq!(ALLOCATIONS.map(|(how, _)| how), Allocation::ALL);
        assert_eq!(ROUNDINGS.map(|(how, _)| how), Rounding::ALL);
        assert_eq!(SCOPES.map(|(scope, _)| scope), Scope::ALL);
    }

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
