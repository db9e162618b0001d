//! Where work on what comes from anyone runs: templates and grammars.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Stack of the thread. Parsers call themselves for what is nested: the longest chain of minus signs that fits in a template
/// was measured to take 70 MB. Only what is used takes memory.
const STACK_BYTES: usize = 1 << 28;

/// Runs `work` on a thread with a deep stack, called `name`, and does not wait for it longer than `patience`.
///
/// # Errors
/// The system gives no thread; the work panicked; it takes too long, and is left to itself.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = done.send(work());
        })
        .map_err(|e| format!("cannot start a thread for it: {e}"))?;
    result.recv_timeout(patience).map_err(|e| match e {
        RecvTimeoutError::Timeout => format!("takes more than {} seconds", patience.as_secs()),
        RecvTimeoutError::Disconnected => format!("the {name} failed"),
    })
}
