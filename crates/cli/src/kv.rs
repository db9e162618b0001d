//! Options of the KV cache, the same for all commands that have one.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use sparamx_engine::{KvOptions, KvPrecision, KvRule};

use crate::args::Common;
use crate::{args, output, units};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "KV cache")]
pub struct KvArgs {
    /// Fractions of zeros in keys and in values once they leave the window: K,V or one for both
    #[arg(long = "kv-sparsity", value_name = "K,V", default_value = "0")]
    sparsity: KvSparsity,
    #[command(flatten)]
    pages: KvPageArgs,
    /// Memory for the KV cache, such as 2G: what a prompt leaves there serves later ones with the same prefix
    /// [default: half of what is available]
    #[arg(id = "kv_memory_bytes", long = "kv-memory", value_name = "SIZE", value_parser = units::parse_bytes)]
    memory_bytes: Option<u64>,
}

/// How old keys and values are kept, but for their sparsity.
#[derive(Clone, Copy, Debug, Args)]
pub struct KvPageArgs {
    /// Dtype of keys and values once they leave the window: bf16 or int8
    #[arg(long = "kv-type", value_name = "TYPE", default_value = "bf16", value_parser = precision)]
    pub precision: KvPrecision,
    #[command(flatten)]
    pub kept: KvKeptArgs,
    /// Which of them stay: magnitude (the largest of 64 tokens), token (the largest of each token) or query (keys times the
    /// mean magnitude of the queries) [default: query]
    #[arg(long = "kv-rule", value_name = "RULE", value_parser = rule)]
    rule: Option<KvRule>,
}

/// Which tokens stay as they are.
#[derive(Clone, Copy, Debug, Args)]
pub struct KvKeptArgs {
    /// The most recent tokens that stay dense bf16, rounded up to pages of 64, at least one page [default: 64]
    #[arg(long = "kv-window", value_name = "N", value_parser = args::whole::<usize>)]
    window: Option<usize>,
    /// The first tokens that stay dense bf16, rounded up to pages of 64 [default: 0]
    #[arg(long = "kv-sinks", value_name = "N", value_parser = args::whole::<usize>)]
    sinks: Option<usize>,
}

/// Shares of zeros in keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvSparsity {
    /// In keys.
    pub keys: f64,
    /// In values.
    pub values: f64,
}

/// Reads the dtype of old keys and values.
///
/// # Errors
/// It is none of them.
pub fn precision(text: &str) -> Result<KvPrecision, String> {
    by_name(text, &KvPrecision::ALL)
}

/// Reads the rule by which elements are chosen.
///
/// # Errors
/// It is none of them.
pub fn rule(text: &str) -> Result<KvRule, String> {
    by_name(text, &KvRule::ALL)
}

fn by_name<T: Copy + fmt::Display>(text: &str, all: &[T]) -> Result<T, String> {
    let found = all.iter().find(|one| one.to_string() == text);
    let names: Vec<String> = all.iter().map(T::to_string).collect();
    found
        .copied()
        .ok_or_else(|| format!("one of {} is needed", names.join(", ")))
}

impl KvSparsity {
    /// The mean of both: they have equally many elements.
    pub fn mean(self) -> f64 {
        (self.keys + self.values) / 2.0
    }
}

impl FromStr for KvSparsity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (keys, values) = text.split_once([',', ':']).unwrap_or((text, text));
        Ok(Self {
            keys: args::sparsity(keys)?,
            values: args::sparsity(values)?,
        })
    }
}

/// Settings of `--kv-sparsity` in one value: one of them, or a list by commas where that cannot be a pair, such as `0.3:0.5,0.7`.
#[derive(Clone, Debug, PartialEq)]
pub struct KvSparsities(pub Vec<KvSparsity>);

impl FromStr for KvSparsities {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let commas = text.matches(',').count();
        let is_list = commas > 1 || (commas == 1 && text.contains(':'));
        let settings = text.split(|c| is_list && c == ',');
        let list: Result<_, String> = settings.map(KvSparsity::from_str).collect();
        list.map(KvSparsities)
    }
}

