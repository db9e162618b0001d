//! The limits of templates: they come with the weights, from anyone.

use std::time::Duration;

use crate::apart::{self, Failure};

/// Longest template, in bytes. Those of real models have up to 20 kB; what is nested in a template cannot be deeper than this.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 18;
/// Work of one rendering, in the units of minijinja: an instruction, or 64 bytes of text that is made. So 64 MB at most.
pub(super) const FUEL: u64 = 1_000_000;
/// For what is not counted as work: comparing lists that contain each other many times, say. Real prompts take milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `work` on a template.
///
/// # Errors
/// As [`apart::run`].
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    apart::run("chat template", PATIENCE, work)
}
