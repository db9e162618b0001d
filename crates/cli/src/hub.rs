//! Models from a Hugging Face hub, kept in the cache that other tools share.
//!
//! Environment: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE` mean what they
//! mean to the `huggingface_hub` library. A reference to a snapshot is written last, so that a snapshot that can be
//! found by name is complete.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::cli::Common;
use crate::output;
use crate::progress::DownloadBar;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";

/// How often a file is tried whose transfer breaks; what has arrived is kept in between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// The one file of weights, or the list of several.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The small files we read, where a repository has them.
const SMALL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// The name of a model on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub name: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl HubId {
    /// Reads `org/name` or `org/name@revision`; `None` for anything that cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let (org, model) = name.split_once('/')?;
        let word = |word: &str| {
            !word.is_empty()
                && !word.starts_with(['.', '-'])
                && !word.contains("..")
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let revision_fits = !revision.is_empty() && revision.split('/').all(word);
        (word(org) && word(model) && revision_fits).then(|| HubId {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }
}

/// Where the hub and the cache are, and how we are known there.
struct Settings {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

impl Settings {
    fn from_env() -> Result<Settings> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = match set("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => match set("XDG_CACHE_HOME") {
                Some(cache) => PathBuf::from(cache).join("huggingface"),
                None => std::env::home_dir()
                    .context("no home directory to keep models in; set HF_HOME")?
                    .join(".cache/huggingface"),
            },
        };
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        let yes =
            |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Ok(Settings {
            endpoint: set("HF_ENDPOINT")
                .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
        })
    }
}

/// The directory that holds the model, downloaded if it is not in the cache.
///
/// # Errors
/// The hub does not have it, does not let us have it or cannot be reached, the transfer breaks, or the disk is full.
pub fn fetch(id: &HubId, common: Common) -> Result<PathBuf> {
    let settings = Settings::from_env()?;
    if settings.offline {
        return cached(&settings, id).with_context(|| {
            format!(
                "{}: not complete in the cache {}, and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE",
                label(id),
                settings.cache.display()
            )
        });
    }
    Download::new(&settings, id, common)?.run()
}

/// The snapshot that the cache has under this name, if it is complete.
fn cached(settings: &Settings, id: &HubId) -> Option<PathBuf> {
    let repo = Cache::new(settings.cache.clone()).repo(id.repo());
    let directory = repo.get("config.json")?.parent()?.to_owned();
    let weights = match fs::read(directory.join(INDEX)) {
        Ok(index) => shards(&index).ok()?,
        Err(_) => BTreeSet::from([WEIGHTS.to_owned()]),
    };
    weights
        .iter()
        .all(|file| directory.join(file).exists())
        .then_some(directory)
}

/// The files that an index of shards names.
fn shards(index: &[u8]) -> Result<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(index)?;
    let map = index["weight_map"]
        .as_object()
        .context("it has no weight_map")?;
    let plain =
        |name: &str| name.ends_with(".safetensors") && Path::new(name).components().count() == 1;
    let name = |value: &serde_json::Value| match value.as_str() {
        Some(name) if plain(name) => Ok(name.to_owned()),
        _ => Err(anyhow!(
            "its weight_map names {value}, which is no .safetensors file beside it"
        )),
    };
    map.values().map(name).collect()
}

fn label(id: &HubId) -> String {
    if id.revision == DEFAULT_REVISION {
        id.name.clone()
    } else {
        format!("{}@{}", id.name, id.revision)
    }
}

/// One download of one snapshot.
struct Download<'a> {
    settings: &'a Settings,
    id: &'a HubId,
    api: Api,
    common: Common,
}

/// A commit of a repository, and where the cache keeps it.
struct Snapshot {
    repo: ApiRepo,
    directory: PathBuf,
}

impl<'a> Download<'a> {
    fn new(settings: &'a Settings, id: &'a HubId, common: Common) -> Result<Self> {
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_user_agent("sparamx", env!("CARGO_PKG_VERSION"))
            .build()
            .context("cannot prepare the download")?;
        Ok(Download {
            settings,
            id,
            api,
            common,
        })
    }

