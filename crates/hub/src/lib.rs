//! Models from a Hugging Face hub, kept in the cache that other tools share. No terminal: the caller decides what to do with
//! [`Progress`].
//!
//! The cache has the layout and the locks of the `huggingface_hub` library:
//!
//! ```text
//! models--org--name/refs/main                the commit that a branch or tag stands for
//!                  /blobs/ETAG               the bytes of a file; ETAG.incomplete while they arrive
//!                  /snapshots/COMMIT/NAME    a link to a blob
//! .locks/models--org--name/ETAG.lock         held by who writes the blob
//! ```
//!
//! A reference is written last, so that a snapshot that is found by name is complete.
//!
//! A hub, a mirror and everything in between are not trusted: each name from outside is checked before anything uses it
//! (`names`), nothing is written outside the cache (`cache`), and the token goes to the hub alone (`address`).
#![forbid(unsafe_code)]

mod address;
mod cache;
mod client;
mod error;
mod id;
mod names;
mod progress;
mod proxy;
mod settings;
mod snapshot;
mod stream;
mod transfer;

use std::path::PathBuf;

pub use error::{Error, Fault};
pub use id::HubId;
pub use progress::Progress;
pub use proxy::Proxies;
pub use settings::Settings;

/// The directory that holds the model: its configuration, tokenizer and weights in safetensors format, downloaded as far as they
/// are not in the cache.
///
/// # Errors
/// The hub does not have the model, does not let us have it or cannot be reached and the cache does not have it either; the
/// transfer breaks, again and again; what arrives is not what the hub announced; the cache cannot be written.
pub fn fetch(
    id: &HubId,
    settings: &Settings,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    snapshot::fetch(id, settings, progress)
}
