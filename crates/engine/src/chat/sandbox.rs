//! Where templates run: they come with the weights, from anyone.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Longest template, in bytes. Those of real models have up to 20 kB; what is nested in a template cannot be deeper than this.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 18;
/// Stack of the thread. The parser and the compiler call themselves for each operator of a chain, and the longest chain that
/// fits in a template, of minus signs, was measured to take 70 MB. Only what is used takes memory.
const STACK_BYTES: usize = 1 << 28;
/// Work of one rendering, in the units of minijinja: an instruction, or 64 bytes of text that is made. So 64 MB at most.
pub(super) const FUEL: u64 = 1_000_000;
/// For what is not counted as work: comparing lists that contain each other many times, say. Real prompts take milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `work` on a thread with a deep stack, and does not wait for it for ever.
///
/// # Errors
/// The system gives no thread; the work panicked; it takes too long, and is left to itself.
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("chat template".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = done.send(work());
        })
        .map_err(|e| format!("cannot start a thread for it: {e}"))?;
    result.recv_timeout(PATIENCE).map_err(|e| match e {
        RecvTimeoutError::Timeout => format!("takes more than {} seconds", PATIENCE.as_secs()),
        RecvTimeoutError::Disconnected => "the template engine failed".to_owned(),
    })
}
