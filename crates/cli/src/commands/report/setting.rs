//! What a row of the report is of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sparamx_compress::layer::{self, Pattern};
use sparamx_compress::{Options, Rounding};
use sparamx_model::Precision;

use crate::units;

/// A way to prune, with or without refitting the weights that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// How weights are chosen.
    pub method: Method,
    /// Whether the others are refitted.
    pub refit: bool,
}

/// How weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The smallest.
    Magnitude,
    /// The smallest times the norm of their input.
    Wanda,
    /// Those that the others make up for.
    SparseGpt,
}

/// Numbers of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// bf16.
    Bf16,
    /// int8, a scale for each row.
    Int8,
    /// int4, a scale for each group of columns.
    Int4,
}

/// How weights become int8 and int4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Round {
    /// Each to the nearest.
    Nearest,
    /// With the others making up for the error.
    Gptq,
}

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// How it is pruned; not at all for a sparsity of 0.
    pub way: Option<Way>,
    /// The share of zeros.
    pub sparsity: f64,
    /// The numbers.
    pub weights: Weights,
    /// How they come about; none for bf16.
    pub rounding: Option<Round>,
}

/// Everything that is to be measured.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Ways to prune.
    pub ways: Vec<Way>,
    /// Shares of zeros.
    pub sparsities: Vec<f64>,
    /// Numbers.
    pub weights: Vec<Weights>,
}

impl Grid {
    /// The settings, each once: first dense ones, of which bf16 is the measure of all others, then by sparsity, way and
    /// numbers. Dense int8 and int4 are rounded both ways if any way is calibrated. What is pruned by calibration is rounded by
    /// it too.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        let mut add = |way, sparsity, weights, rounding| {
            let setting = Setting {
                way,
                sparsity,
                weights,
                rounding,
            };
            if !settings.contains(&setting) {
                settings.push(setting);
            }
        };
        add(None, 0.0, Weights::Bf16, None);
        for &weights in self.weights.iter().filter(|&&w| w != Weights::Bf16) {
            add(None, 0.0, weights, Some(Round::Nearest));
            if self.ways.iter().any(|way| way.is_calibrated()) {
                add(None, 0.0, weights, Some(Round::Gptq));
            }
        }
        for &sparsity in self.sparsities.iter().filter(|&&sparsity| sparsity > 0.0) {
            for &way in &self.ways {
                for &weights in &self.weights {
                    let rounding = match way {
                        _ if weights == Weights::Bf16 => None,
                        way if way.is_calibrated() => Some(Round::Gptq),
                        _ => Some(Round::Nearest),
                    };
                    add(Some(way), sparsity, weights, rounding);
                }
            }
        }
        settings
    }
}

impl Way {
    /// All there are.
    pub const ALL: [&'static str; 6] = [
        "magnitude",
        "magnitude+refit",
        "wanda",
        "wanda+refit",
        "sparsegpt",
        "sparsegpt+refit",
    ];

    /// Whether it needs a text that goes through the model.
    pub fn is_calibrated(self) -> bool {
        self.refit || self.method != Method::Magnitude
    }
}

impl Method {
    /// As the library knows it.
    pub fn library(self) -> layer::Method {
        match self {
            Method::Magnitude => layer::Method::Magnitude,
            Method::Wanda => layer::Method::Wanda,
            Method::SparseGpt => layer::Method::SparseGpt,
        }
    }
}

impl Setting {
    /// What `compress` is told.
    pub fn options(&self, group_elems: usize) -> Options {
        let method = self.way.map_or(Method::Magnitude, |way| way.method);
        Options {
            method: method.library(),
            pattern: Pattern::Unstructured(self.sparsity),
            precision: match self.weights {
                Weights::Bf16 => Precision::Bf16,
                Weights::Int8 => Precision::Int8,
                Weights::Int4 => Precision::Int4 { group_elems },
            },
            rounding: match self.rounding {
                Some(Round::Gptq) => Rounding::Compensated,
                Some(Round::Nearest) | None => Rounding::Nearest,
            },
            reconstruct: self.way.is_some_and(|way| way.refit),
            ..Options::default()
        }
    }

    /// How the weights were made, without sparsity and numbers.
    pub fn how(&self) -> String {
        match (self.way, self.rounding) {
            (Some(way), _) => way.to_string(),
            (None, None) => "dense".to_owned(),
            (None, Some(Round::Nearest)) => "dense, nearest".to_owned(),
            (None, Some(Round::Gptq)) => "dense, gptq".to_owned(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.weights)?;
        match (self.way, self.rounding) {
            (Some(way), _) => write!(f, "{} zeros by {way}", units::percent(self.sparsity)),
            (None, None) => f.write_str("dense"),
            (None, Some(Round::Nearest)) => f.write_str("dense, rounded to nearest"),
            (None, Some(Round::Gptq)) => f.write_str("dense, rounded by gptq"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.method {
            Method::Magnitude => "magnitude",
            Method::Wanda => "wanda",
            Method::SparseGpt => "sparsegpt",
        };
        let refit = if self.refit { "+refit" } else { "" };
        write!(f, "{method}{refit}")
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (method, refit) = match text.strip_suffix("+refit") {
            Some(method) => (method, true),
            None => (text, false),
        };
        let method = match method {
            "magnitude" => Method::Magnitude,
            "wanda" => Method::Wanda,
            "sparsegpt" => Method::SparseGpt,
            _ => return Err(format!("one of {} is needed", Way::ALL.join(", "))),
        };
        Ok(Way { method, refit })
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weights::Bf16 => "bf16",
            Weights::Int8 => "int8",
            Weights::Int4 => "int4",
        })
    }
}

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Weights::Bf16, Weights::Int8, Weights::Int4];
        let found = all.into_iter().find(|weights| weights.to_string() == text);
        found.ok_or_else(|| "bf16, int8 or int4 is needed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_once_and_dense_ones_first() {
        let ways = ["magnitude", "wanda+refit"].map(|way| way.parse().unwrap());
        let grid = Grid {
            ways: ways.to_vec(),
            sparsities: vec![0.0, 0.5, 0.5],
            weights: vec![Weights::Int4, Weights::Bf16],
        };
        let name = |setting: &Setting| {
            let rounding = match setting.rounding {
                None => "",
                Some(Round::Nearest) => " n",
                Some(Round::Gptq) => " g",
            };
            format!("{} {}{rounding}", setting.how(), setting.weights)
        };
        let names: Vec<String> = grid.settings().iter().map(name).collect();
        assert_eq!(
            names,
            [
                "dense bf16",
                "dense, nearest int4 n",
                "dense, gptq int4 g",
                "magnitude int4 n",
                "magnitude bf16",
                "wanda+refit int4 g",
                "wanda+refit bf16",
            ]
        );
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in Way::ALL {
            assert_eq!(name.parse::<Way>().unwrap().to_string(), name);
        }
        assert!(
            "wanda+"
                .parse::<Way>()
                .unwrap_err()
                .contains("sparsegpt+refit")
        );
        assert!("fp8".parse::<Weights>().unwrap_err().contains("int8"));
    }
}
