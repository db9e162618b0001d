//! Models from a hub: what a download says is shown on standard error.

use std::path::PathBuf;

use anyhow::Result;
use indicatif::ProgressBar;
pub use sparamx_hub::HubId;
use sparamx_hub::{Progress, Settings};

use crate::args::Common;
use crate::progress::byte_bar;
use crate::{interrupt, output};

/// The directory that holds the model, downloaded if it is not in the cache.
///
/// # Errors
/// The hub does not have it, does not let us have it or cannot be reached, the transfer breaks, or the disk is full.
pub fn fetch(id: &HubId, common: Common) -> Result<PathBuf> {
    let settings = Settings::from_env(concat!("sparamx/", env!("CARGO_PKG_VERSION")))?;
    let mut bar = DownloadBar {
        common,
        bar: ProgressBar::hidden(),
    };
    let _watch = interrupt::watch();
    Ok(sparamx_hub::fetch(id, &settings, &mut bar)?)
}

/// The bar of the file that is under way.
struct DownloadBar {
    common: Common,
    bar: ProgressBar,
}

impl Progress for DownloadBar {
    fn begin(&mut self, file: &str, bytes: Option<u64>) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
        self.bar = byte_bar(self.common, bytes.unwrap_or(0), output::one_line(file));
    }

    fn at(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    fn end(&mut self) {
        self.bar.finish();
    }

    fn notice(&mut self, line: &str) {
        if !self.common.quiet {
            let line = format!("warning: {}", output::one_line(line));
            self.bar.suspend(|| output::complain(&line));
        }
    }

    fn interrupted(&self) -> bool {
        interrupt::asked()
    }
}
