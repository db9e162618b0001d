//! What a row of the report is of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sparamx_compress::{Method, Options, Pattern, Rounding};
use sparamx_format::ElementKind;
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

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// How it is pruned; not at all for a sparsity of 0.
    pub way: Option<Way>,
    /// The share of zeros.
    pub sparsity: f64,
    /// Their dtype.
    #[serde(with = "by_name")]
    pub weights: ElementKind,
    /// How they come about; none for bf16.
    pub rounding: Option<Rounding>,
}

/// Everything that is to be measured.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Ways to prune.
    pub ways: Vec<Way>,
    /// Shares of zeros.
    pub sparsities: Vec<f64>,
    /// Dtypes.
    pub weights: Vec<ElementKind>,
}

impl Grid {
    /// The settings, each once: first dense ones, of which bf16 is the measure of all others, then by sparsity, way and
    /// dtype. Dense int8 and int4 are rounded both ways if any way is calibrated. What is pruned by calibration is rounded by
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
        add(None, 0.0, ElementKind::Bf16, None);
        for &weights in self.weights.iter().filter(|&&w| w != ElementKind::Bf16) {
            add(None, 0.0, weights, Some(Rounding::Nearest));
            if self.ways.iter().any(|way| way.is_calibrated()) {
                add(None, 0.0, weights, Some(Rounding::Compensated));
            }
        }
        for &sparsity in self.sparsities.iter().filter(|&&sparsity| sparsity > 0.0) {
            for &way in &self.ways {
                for &weights in &self.weights {
                    let rounding = match way {
                        _ if weights == ElementKind::Bf16 => None,
                        way if way.is_calibrated() => Some(Rounding::Compensated),
                        _ => Some(Rounding::Nearest),
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

impl Setting {
    /// The options of `compress`.
    pub fn options(&self, group_elems: usize) -> Options {
        let method = self.way.map_or(Method::Magnitude, |way| way.method);
        Options {
            method,
            pattern: Pattern::Unstructured(self.sparsity),
            precision: Precision::new(self.weights, group_elems),
            rounding: self.rounding.unwrap_or_default(),
            reconstruct: self.way.is_some_and(|way| way.refit),
            ..Options::default()
        }
    }

    /// How the weights were made, without sparsity and dtype.
    pub fn how(&self) -> String {
        match (self.way, self.rounding) {
            (Some(way), _) => way.to_string(),
            (None, None) => "dense".to_owned(),
            (None, Some(rounding)) => format!("dense, {rounding}"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.weights)?;
        match (self.way, self.rounding) {
            (Some(way), _) => write!(f, "{} zeros by {way}", units::percent(self.sparsity)),
            (None, None) => f.write_str("dense"),
            (None, Some(Rounding::Nearest)) => f.write_str("dense, rounded to nearest"),
            (None, Some(Rounding::Compensated)) => f.write_str("dense, rounded by gptq"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refit = if self.refit { "+refit" } else { "" };
        write!(f, "{}{refit}", self.method)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (method, refit) = match text.strip_suffix("+refit") {
            Some(method) => (method, true),
            None => (text, false),
        };
        let named = Method::ALL.into_iter().find(|one| one.name() == method);
        let method = named.ok_or_else(|| format!("one of {} is needed", Way::ALL.join(", ")))?;
        Ok(Way { method, refit })
    }
}

/// A kind as its name, for `#[serde(with = ...)]`.
mod by_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use sparamx_format::ElementKind;

    /// Writes the name.
    pub fn serialize<S: Serializer>(kind: &ElementKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.name())
    }

    /// Reads the name.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ElementKind, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
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
            weights: vec![ElementKind::Int4, ElementKind::Bf16],
        };
        let name = |setting: &Setting| {
            let rounding = match setting.rounding {
                None => "",
                Some(Rounding::Nearest) => " n",
                Some(Rounding::Compensated) => " g",
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
    }
}
