//! What can go wrong.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What went wrong, with which model or file of it, and where.
#[derive(Debug)]
pub struct Error {
    /// The model, and the file if it is about one; the variable of the environment if that is wrong.
    pub what: String,
    /// What it is.
    pub fault: Fault,
    pub(crate) place: Box<Place>,
}

/// What a message names.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The address of the hub.
    pub hub: String,
    /// The page of the model.
    pub page: String,
    /// The directory of the cache.
    pub cache: PathBuf,
    /// Whether a token was sent.
    pub token: bool,
}

/// The kinds of failures.
#[derive(Debug)]
pub enum Fault {
    /// A variable of the environment has no value of use; why.
    Setting(String),
    /// The model is not in the cache, and we are not to ask the hub.
    Offline,
    /// The hub answered with this status, and asks to wait if it says how long.
    Status(u16, Option<Duration>),
    /// No answer from the hub; why, and whether another try may help.
    Unreachable(String, bool),
    /// The transfer broke after that many bytes; why.
    Broken(String, u64),
    /// What the hub sends makes no sense, or would do harm; what it is.
    Answer(String),
    /// The bytes that arrived are not those of the file; they were removed.
    Corrupt(String),
    /// What is in the cache is no beginning of the file.
    Restart,
    /// The repository holds no model that we can read; why.
    NoModel(String),
    /// The cache cannot be read or written.
    Cache(io::Error),
    /// It was to end.
    Interrupted,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Cache(error)
    }
}

impl Fault {
    /// What the hub did, in few words.
    pub(crate) fn brief(&self) -> String {
        match self {
            Fault::Status(status, _) => format!("answered with status {status}"),
            Fault::Unreachable(why, _) => format!("cannot be reached ({why})"),
            Fault::Broken(why, _) => format!("broke off the transfer ({why})"),
            Fault::Answer(why) => format!("gave an answer that cannot be used ({why})"),
            _ => "does not help".to_owned(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, Place { hub, cache, .. }) = (&self.what, &*self.place);
        let cache = cache.display();
        match &self.fault {
            Fault::Setting(why) => write!(f, "{what}: {why}"),
            Fault::Offline => write!(
                f,
                "{what}: not complete in the cache {cache}, and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE"
            ),
            Fault::Status(status, wait) => self.status(f, *status, *wait),
            Fault::Unreachable(why, _) => write!(
                f,
                "{what}: {hub} cannot be reached: {why}; check the network, or give a directory"
            ),
            Fault::Broken(why, _) => write!(
                f,
                "{what}: the download from {hub} broke off: {why}; run the command again, it goes on where it stopped"
            ),
            Fault::Answer(why) => write!(
                f,
                "{what}: {hub} gave an answer that cannot be used: {why}; check HF_ENDPOINT"
            ),
            Fault::Corrupt(why) => {
                write!(f, "{what}: {why}; it was removed, run the command again")
            }
            Fault::Restart => write!(
                f,
                "{what}: the part in the cache {cache} does not fit; remove it"
            ),
            Fault::NoModel(why) => write!(f, "{what}: {why}"),
            Fault::Cache(error) if error.kind() == io::ErrorKind::StorageFull => write!(
                f,
                "{what}: the disk of the cache {cache} is full; make room, or set HF_HOME to a directory on another disk"
            ),
            Fault::Cache(error) => write!(
                f,
                "{what}: the cache {cache} cannot be written: {error}; set HF_HOME to a directory of yours"
            ),
            Fault::Interrupted => write!(
                f,
                "{what}: interrupted; run the command again, it goes on where it stopped"
            ),
        }
    }
}

impl Error {
    fn status(
        &self,
        f: &mut fmt::Formatter<'_>,
        status: u16,
        wait: Option<Duration>,
    ) -> fmt::Result {
        let (
            what,
            Place {
                hub, page, token, ..
            },
        ) = (&self.what, &*self.place);
        match (status, token) {
            (401, false) => write!(
                f,
                "{what}: {hub} wants to know who asks (401): the model is gated, private or does not exist; check the \
                 name, ask for access on {page} and set HF_TOKEN"
            ),
            (401, true) => write!(
                f,
                "{what}: {hub} does not accept the token (401); check HF_TOKEN, and the name of the model"
            ),
            (403, _) => write!(
                f,
                "{what}: access refused by {hub} (403): the model is gated; ask for access on {page} and set HF_TOKEN to \
                 a token that may read it"
            ),
            (404, _) => write!(
                f,
                "{what}: not on {hub} (404), and no directory of that name is here; check the name and the revision"
            ),
            (429, _) => match wait {
                Some(wait) => write!(
                    f,
                    "{what}: {hub} got too many requests (429); wait {} seconds, or set HF_TOKEN",
                    wait.as_secs()
                ),
                None => write!(
                    f,
                    "{what}: {hub} got too many requests (429); wait a few minutes, or set HF_TOKEN"
                ),
            },
            _ => write!(
                f,
                "{what}: {hub} answered with status {status}; try again later"
            ),
        }
    }
}

impl std::error::Error for Error {}
