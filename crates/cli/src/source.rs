//! Where a model comes from: a directory, a GGUF file, a hub, or the repository itself.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sparamx_format::{FormatError, gguf, lfs};

use crate::args::Common;
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
    match HubId::parse(model).map_or_else(|| at_address(model), |id| Ok(Some(id)))? {
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

/// Whether this is an address, as one copies it from a browser.
pub fn is_address(text: &str) -> bool {
    text.contains("://") || host_and_path(text).is_some()
}

/// What follows the name of the hub in an address.
fn host_and_path(address: &str) -> Option<&str> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme))
        .unwrap_or(address);
    let (host, path) = rest.split_once('/')?;
    ["huggingface.co", "www.huggingface.co", "hf.co"]
        .contains(&host)
        .then_some(path)
}

/// The model at an address of the hub; none for what is no address.
///
/// # Errors
/// An address of something else.
fn at_address(text: &str) -> Result<Option<HubId>> {
    if !is_address(text) {
        return Ok(None);
    }
    let path = host_and_path(text).unwrap_or_default();
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let id = match parts[..] {
        [org, name] => HubId::parse(&format!("{org}/{name}")),
        [org, name, "tree" | "blob" | "resolve", revision] => {
            let revision = revision.replace("%2F", "/");
            HubId::parse(&format!("{org}/{name}@{revision}"))
        }
        _ => None,
    };
    match id {
        Some(id) => Ok(Some(id)),
        None => bail!(
            "{text}: not the address of a model; give its id, org/name or org/name@revision (another hub than \
             huggingface.co by HF_ENDPOINT)"
        ),
    }
}

/// What a report calls the model: the last part of its directory or file, wherever that lies; a hub id is a name already.
pub fn name(model: &str, resolved: &Path) -> String {
    let full = if Path::new(model).exists() {
        resolved.canonicalize().ok()
    } else {
        None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_hub_is_a_model() {
        for (address, name, revision) in [
            ("https://huggingface.co/org/name", "org/name", "main"),
            ("https://huggingface.co/org/name/", "org/name", "main"),
            ("huggingface.co/org/name?library=x", "org/name", "main"),
            ("https://hf.co/org/name/tree/v1.0", "org/name", "v1.0"),
            (
                "https://huggingface.co/org/name/tree/refs%2Fpr%2F1",
                "org/name",
                "refs/pr/1",
            ),
        ] {
            let id = at_address(address).expect(address).expect(address);
            assert_eq!((id.name.as_str(), id.revision.as_str()), (name, revision));
        }
        for other in [
            "https://huggingface.co/org",
            "https://huggingface.co/datasets/org/name",
            "https://huggingface.co/org/name/resolve/main/model.safetensors",
            "https://example.com/org/name",
        ] {
            let error = at_address(other).expect_err(other).to_string();
            assert!(error.contains("org/name"), "{error}");
        }
        assert!(at_address("org/name").expect("no address").is_none());
    }
}
