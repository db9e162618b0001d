//! The time that a token may take a grammar.

use std::sync::{Arc, Condvar, Mutex, Once, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

use super::lock;

/// Longest time for a token, in seconds. Real ones take milliseconds, and all requests wait for it.
pub(super) const MOST_SECONDS: u64 = 1;
/// Time between looks at those at work.
const LOOK: Duration = Duration::from_millis(100);

/// Those that may be at work.
static CLOCKS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
/// There is one more.
static ADDED: Condvar = Condvar::new();

/// Ends the work of a matcher that takes too long. All have one thread that looks at them; without it they have no limit.
#[derive(Debug)]
pub(super) struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cancel: CancellationHandle,
    /// When the matcher began what it does.
    since: Mutex<Option<Instant>>,
}

impl Clock {
    /// For the matcher that `cancel` ends.
    pub fn new(cancel: CancellationHandle) -> Self {
        static THREAD: Once = Once::new();
        THREAD.call_once(|| {
            let name = "grammar clock".to_owned();
            // The system may refuse it.
            let _ = thread::Builder::new().name(name).spawn(look);
        });
        let inner = Arc::new(Inner {
            cancel,
            since: Mutex::new(None),
        });
        lock(&CLOCKS).push(Arc::downgrade(&inner));
        ADDED.notify_one();
        Self(inner)
    }

    /// Does work within the time.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        *lock(&self.0.since) = Some(Instant::now());
        let result = work();
        *lock(&self.0.since) = None;
        result
    }

    /// Whether the time was over.
    pub fn is_over(&self) -> bool {
        self.0.cancel.is_cancelled()
    }
}

/// Looks at all clocks as long as there are any.
fn look() {
    let most = Duration::from_secs(MOST_SECONDS);
    let mut clocks = lock(&CLOCKS);
    loop {
        clocks.retain(|clock| clock.strong_count() > 0);
        for clock in clocks.iter().filter_map(Weak::upgrade) {
            if lock(&clock.since).is_some_and(|since| since.elapsed() > most) {
                clock.cancel.cancel();
            }
        }
        clocks = if clocks.is_empty() {
            ADDED.wait(clocks).unwrap_or_else(PoisonError::into_inner)
        } else {
            let waited = ADDED.wait_timeout(clocks, LOOK);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_when_its_time_is_over() {
        let cancel = CancellationHandle::default();
        let (clock, idle) = (
            Clock::new(cancel.clone()),
            Clock::new(CancellationHandle::default()),
        );
        clock.within(|| ());
        let begun = Instant::now();
        let ended = clock.within(|| {
            while !cancel.is_cancelled() && begun.elapsed() < Duration::from_secs(60) {
                thread::sleep(Duration::from_millis(1));
            }
            begun.elapsed()
        });
        assert!(ended >= Duration::from_secs(MOST_SECONDS), "{ended:?}");
        assert!(clock.is_over() && !idle.is_over());
    }
}