impl fmt::Display for KvSparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys == self.values {
            write!(f, "{}", self.keys)
        } else {
            write!(f, "{}:{}", self.keys, self.values)
        }
    }
}

impl KvArgs {
    /// Says which options change nothing.
    pub fn warn_of_useless(&self, common: Common) {
        self.pages
            .warn_of_useless(self.sparsity.mean() > 0.0, common);
    }

    /// The options of the engine.
    pub fn options(&self) -> KvOptions {
        KvOptions {
            budget_bytes: self.memory_bytes,
            ..self.pages.options(self.sparsity)
        }
    }
}

impl KvPageArgs {
    /// The options of the engine, for one sparsity.
    pub fn options(&self, sparsity: KvSparsity) -> KvOptions {
        self.of(sparsity, self.precision)
    }

    /// The same with another dtype.
    pub fn of(&self, sparsity: KvSparsity, precision: KvPrecision) -> KvOptions {
        let rule = self.rule.unwrap_or(KvRule::Query);
        self.kept.options(sparsity, precision, rule)
    }

    /// Says which options change nothing where no page is pruned or rounded.
    pub fn warn_of_useless(&self, sparse: bool, common: Common) {
        if sparse || self.precision != KvPrecision::Bf16 || common.quiet {
            return;
        }
        let given = [
            ("--kv-rule", self.rule.is_some()),
            ("--kv-window", self.kept.window.is_some()),
            ("--kv-sinks", self.kept.sinks.is_some()),
        ];
        for (option, _) in given.into_iter().filter(|(_, given)| *given) {
            output::complain(&format!(
                "warning: {option} changes nothing without --kv-sparsity or --kv-type int8"
            ));
        }
    }
}

impl KvKeptArgs {
    /// The most recent tokens that stay dense.
    pub fn window(&self) -> usize {
        self.window.unwrap_or(64)
    }

    /// The first tokens that stay dense.
    pub fn sinks(&self) -> usize {
        self.sinks.unwrap_or(0)
    }

    /// The options of the engine, with the rest.
    pub fn options(&self, sparsity: KvSparsity, precision: KvPrecision, rule: KvRule) -> KvOptions {
        KvOptions {
            precision,
            key_sparsity: sparsity.keys as f32,
            value_sparsity: sparsity.values as f32,
            window: self.window(),
            sinks: self.sinks(),
            rule,
            ..KvOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_is_a_pair_or_one_number() {
        let read = |text: &str| text.parse::<KvSparsity>();
        let pair = |keys, values| Ok(KvSparsity { keys, values });
        assert_eq!(read("0.5"), pair(0.5, 0.5));
        assert_eq!(read("0.3,0.5"), pair(0.3, 0.5));
        assert_eq!(read("0:0.7"), pair(0.0, 0.7));
        for text in ["", "1", "0.5,", "0.1,0.2,0.3", "-0.1,0", "NaN"] {
            assert!(read(text).is_err(), "{text}");
        }
        for text in ["0.5", "0.3:0.5"] {
            assert_eq!(read(text).map(|pair| pair.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_list_by_commas_is_one_that_cannot_be_a_pair() {
        let read = |text: &str| -> Result<Vec<String>, String> {
            let list = text.parse::<KvSparsities>()?.0;
            Ok(list.iter().map(KvSparsity::to_string).collect())
        };
        for (text, settings) in [
            ("0.3", &["0.3"][..]),
            ("0.3,0.5", &["0.3:0.5"]),
            ("0.3:0.5", &["0.3:0.5"]),
            ("0.3:0.5,0.7", &["0.3:0.5", "0.7"]),
            ("0,0.3,0.5", &["0", "0.3", "0.5"]),
        ] {
            assert_eq!(read(text).unwrap(), settings, "{text}");
        }
        for text in ["", "0.3,", "0.3,1", "0.1,0.2,", "0.3:0.5:0.7"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
