//! Where a model comes from: a directory, a GGUF file, a hub, or the repository itself.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sparamx_format::{FormatError, gguf, lfs};

use crate::cli::Common;
use crate::hub::{self, HubId};

/// The model that ships with the repository, relative to its root.
pub const SHIPPED: &str = "models/stories-5m-50";

/// The directory of a model, or its GGUF file.
///
/// # Errors
/// There is no such directory or file, and no such model on the hub.
pub fn resolve(model: &str, common: Common) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        // What a GGUF file is called does not matter.
        let start = start(path).unwrap_or_default();
        if start.starts_with(gguf::MAGIC) {
            return Ok(path.to_owned());
        }
        if lfs::is_pointer(&start) {
            bail!("{model}: {}", FormatError::LfsPointer);
        }
        bail!(
            "{model}: a file that is not GGUF; give the directory that holds the model, or a GGUF file"
        );
    }
    match HubId::parse(model) {
        Some(id) => hub::fetch(&id, common),
        None => bail!(
            "{model}: no such directory; give a directory in Hugging Face layout, a GGUF file or a hub id such as org/name"
        ),
    }
}

/// The first bytes of a regular file: another one might never give any.
fn start(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = path.is_file().then(|| File::open(path).ok())??;
    file.take(64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// What a report calls the model: the last part of its directory or file, wherever that lies; a hub id is a name already.
pub fn name(model: &str, resolved: &Path) -> String {
    let full = match Path::new(model).exists() {
        true => resolved.canonicalize().ok(),
        false => None,
    };
    let last = full.as_deref().and_then(Path::file_name);
    last.map_or_else(
        || model.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The directory of the model that ships: in the repository this was built from, beside the executable, or in the
/// current directory.
///
/// # Errors
/// It is in none of them.
pub fn shipped() -> Result<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent);
    let roots = [Some(repository.as_path()), beside, Some(Path::new("."))];
    let found = roots
        .into_iter()
        .flatten()
        .map(|root| root.join(SHIPPED))
        .find(|directory| directory.join("config.json").is_file());
    match found {
        Some(directory) => Ok(directory.canonicalize().unwrap_or(directory)),
        None => bail!(
            "the model that ships ({SHIPPED}) is not in the repository, beside the executable or here; name a model: \
             sparamx run MODEL"
        ),
    }
}
