//! Where work on what comes from anyone runs: templates and grammars.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::EngineError;

/// Stack of the thread. Parsers call themselves for what is nested: the longest chain of minus signs that fits in a template
/// was measured to take 70 MB. Only what is used takes memory.
const STACK_BYTES: usize = 1 << 28;

/// Why work has no result.
pub(crate) enum Failure {
    /// It takes too long, or the system gives no thread: with less to do at a time it may succeed.
    Overload(String),
    /// It panicked.
    Panicked(String),
}

impl Failure {
    /// As an error; `fault` makes that of work that panicked.
    pub fn into_error(self, fault: impl FnOnce(String) -> EngineError) -> EngineError {
        match self {
            Self::Overload(error) => EngineError::Overload { error },
            Self::Panicked(error) => fault(error),
        }
    }
}

/// Runs `work` on a thread with a deep stack, called `name`, and does not wait for it longer than `patience`.
///
/// # Errors
/// The system gives no thread; the work panicked; it takes too long, and is left to itself.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (done, result) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = done.send(work());
        })
        .map_err(|e| Failure::Overload(format!("cannot start a thread for the {name}: {e}")))?;
    result.recv_timeout(patience).map_err(|e| match e {
        RecvTimeoutError::Timeout => {
            let seconds = patience.as_secs();
            Failure::Overload(format!("the {name} takes more than {seconds} seconds"))
        }
        RecvTimeoutError::Disconnected => Failure::Panicked(format!("the {name} failed")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_told_apart_from_work_that_fails() {
        let error = |failure: Failure| failure.into_error(|error| EngineError::Grammar { error });
        let patience = Duration::from_secs(60);
        assert!(matches!(run("work", patience, || 5), Ok(5)));
        let (end, ended) = mpsc::channel::<()>();
        let slow = run("work", Duration::ZERO, move || ended.recv()).map_err(error);
        let Err(EngineError::Overload { error: slow }) = slow else {
            panic!("{slow:?}");
        };
        assert_eq!(slow, "the work takes more than 0 seconds");
        drop(end);
        let failed = run::<()>("work", patience, || panic!("on purpose")).map_err(error);
        let failed = failed.unwrap_err();
        assert!(matches!(failed, EngineError::Grammar { .. }), "{failed}");
    }
}
