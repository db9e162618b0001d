//! Progress bars on standard error; none when it is not a terminal, or with `--quiet`.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Common;
use crate::output;

/// A bar that counts bytes: rate and time left included.
pub fn byte_bar(common: Common, bytes: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    bar(
        common,
        bytes,
        message,
        "{msg:20!} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left",
    )
}

/// As [`byte_bar`], with room for a longer message.
pub fn layer_bar(common: Common) -> ProgressBar {
    bar(
        common,
        0,
        "starting",
        "{msg:48!} {wide_bar} {bytes}/{total_bytes} {decimal_bytes_per_sec} {eta} left",
    )
}

/// A bar that counts `unit`s.
pub fn count_bar(
    common: Common,
    total: u64,
    unit: &str,
    message: impl Into<Cow<'static, str>>,
) -> ProgressBar {
    let template = format!(
        "{{msg:20!}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}} left"
    );
    bar(common, total, message, &template)
}

/// A bar for steps that mean nothing to people: how far the work is and the time left.
pub fn work_bar(common: Common, total: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    bar(
        common,
        total,
        message,
        "{msg:24!} {wide_bar} {percent} % {eta} left",
    )
}

fn bar(
    common: Common,
    total: u64,
    message: impl Into<Cow<'static, str>>,
    template: &str,
) -> ProgressBar {
    let target = if common.quiet || !output::fancy_stderr() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr_with_hz(10)
    };
    let style = ProgressStyle::with_template(template)
        .expect("a template of ours")
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_message(message)
}
