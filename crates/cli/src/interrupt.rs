//! Signals that end the process: Ctrl-C (SIGINT), SIGTERM and SIGHUP.
//!
//! They end it at once, with the exit status that a shell gives for a signal: 128 and its number. Work that would leave something
//! half done holds a [`Watch`] and looks at [`asked`] now and then: it has the time to tidy up, and only a second signal ends
//! the process at once.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

use anyhow::{Context, Result};

/// What a shell adds to the number of a signal.
const STATUS: i32 = 128;
/// The number of Ctrl-C everywhere.
const SIGINT: i32 = 2;

/// The signal that came; 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// How many [`Watch`]es there are.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Takes over the signals for the rest of the process.
///
/// # Errors
/// The system refuses a handler.
#[cfg(unix)]
pub fn install() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    use signal_hook::iterator::Signals;
    let mut signals = vec![SIGINT, SIGTERM];
    if !ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    let mut signals = Signals::new(signals).context("cannot listen for signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(receive))
        .context("cannot listen for signals")?;
    Ok(())
}

/// Takes over Ctrl-C for the rest of the process.
///
/// # Errors
/// The system refuses a handler.
#[cfg(not(unix))]
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| receive(SIGINT)).context("cannot listen for Ctrl-C")
}

/// Whether the parent process wants a signal ignored, as `nohup` does.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// What is done about a signal, on a thread of its own.
fn receive(signal: i32) {
    let earlier = SIGNAL.swap(signal, SeqCst);
    if earlier == 0 && WATCHES.load(SeqCst) > 0 {
        return;
    }
    // A terminal has a bar in the line of the cursor, or ^C.
    let start = if crate::output::fancy_stderr() {
        "\n"
    } else {
        ""
    };
    crate::output::complain(&format!("{start}error: {Interrupted}"));
    crate::terminal::restore();
    std::process::exit(STATUS + signal);
}

/// Keeps the first signal from ending the process for as long as it lives; its holder looks at [`asked`].
pub struct Watch(());

/// Watches from now on.
pub fn watch() -> Watch {
    WATCHES.fetch_add(1, SeqCst);
    Watch(())
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, SeqCst);
    }
}

/// Whether a signal came, since the last [`clear`] if it was Ctrl-C.
pub fn asked() -> bool {
    SIGNAL.load(SeqCst) != 0
}

/// Ends the work that a signal has asked to end.
///
/// # Errors
/// [`Interrupted`] if one has.
pub fn check() -> Result<(), Interrupted> {
    if asked() { Err(Interrupted) } else { Ok(()) }
}

/// The same for work that is asked to go on or to end.
pub fn flow() -> ControlFlow<()> {
    if asked() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// Forgets an earlier Ctrl-C, where it was about less than the process. What else came stays.
pub fn clear() {
    // It is one of the others if this fails.
    let _ = SIGNAL.compare_exchange(SIGINT, 0, SeqCst, SeqCst);
}

/// The exit status of a process that ends with an error after a signal.
pub fn status() -> Option<u8> {
    let signal = SIGNAL.load(SeqCst);
    (signal != 0).then_some((STATUS + signal) as u8)
}

/// A signal ended the work.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
