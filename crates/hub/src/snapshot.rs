//! The files that make a model, all of one commit.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Progress;
use crate::address::encoded;
use crate::cache::Repo;
use crate::client::{Ask, Client};
use crate::error::{Error, Fault, Place};
use crate::id::HubId;
use crate::names;
use crate::settings::Settings;
use crate::stream::Stream;
use crate::transfer::{Download, TRIES};

const CONFIG: &str = "config.json";
/// The one file of weights, or the list of several.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The small files we read, where a repository has them.
const SMALL_FILES: [&str; 12] = [
    CONFIG,
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

/// A description has a line a file.
const MAX_INFO_BYTES: usize = 64 << 20;
/// There is something to fall back on.
const TRIES_WITH_CACHE: u32 = 2;

/// What the hub says about a repository.
struct Info {
    commit: String,
    files: BTreeSet<String>,
}

/// A failure, and the file it is about.
type Failure = (Option<String>, Fault);

pub fn fetch(
    id: &HubId,
    settings: &Settings,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    let error = |what: String, fault: Fault| {
        let place = Place {
            hub: settings.endpoint.clone(),
            page: format!("{}/{}", settings.endpoint, id.name),
            cache: settings.cache.clone(),
            token: settings.token.is_some(),
        };
        Error {
            what,
            fault,
            place: Box::new(place),
        }
    };
    let repo = Repo::new(&settings.cache, id);
    if settings.offline {
        return complete(&repo).ok_or_else(|| error(id.label(), Fault::Offline));
    }
    let client = Client::new(settings).map_err(|(what, fault)| error(what.to_owned(), fault))?;
    let mut download = Download {
        settings,
        id,
        repo,
        client,
        progress,
    };
    download.snapshot().map_err(|(file, fault)| match file {
        Some(file) => error(format!("{}: {file}", id.label()), fault),
        None => error(id.label(), fault),
    })
}

/// The snapshot that the cache has of this revision, if it is complete.
fn complete(repo: &Repo<'_>) -> Option<PathBuf> {
    let directory = repo.snapshot(&repo.commit()?);
    let index = directory.join(INDEX);
    let weights = if repo.has(&index) {
        names::shards(&fs::read(index).ok()?).ok()?
    } else {
        BTreeSet::from([WEIGHTS.to_owned()])
    };
    let has = |name: &str| repo.has(&directory.join(name));
    (has(CONFIG) && weights.iter().all(|name| has(name))).then_some(directory)
}

impl Download<'_> {
    fn snapshot(&mut self) -> Result<PathBuf, Failure> {
        let known = complete(&self.repo);
        let tries = if known.is_some() {
            TRIES_WITH_CACHE
        } else {
            TRIES
        };
        let info = match (self.persist(tries, Self::info), known) {
            (Ok(info), _) => info,
            (Err(Fault::Interrupted), _) => return Err((None, Fault::Interrupted)),
            (Err(fault), Some(directory)) => {
                let line = format!(
                    "{} {}; using {} as it is in the cache",
                    self.settings.endpoint,
                    fault.brief(),
                    self.id.label()
                );
                self.progress.notice(&line);
                return Ok(directory);
            }
            (Err(fault), None) => return Err((None, fault)),
        };
        let directory = self.repo.snapshot(&info.commit);
        self.files(&info, &directory)?;
        if !self.id.is_commit() {
            self.refer(&info.commit)
                .map_err(|error| (None, Fault::Cache(error)))?;
        }
        Ok(directory)
    }

    fn info(&mut self) -> Result<Info, Fault> {
        let parts = format!(
            "api/models/{}/revision/{}",
            self.id.name,
            encoded(&self.id.revision)
        );
        let address = self.client.address(&parts)?;
        let answer = self
            .client
            .ask(Ask::Info, address, self.progress)?
            .success()?;
        let stream = Stream::new(answer, self.settings.answer_limit)?;
        let text = stream.all(MAX_INFO_BYTES, self.progress)?;
        let odd = |what: &str| Fault::Answer(format!("it does not describe a model: {what}"));
        let info: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| odd(&error.to_string()))?;
        let commit = info["sha"]
            .as_str()
            .ok_or_else(|| odd("it names no commit"))?;
        let commit = names::commit(commit)
            .ok_or_else(|| odd(&format!("{} is no commit", names::shown(commit))))?;
        let files = info["siblings"]
            .as_array()
            .ok_or_else(|| odd("it lists no files"))?;
        let files = files.iter().filter_map(|file| file["rfilename"].as_str());
        Ok(Info {
            commit: commit.to_owned(),
            files: files.map(str::to_owned).collect(),
        })
    }

    /// Downloads what is missing of the files that make the model. Names that we do not ask for are not looked at.
    fn files(&mut self, info: &Info, directory: &Path) -> Result<(), Failure> {
        if !info.files.contains(CONFIG) {
            let why =
                "the repository has no config.json, so it holds no model in Hugging Face layout";
            return Err((None, Fault::NoModel(why.to_owned())));
        }
        let small = SMALL_FILES
            .into_iter()
            .filter(|name| info.files.contains(*name));
        for name in small {
            self.file(&info.commit, name)
                .map_err(|fault| (Some(name.to_owned()), fault))?;
        }
        for name in weights(info, directory)? {
            self.file(&info.commit, &name)
                .map_err(|fault| (Some(name), fault))?;
        }
        Ok(())
    }

    /// Notes the commit of the revision, in the end. A complete cache that cannot be written is no failure.
    fn refer(&mut self, commit: &str) -> io::Result<()> {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self.repo.refer(commit) {
            Err(error) if [PermissionDenied, ReadOnlyFilesystem].contains(&error.kind()) => {
                let cache = self.settings.cache.display();
                let line = format!(
                    "the cache {cache} cannot be written, so that it does not know which commit {} is: {error}",
                    self.id.label()
                );
                self.progress.notice(&line);
                Ok(())
            }
            done => done,
        }
    }
}

fn weights(info: &Info, directory: &Path) -> Result<BTreeSet<String>, Failure> {
    if info.files.contains(INDEX) {
        let index = fs::read(directory.join(INDEX)).map_err(|error| (None, Fault::Cache(error)))?;
        return names::shards(&index).map_err(|why| {
            (
                None,
                Fault::NoModel(format!("{INDEX} cannot be used: {why}")),
            )
        });
    }
    if info.files.contains(WEIGHTS) {
        return Ok(BTreeSet::from([WEIGHTS.to_owned()]));
    }
    let why = format!(
        "the repository has no {WEIGHTS} and no {INDEX}; choose one with weights in safetensors format"
    );
    Err((None, Fault::NoModel(why)))
}
