//! What `quantization_config` says about packed weights.

use std::fmt;

use super::fields::Fields;
use crate::ModelError;

/// The numbers that packed and quantized weights of a checkpoint consist of. Tensors that are neither are F32, F16 or BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bf16 values.
    Bf16,
    /// int8 levels with a scale a row.
    Int8,
    /// int4 levels with a scale for each row and group of columns.
    Int4 {
        /// Columns of a group: 32, 64 or 128.
        group_elems: usize,
    },
}

impl Precision {
    /// The name in `quantization_config.weights` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 { .. } => "int4",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Precision::Int4 { group_elems } => write!(f, " in groups of {group_elems}"),
            _ => Ok(()),
        }
    }
}

/// Reads `quantization_config`, if there is one: it must be of this program; any other method is refused.
pub(super) fn read(fields: &Fields) -> Result<Option<Precision>, ModelError> {
    let Some(quantization) = fields.object("quantization_config")? else {
        return Ok(None);
    };
    let method = match quantization.optional_text("quant_method")? {
        Some("sparamx") => None,
        Some(other) => Some(format!("'{other}'")),
        None => Some("a method that quantization_config does not name".to_owned()),
    };
    if let Some(method) = method {
        return Err(ModelError::UnsupportedQuantization {
            path: fields.path().to_owned(),
            method,
        });
    }
    let layout = quantization
        .optional_text("layout")?
        .ok_or_else(|| quantization.missing("layout"))?;
    if layout != "strip16" {
        return Err(quantization.bad("layout", layout, "strip16"));
    }
    let version = quantization.size("version")?;
    if version != 1 {
        return Err(quantization.bad("version", version, "1: this file is from a newer sparamx"));
    }
    let group = quantization.optional_size("group_size")?;
    match (quantization.optional_text("weights")?, group) {
        (None | Some("bf16"), None) => Ok(Some(Precision::Bf16)),
        (Some("int8"), None) => Ok(Some(Precision::Int8)),
        (Some("int4"), Some(group_elems @ (32 | 64 | 128))) => {
            Ok(Some(Precision::Int4 { group_elems }))
        }
        (Some("int4"), None) => Err(quantization.missing("group_size")),
        (Some("int4"), Some(group)) => Err(quantization.bad("group_size", group, "32, 64 or 128")),
        (None | Some("bf16" | "int8"), Some(group)) => {
            Err(quantization.bad("group_size", group, "no group: only int4 has one"))
        }
        (Some(other), _) => Err(quantization.bad("weights", other, "bf16, int8 or int4")),
    }
}
