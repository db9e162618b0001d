//! A cache of a test, and downloads into it.
#![allow(dead_code)] // Every test binary uses its own part.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sparamx_hub::{Error, HubId, Progress, Settings};
use sparamx_testkit::hub::{COMMIT, Files, MODEL};
use sparamx_testkit::names;

/// A cache of a test, in a directory that holds something else, too.
pub struct Cache {
    around: tempfile::TempDir,
}

impl Cache {
    pub fn new() -> Cache {
        let around = tempfile::tempdir().expect("a directory");
        fs::create_dir(around.path().join("outside")).expect("a directory");
        fs::write(around.path().join("outside/file"), "mine").expect("a file");
        Cache { around }
    }

    pub fn path(&self) -> PathBuf {
        self.around.path().join("hub")
    }

    pub fn outside(&self) -> PathBuf {
        self.around.path().join("outside")
    }

    pub fn repo(&self) -> PathBuf {
        self.path().join("models--acme--tiny")
    }

    pub fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    /// Names of files in `blobs`, sorted.
    pub fn blobs(&self) -> Vec<String> {
        let blobs = self.repo().join("blobs");
        if blobs.exists() {
            names(&blobs)
        } else {
            Vec::new()
        }
    }

    /// Settings for this hub, without patience.
    pub fn settings(&self, endpoint: &str) -> Settings {
        Settings {
            pause: Duration::from_millis(5),
            answer_limit: Duration::from_secs(1),
            transfer_limit: Duration::from_secs(1),
            ..Settings::new(endpoint, &self.path())
        }
    }

    /// Puts a complete snapshot there as `huggingface_hub` does; `reference` is what `refs/main` says.
    pub fn fill(&self, files: &Files, reference: Option<&str>) {
        for folder in ["blobs", "refs"] {
            fs::create_dir_all(self.repo().join(folder)).expect("a directory");
        }
        fs::create_dir_all(self.snapshot()).expect("a directory");
        for (name, bytes) in &files.0 {
            let etag = files.etag(name);
            fs::write(self.repo().join("blobs").join(&etag), bytes).expect("a blob");
            #[cfg(unix)]
            std::os::unix::fs::symlink(format!("../../blobs/{etag}"), self.snapshot().join(name))
                .expect("a link");
        }
        if let Some(reference) = reference {
            fs::write(self.repo().join("refs/main"), reference).expect("a reference");
        }
    }

    /// Checks that nothing outside the cache was touched, and that no link leads out.
    #[track_caller]
    pub fn is_contained(&self) {
        assert_eq!(names(&self.outside()), ["file"]);
        assert_eq!(
            fs::read(self.outside().join("file")).expect("a file"),
            b"mine"
        );
        for name in names(self.around.path()) {
            assert!(name == "hub" || name == "outside", "{name:?}");
        }
    }
}

/// What a download said.
#[derive(Default)]
pub struct Watch {
    pub notices: Arc<Mutex<Vec<String>>>,
    pub at: Arc<AtomicU64>,
    /// Interrupt when so many bytes of a file are there.
    pub stop_at: Option<u64>,
}

impl Progress for Watch {
    fn begin(&mut self, _: &str, _: Option<u64>) {}

    fn at(&mut self, bytes: u64) {
        self.at.store(bytes, Ordering::Relaxed);
    }

    fn end(&mut self) {}

    fn notice(&mut self, line: &str) {
        self.notices.lock().expect("no panic").push(line.to_owned());
    }

    fn interrupted(&self) -> bool {
        self.stop_at
            .is_some_and(|bytes| self.at.load(Ordering::Relaxed) >= bytes)
    }
}

pub fn fetch(model: &str, settings: &Settings) -> Result<PathBuf, Error> {
    sparamx_hub::fetch(
        &HubId::parse(model).expect("a name"),
        settings,
        &mut Watch::default(),
    )
}

/// Downloads the model and checks the bytes of what makes it.
#[track_caller]
pub fn arrives(files: &Files, settings: &Settings) {
    let directory = match fetch(MODEL, settings) {
        Ok(directory) => directory,
        Err(error) => panic!("{error}"),
    };
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = fs::read(directory.join(name)).expect(name);
        assert!(bytes == files.bytes(name).expect(name), "{name}");
    }
}

/// The message of a download that fails, with all of these words.
#[track_caller]
pub fn fails(settings: &Settings, words: &[&str]) -> String {
    let message = match fetch(MODEL, settings) {
        Ok(directory) => panic!("it works: {}", directory.display()),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    message
}
