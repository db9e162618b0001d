//! What `quantization_config` says about how weights are stored.

use super::fields::Fields;
use super::precision::Precision;
use crate::ModelError;

/// How the weights of a checkpoint are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// As F32, F16 or BF16.
    Plain,
    /// As this program packs them.
    Packed(Precision),
    /// As the package compressed-tensors does.
    CompressedTensors,
}

/// Reads `quantization_config`, if there is one: it must be of this program or of compressed-tensors; any other method is
/// refused. Old versions of compressed-tensors had `compression_config`, or `sparsity_config` at the top.
pub(super) fn read(fields: &Fields) -> Result<Storage, ModelError> {
    let unsupported = |method: String| ModelError::UnsupportedQuantization {
        path: fields.path().to_owned(),
        method,
    };
    for old in ["quantization_config", "compression_config"] {
        let Some(config) = fields.object(old)? else {
            continue;
        };
        return match config.optional_text("quant_method")? {
            Some("sparamx") => packed(&config).map(Storage::Packed),
            Some("compressed-tensors") => compressed_tensors(&config, unsupported),
            None if config.get("sparsity_config").is_some() => {
                compressed_tensors(&config, unsupported)
            }
            Some(other) => Err(unsupported(format!("'{other}'"))),
            None => Err(unsupported(format!("a method that {old} does not name"))),
        };
    }
    match fields.object("sparsity_config")? {
        Some(sparsity) => sparse(&sparsity, unsupported),
        None => Ok(Storage::Plain),
    }
}

/// Checks that all formats which a configuration of compressed-tensors names are among those that are read. What each tensor
/// is stored as, its names and type say.
fn compressed_tensors(
    config: &Fields,
    unsupported: impl Fn(String) -> ModelError,
) -> Result<Storage, ModelError> {
    let check = |fields: &Fields| match fields.optional_text("format")? {
        None | Some("dense" | "int-quantized" | "naive-quantized" | "pack-quantized") => Ok(()),
        Some("mixed-precision" | "sparse-bitmask" | "sparse-24-bitmask") => Ok(()),
        Some(other) => Err(unsupported(format!("compressed-tensors format '{other}'"))),
    };
    check(config)?;
    if let Some(groups) = config.object("config_groups")? {
        for name in groups.objects() {
            let Some(group) = groups.object(name)? else {
                continue;
            };
            check(&group)?;
            let Some(weights) = group.object("weights")? else {
                continue;
            };
            let bits = weights.optional_size("num_bits")?.unwrap_or(8);
            let kind = weights.optional_text("type")?.unwrap_or("int");
            if kind != "int" || !matches!(bits, 4 | 8) {
                return Err(unsupported(format!(
                    "compressed-tensors, weights of type '{kind}' in {bits} bits"
                )));
            }
        }
    }
    match config.object("sparsity_config")? {
        Some(sparsity) => sparse(&sparsity, unsupported),
        None => Ok(Storage::CompressedTensors),
    }
}

fn sparse(
    sparsity: &Fields,
    unsupported: impl Fn(String) -> ModelError,
) -> Result<Storage, ModelError> {
    match sparsity.optional_text("format")? {
        // `{}` is what is written when there is nothing to say.
        None | Some("dense" | "sparse-bitmask" | "sparse_bitmask" | "sparse-24-bitmask") => {
            Ok(Storage::CompressedTensors)
        }
        Some(other) => Err(unsupported(format!("compressed-tensors format '{other}'"))),
    }
}

/// Reads what this program wrote.
fn packed(quantization: &Fields) -> Result<Precision, ModelError> {
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
        (None | Some("bf16"), None) => Ok(Precision::Bf16),
        (Some("int8"), None) => Ok(Precision::Int8),
        (Some("int4"), Some(group_elems @ (32 | 64 | 128))) => Ok(Precision::Int4 { group_elems }),
        (Some("int4"), None) => Err(quantization.missing("group_size")),
        (Some("int4"), Some(group)) => Err(quantization.bad("group_size", group, "32, 64 or 128")),
        (None | Some("bf16" | "int8"), Some(group)) => {
            Err(quantization.bad("group_size", group, "no group: only int4 has one"))
        }
        (Some(other), _) => Err(quantization.bad("weights", other, "bf16, int8 or int4")),
    }
}