    fn run(&self) -> Result<PathBuf> {
        let info = match self.info() {
            Ok(info) => info,
            Err(error) => return self.without_hub(&error),
        };
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            // It becomes the name of a directory.
            bail!(
                "{}: {} names no commit; check HF_ENDPOINT",
                label(self.id),
                self.settings.endpoint
            );
        }
        let snapshot = self.snapshot(&info);
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        if !has("config.json") {
            bail!(
                "{}: the repository has no config.json, so it holds no model in Hugging Face layout",
                label(self.id)
            );
        }
        for name in SMALL_FILES.into_iter().filter(|name| has(name)) {
            self.file(&snapshot, name)?;
        }
        for name in self.weights(&snapshot.directory, &has)? {
            self.file(&snapshot, &name)?;
        }
        Cache::new(self.settings.cache.clone())
            .repo(self.id.repo())
            .create_ref(&info.sha)
            .with_context(|| {
                format!(
                    "cannot write to the cache {}",
                    self.settings.cache.display()
                )
            })?;
        Ok(snapshot.directory)
    }

    /// The state of the repository that the hub described: later changes to the branch do not mix with it.
    fn snapshot(&self, info: &RepoInfo) -> Snapshot {
        let repo = Repo::with_revision(self.id.name.clone(), RepoType::Model, info.sha.clone());
        let cache = Cache::new(self.settings.cache.clone()).repo(repo.clone());
        Snapshot {
            directory: cache.pointer_path(&info.sha),
            repo: self.api.repo(repo),
        }
    }

    fn info(&self) -> Result<RepoInfo, ApiError> {
        self.api.repo(self.id.repo()).info()
    }

    /// What to do when the hub does not describe the model: use the cache if the hub is out of reach.
    fn without_hub(&self, error: &ApiError) -> Result<PathBuf> {
        let line = self.explain(error, "");
        if status(error).is_some() {
            return Err(line);
        }
        let directory = cached(self.settings, self.id).ok_or(line)?;
        if !self.common.quiet {
            output::complain(&format!(
                "warning: {} cannot be reached; using {} as it is in the cache",
                self.settings.endpoint,
                label(self.id)
            ));
        }
        Ok(directory)
    }

    fn weights(&self, directory: &Path, has: &dyn Fn(&str) -> bool) -> Result<BTreeSet<String>> {
        if has(INDEX) {
            let path = directory.join(INDEX);
            let index =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return shards(&index)
                .with_context(|| format!("{}: {INDEX} cannot be used", label(self.id)));
        }
        if has(WEIGHTS) {
            return Ok(BTreeSet::from([WEIGHTS.to_owned()]));
        }
        bail!(
            "{}: the repository has no {WEIGHTS} and no {INDEX}; choose one with weights in safetensors format",
            label(self.id)
        )
    }

    /// One file of the snapshot, from the cache or the hub, its size checked.
    fn file(&self, snapshot: &Snapshot, name: &str) -> Result<PathBuf> {
        let cached = snapshot.directory.join(name);
        if cached.exists() {
            return Ok(cached);
        }
        let mut attempt = 1;
        loop {
            let mut expected = None;
            let bar = DownloadBar::new(self.common, &mut expected);
            match snapshot.repo.download_with_progress(name, bar) {
                Ok(path) => return self.sized(path, expected, name),
                Err(error) if attempt < ATTEMPTS && broken_transfer(&error) => {
                    std::thread::sleep(PAUSE * attempt);
                    attempt += 1;
                }
                Err(error) => return Err(self.explain(&error, name)),
            }
        }
    }

    /// A file whose size is not what the hub announced is of no use, nor to be found again.
    fn sized(&self, path: PathBuf, expected: Option<u64>, name: &str) -> Result<PathBuf> {
        let bytes = fs::metadata(&path).map(|data| data.len());
        let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
        match expected {
            Some(expected) if expected != bytes => {
                if let Ok(blob) = fs::canonicalize(&path) {
                    let _ = fs::remove_file(blob);
                }
                let _ = fs::remove_file(&path);
                bail!(
                    "{}: {name} arrived with {bytes} of {expected} bytes and was removed; run the command again",
                    label(self.id)
                )
            }
            _ => Ok(path),
        }
    }

    /// What went wrong, for people, and what to do.
    fn explain(&self, error: &ApiError, file: &str) -> anyhow::Error {
        let endpoint = &self.settings.endpoint;
        let what = if file.is_empty() {
            label(self.id)
        } else {
            format!("{}: {file}", label(self.id))
        };
        let page = format!("{endpoint}/{}", self.id.name);
        match (status(error), &self.settings.token) {
            (Some(401), None) => anyhow!(
                "{what}: {endpoint} wants to know who asks (401): the model is gated, private or does not exist; \
                 check the name, ask for access on {page} and set HF_TOKEN"
            ),
            (Some(401), Some(_)) => anyhow!(
                "{what}: {endpoint} does not accept the token (401); check HF_TOKEN, and the name of the model"
            ),
            (Some(403), _) => anyhow!(
                "{what}: access refused by {endpoint} (403): the model is gated; ask for access on {page} and set \
                 HF_TOKEN to a token that may read it"
            ),
            (Some(404), _) => anyhow!(
                "{what}: not on {endpoint} (404), and no directory of that name is here; check the name and the revision"
            ),
            (Some(429), _) => anyhow!(
                "{what}: {endpoint} got too many requests (429); wait a few minutes, or set HF_TOKEN"
            ),
            (Some(code), _) => {
                anyhow!("{what}: {endpoint} answered with status {code}; try again later")
            }
            (None, _) => self.explain_transfer(error, &what),
        }
    }

    fn explain_transfer(&self, error: &ApiError, what: &str) -> anyhow::Error {
        let endpoint = &self.settings.endpoint;
        let cache = self.settings.cache.display();
        match (error, io_kind(error)) {
            (_, Some(io::ErrorKind::StorageFull)) => anyhow!(
                "{what}: the disk of the cache {cache} is full; make room, or set HF_HOME to a directory on another disk"
            ),
            (ApiError::LockAcquisition(lock), _) => anyhow!(
                "{what}: another process is downloading it ({}); wait until it is done",
                lock.display()
            ),
            (ApiError::IoError(_), Some(io::ErrorKind::PermissionDenied)) => anyhow!(
                "{what}: the cache {cache} cannot be written: {error}; set HF_HOME to a directory of yours"
            ),
            (ApiError::IoError(_), _) => anyhow!(
                "{what}: the download from {endpoint} broke off: {error}; run the command again, it goes on where it stopped"
            ),
            (ApiError::RequestError(_), _) => anyhow!(
                "{what}: {endpoint} cannot be reached: {error}; check the network, or give a directory"
            ),
            _ => anyhow!(
                "{what}: {endpoint} gave an answer we do not understand: {error}; check HF_ENDPOINT"
            ),
        }
    }
}

