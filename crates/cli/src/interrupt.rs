//! Ctrl-C: the first asks the work under way to end, the second ends the process. SIGTERM likewise, for work that leaves something
//! behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

/// The exit status that shells give a process ended by an interrupt.
const INTERRUPTED: i32 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);
static TERMINATION: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Takes over Ctrl-C for the rest of the process.
///
/// # Errors
/// The system refuses a handler.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            crate::terminal::restore();
            std::process::exit(INTERRUPTED);
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Takes over the signals by which a system ends a process, too.
///
/// # Errors
/// The system refuses a handler.
#[cfg(unix)]
pub fn install_termination() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let asked = TERMINATION.get_or_init(Arc::default);
    for signal in [SIGTERM, SIGHUP] {
        // Of two actions the first registered is the first run, so that this one sees only a second signal.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(asked))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(asked)))
            .context("cannot listen for signals")?;
    }
    Ok(())
}

/// There are no such signals here.
#[cfg(not(unix))]
pub fn install_termination() -> Result<()> {
    Ok(())
}

/// Whether Ctrl-C was pressed since the last [`clear`], or the process is to end.
pub fn asked() -> bool {
    let ending = TERMINATION
        .get()
        .is_some_and(|asked| asked.load(Ordering::Relaxed));
    ending || ASKED.load(Ordering::Relaxed)
}

/// Forgets an earlier Ctrl-C.
pub fn clear() {
    ASKED.store(false, Ordering::Relaxed);
}
