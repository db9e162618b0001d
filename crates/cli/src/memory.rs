//! Whether something fits in memory, before it is tried.

use anyhow::{Result, bail};
use sparamx_cpu::topology;
use sparamx_model::Config;
use sparamx_model::plan;

use crate::units;

/// Rows and columns of a matrix in memory are rounded up to whole strips and lines.
const ROWS: u64 = 16;
const COLUMNS: u64 = 32;

/// Refuses what needs more memory than there is.
///
/// # Errors
/// `needed` is more than the system can give.
pub fn check(needed: u64, what: &str, advice: &str) -> Result<()> {
    match topology::available_memory_bytes() {
        Some(available) if needed > available => bail!(
            "{what} need {} of memory and {} are available; {advice}",
            units::bytes(needed),
            units::bytes(available)
        ),
        _ => Ok(()),
    }
}

/// Bytes of the largest matrix as it is made or converted, before it is packed.
pub fn largest_matrix_bytes(config: &Config) -> u64 {
    plan::tensors(config)
        .iter()
        .map(|tensor| matrix_bytes(&tensor.shape))
        .max()
        .unwrap_or(0)
}

fn matrix_bytes(shape: &[usize]) -> u64 {
    match *shape {
        [n, k] => (n as u64).next_multiple_of(ROWS) * (k as u64).next_multiple_of(COLUMNS) * 2,
        _ => shape.iter().map(|&n| n as u64 * 4).sum(),
    }
}