/// The HTTP status of the answer, if the error is one.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

fn io_kind(error: &ApiError) -> Option<io::ErrorKind> {
    match error {
        ApiError::IoError(error) => Some(error.kind()),
        ApiError::RequestError(error) => match &**error {
            ureq::Error::Io(error) => Some(error.kind()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether to try again at once: the connection broke, and no local failure is behind it.
fn broken_transfer(error: &ApiError) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Other, TimedOut, UnexpectedEof};
    let kinds = [
        ConnectionAborted,
        ConnectionReset,
        Other,
        TimedOut,
        UnexpectedEof,
    ];
    io_kind(error).is_some_and(|kind| kinds.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_recognized() {
        let id = HubId::parse("meta-llama/Llama-3.1-8B").expect("a name");
        assert_eq!(
            (id.name.as_str(), id.revision.as_str()),
            ("meta-llama/Llama-3.1-8B", "main")
        );
        let id = HubId::parse("a/b@refs/pr/1").expect("a name with a revision");
        assert_eq!(
            (id.name.as_str(), id.revision.as_str()),
            ("a/b", "refs/pr/1")
        );
        for text in [
            "gpt2", "./a/b", "../a", "/a/b", "a/b/c", "a/", "a/b@", "a/b@../c", "a b/c", "~/a",
            "a/b?c",
        ] {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let index = br#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}}"#;
        let names: Vec<String> = shards(index).expect("an index").into_iter().collect();
        assert_eq!(names, ["x-1.safetensors", "x-2.safetensors"]);
        for wrong in [
            &br#"{"weight_map": {"a": "../x.safetensors"}}"#[..],
            br#"{"weight_map": {"a": "x.bin"}}"#,
            br#"{"weight_map": {"a": 1}}"#,
            br#"{}"#,
            b"nonsense",
        ] {
            assert!(shards(wrong).is_err());
        }
    }
}
