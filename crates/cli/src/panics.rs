//! Panics, which are faults of ours: quiet where they are caught, one line where they are not.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use sparamx_engine::panic_message;

/// What the last panic said, and where.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Keeps panics from printing anything until they reach [`caught`]. With `RUST_BACKTRACE` they print what they usually do.
pub fn quiet() {
    if std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!("{place}: "));
        let text = place.unwrap_or_default() + &panic_message(panic.payload());
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }));
}

/// Does some work.
///
/// # Errors
/// It panicked: what the panic said, and where.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    })
}

/// Goes on with a panic that another thread caught: [`caught`] says where it was.
pub fn resume(message: String) -> ! {
    panic::resume_unwind(Box::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_text() {
        assert_eq!(caught(|| 5), Ok(5));
        quiet();
        let text: Result<(), String> = caught(|| panic!("five {}", 5));
        drop(panic::take_hook());
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            let text = text.expect_err("a panic");
            assert!(
                text.contains("panics.rs:") && text.ends_with(": five 5"),
                "{text}"
            );
        }
    }
}
