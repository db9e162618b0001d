//! Progress on standard error: bars on a terminal, a line now and then elsewhere; nothing with `--quiet`.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike,
};

use crate::args::Common;
use crate::output;

/// The time before the first line where there is no terminal, and between later ones.
const FIRST_LINE: Duration = Duration::from_secs(10);
const LATER_LINES: Duration = Duration::from_secs(30);
/// A line is as long as it is: this only has to be longer.
const LINE_WIDTH: u16 = 400;

/// A bar that counts bytes: rate and time left included.
pub fn byte_bar(common: Common, bytes: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    bar(common, bytes, message, 20, BYTES)
}

/// As [`byte_bar`], with room for a longer message.
pub fn layer_bar(common: Common) -> ProgressBar {
    bar(common, 0, "starting", 36, BYTES)
}

/// A bar that counts `unit`s.
pub fn count_bar(
    common: Common,
    total: u64,
    unit: &str,
    message: impl Into<Cow<'static, str>>,
) -> ProgressBar {
    let rest = format!("{{human_pos}}/{{human_len}} {unit} {{rate}} {{left}}");
    bar(common, total, message, 20, &rest)
}

/// A bar for steps that mean nothing to people: how far the work is and the time left.
pub fn work_bar(common: Common, total: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    bar(common, total, message, 24, "{percent} % {left}")
}

/// What a bar of bytes says.
const BYTES: &str = "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {left}";

/// A bar with a message of so many letters and what is said behind it, there from the start.
fn bar(
    common: Common,
    total: u64,
    message: impl Into<Cow<'static, str>>,
    letters: usize,
    rest: &str,
) -> ProgressBar {
    let (target, template) = if common.quiet {
        (ProgressDrawTarget::hidden(), String::new())
    } else if output::fancy_stderr() {
        let template = format!("{{msg:{letters}!}} {{wide_bar}} {rest}");
        (ProgressDrawTarget::stderr_with_hz(10), template)
    } else {
        let target = ProgressDrawTarget::term_like_with_hz(Box::<Lines>::default(), 1);
        (target, format!("{{msg}}: {rest}"))
    };
    let style = ProgressStyle::with_template(&template)
        .expect("a template of ours")
        .with_key("left", left)
        .with_key("rate", rate)
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_message(message);
    // A line about 0 of 0 is of no use.
    if total > 0 || output::fancy_stderr() {
        bar.tick();
    }
    bar
}

/// Steps a second, with as many digits as anybody reads.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    let _ = write!(out, "{:.1}/s", state.per_sec());
}

/// The time left, once it can be estimated.
fn left(state: &ProgressState, out: &mut dyn fmt::Write) {
    if state.pos() > 0 {
        // A failure here cannot be reported.
        let _ = write!(out, "{:#} left", HumanDuration(state.eta()));
    }
}

/// When the next line is due, whichever bar it is of: not before some bar was made.
static NEXT: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether it is time for a line.
fn due() -> bool {
    let now = Instant::now();
    let mut next = lock(&NEXT);
    let due = now >= *next.get_or_insert(now + FIRST_LINE);
    if due {
        *next = Some(now + LATER_LINES);
    }
    due
}

/// What is in it, whatever became of others that looked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what a bar draws, and writes it as a line now and then.
#[derive(Debug, Default)]
struct Lines(Mutex<String>);

impl TermLike for Lines {
    fn width(&self) -> u16 {
        LINE_WIDTH
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        lock(&self.0).push_str(text);
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn flush(&self) -> io::Result<()> {
        let drawn = std::mem::take(&mut *lock(&self.0));
        if !drawn.trim().is_empty() && due() {
            output::complain(&output::one_line(&drawn));
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}
