//! What was measured, in memory and in `results.json`.

use std::fmt;
use std::path::Path;

use anyhow::Result as Outcome;
use serde::{Deserialize, Serialize};
use sparamx_engine::{KvPrecision, KvRule};

use super::super::report::results::{self, File};
use crate::kv::{self, KvSparsity};
use crate::units;

/// Everything measured so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// What all rows have in common.
    pub inputs: Inputs,
    /// The rows, in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// What all rows have in common. Other inputs make another report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The model, by the last part of its name.
    pub model: String,
    /// Texts that perplexity is measured on.
    pub texts: Vec<File>,
    /// Tokens in a window, of which the second half is scored.
    pub ctx: usize,
    /// Recent tokens that are dense.
    pub window: usize,
    /// First tokens that are dense.
    pub sinks: usize,
}

/// A setting and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Bits that an element of an old page takes, masks and padding included.
    pub bits: f64,
    /// Over all texts.
    pub perplexity: f64,
    /// Scored ones.
    pub tokens: usize,
}

/// How old pages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub struct Setting {
    /// The dtype.
    pub precision: KvPrecision,
    /// How elements are chosen; nothing if all are kept.
    pub rule: Option<KvRule>,
    /// The shares of zeros.
    pub sparsity: KvSparsity,
}

/// A [`Setting`] as it is in the file.
#[derive(Serialize, Deserialize)]
struct Names {
    precision: String,
    rule: Option<String>,
    key_sparsity: f64,
    value_sparsity: f64,
}

impl TryFrom<Names> for Setting {
    type Error = String;

    fn try_from(names: Names) -> Result<Self, String> {
        Ok(Setting {
            precision: kv::precision(&names.precision)?,
            rule: names.rule.as_deref().map(kv::rule).transpose()?,
            sparsity: KvSparsity {
                keys: names.key_sparsity,
                values: names.value_sparsity,
            },
        })
    }
}

impl From<Setting> for Names {
    fn from(setting: Setting) -> Self {
        Names {
            precision: setting.precision.to_string(),
            rule: setting.rule.map(|rule| rule.to_string()),
            key_sparsity: setting.sparsity.keys,
            value_sparsity: setting.sparsity.values,
        }
    }
}

impl Setting {
    /// All elements in these numbers.
    pub fn dense(precision: KvPrecision) -> Self {
        Setting {
            precision,
            rule: None,
            sparsity: KvSparsity::default(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KvSparsity { keys, values } = self.sparsity;
        match self.rule {
            None => write!(f, "{}, dense", self.precision),
            Some(rule) => write!(
                f,
                "{}, keys {}, values {}, {rule}",
                self.precision,
                units::percent(keys),
                units::percent(values)
            ),
        }
    }
}

impl Results {
    /// Those in the folder if there are any, or empty ones. The folder is made.
    ///
    /// # Errors
    /// The folder cannot be made; what is there cannot be read, or is of other inputs.
    pub fn open(folder: &Path, inputs: Inputs) -> Outcome<Self> {
        let found = results::open(folder, |found: &Self| found.inputs == inputs)?;
        Ok(found.unwrap_or(Results {
            inputs,
            rows: Vec::new(),
        }))
    }

    /// Writes them: complete, or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Outcome<()> {
        results::save(folder, self)
    }

    /// The row of a setting.
    pub fn row(&self, setting: &Setting) -> Option<&Row> {
        self.rows.iter().find(|row| row.setting == *setting)
    }

    /// Dense bf16, by which the others are measured.
    pub fn dense(&self) -> Option<&Row> {
        self.row(&Setting::dense(KvPrecision::Bf16))
    }
}
