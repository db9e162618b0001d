//! What the options of several commands share: types to flatten in, parsers of values, and the error of wrong usage.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::{Map, Value};

use crate::units;

/// What all commands take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Common {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// How many threads compute.
#[derive(Clone, Copy, Debug, Args)]
pub struct Threads {
    /// Number of threads [default: the physical cores this process may use]
    #[arg(short, long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<usize>,
}

impl Threads {
    /// The number asked for, or the default of this machine.
    pub fn count(self) -> usize {
        self.threads
            .unwrap_or_else(sparamx_cpu::topology::default_threads)
    }
}

/// How much memory weights may take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Memory {
    /// Memory for weights, such as 12G: packed ones that are faster expanded are expanded within it
    /// [default: 70 % of what is available]
    #[arg(long = "memory", value_name = "SIZE", value_parser = units::parse_bytes)]
    pub memory_bytes: Option<u64>,
}

/// More threads than any machine we know of has is a slip of the finger.
pub const MAX_THREADS: usize = 1024;

fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("a whole number from 1 to {MAX_THREADS} is needed")),
    }
}

/// Reads a whole number that is not negative.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    text.parse().map_err(|_| {
        if digits {
            "the number is too large".to_owned()
        } else {
            "a whole number of at least 0 is needed".to_owned()
        }
    })
}

/// Reads a fraction of zeros: at least 0 and below 1.
pub fn sparsity(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("the fraction of zeros is needed: at least 0 and below 1, such as 0.5".to_owned()),
    }
}

/// Reads one of some values by its name. Help lists them with what is said about each.
pub fn one_of<T: Copy + Send + Sync + 'static>(
    values: &'static [(T, &'static str)],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let listed = values
        .iter()
        .map(|&(value, help)| PossibleValue::new(name(value)).help(help));
    PossibleValuesParser::new(listed).map(move |text| {
        let named = |&&(value, _): &&(T, _)| name(value) == text;
        values.iter().find(named).expect("one of those listed").0
    })
}

/// Reads variables for a chat template: a JSON object.
pub fn variables(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(variables)) if variables.contains_key("messages") => {
            Err("'messages' is the conversation itself".to_owned())
        }
        Ok(Value::Object(variables)) => Ok(variables),
        Ok(_) => Err("an object is needed, such as {\"enable_thinking\": false}".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// Wrong usage that only showed after parsing; ends with exit status 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
