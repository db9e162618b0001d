//! Ctrl-C: the first asks the work under way to end, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// The exit status that shells give a process ended by an interrupt.
const INTERRUPTED: i32 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C for the rest of the process.
///
/// # Errors
/// The system refuses a handler.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether Ctrl-C was pressed since the last [`clear`].
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Forgets an earlier Ctrl-C.
pub fn clear() {
    ASKED.store(false, Ordering::Relaxed);
}
