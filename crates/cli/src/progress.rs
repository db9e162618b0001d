//! Progress bars on standard error; none when it is not a terminal, or with `--quiet`.

use std::borrow::Cow;

use hf_hub::api::Progress;
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

/// The bar of one download, which also takes down the size that the hub announced.
pub struct DownloadBar<'a> {
    bar: ProgressBar,
    expected: &'a mut Option<u64>,
}

impl<'a> DownloadBar<'a> {
    /// A bar whose length is known when the download starts.
    pub fn new(common: Common, expected: &'a mut Option<u64>) -> Self {
        DownloadBar {
            bar: byte_bar(common, 0, ""),
            expected,
        }
    }
}

impl Progress for DownloadBar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        *self.expected = Some(size as u64);
        self.bar.set_length(size as u64);
        self.bar.set_message(output::one_line(filename));
        self.bar.reset();
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
    }

    fn finish(&mut self) {
        self.bar.finish();
    }
}
