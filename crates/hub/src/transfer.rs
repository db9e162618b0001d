//! One file from the hub into the cache.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256};
use ureq::http::Uri;

use crate::Progress;
use crate::address::encoded;
use crate::cache::{self, Lock, Repo};
use crate::client::{Answer, Ask, Client, GLANCE};
use crate::error::Fault;
use crate::id::HubId;
use crate::names;
use crate::settings::Settings;
use crate::stream::Stream;

/// How often the same is asked while it fails in a way that may pass.
pub const TRIES: u32 = 5;
/// A transfer that got so much further before it broke has all its tries again.
const HEADWAY_BYTES: u64 = 1 << 20;
/// A file that is no weights is no larger: what reads it would refuse it.
const MOST_SMALL_BYTES: u64 = 128 << 20;
/// A hub that asks for a longer wait is reported instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A pause that a user would wonder about.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// A download of files of one model.
pub struct Download<'a> {
    pub settings: &'a Settings,
    pub id: &'a HubId,
    pub repo: Repo<'a>,
    pub client: Client<'a>,
    pub progress: &'a mut dyn Progress,
}

/// What the hub says about a file.
struct Meta {
    address: Uri,
    etag: String,
    bytes: Option<u64>,
}

impl Meta {
    /// The SHA-256 of the file: the entity tag of a large one.
    fn sha256(&self) -> Option<&str> {
        let hash = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        hash.then_some(self.etag.as_str())
    }
}

impl Download<'_> {
    /// Puts a file of a commit into the cache, if it is not there.
    pub fn file(&mut self, commit: &str, name: &str) -> Result<(), Fault> {
        if self.repo.has(&self.repo.snapshot(commit).join(name)) {
            return Ok(());
        }
        let meta = self.persist(TRIES, |download| download.metadata(commit, name))?;
        let blob = self.repo.blobs()?.join(&meta.etag);
        if !self.is_there(&blob, &meta) {
            let _lock = self.lock(name, &meta, &blob)?;
            if !self.is_there(&blob, &meta) {
                if meta.sha256().is_none() {
                    // Nobody would notice if what is left of an earlier run were wrong.
                    let _ = fs::remove_file(incomplete(&blob));
                }
                let received = self.persist(TRIES, |download| download.receive(name, &meta, &blob));
                self.progress.end();
                received?;
            }
        }
        Ok(self.repo.point(commit, name, &meta.etag)?)
    }

    fn is_there(&self, blob: &Path, meta: &Meta) -> bool {
        let fits = |bytes| fs::metadata(blob).is_ok_and(|data| data.len() == bytes);
        self.repo.has(blob) && meta.bytes.is_none_or(fits)
    }

    /// Does what may fail in passing again, and less and less often.
    pub fn persist<T>(
        &mut self,
        tries: u32,
        mut work: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (mut left, mut pause, mut furthest) = (tries, self.settings.pause, 0);
        loop {
            let fault = match work(self) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            if let Fault::Broken(_, bytes) = fault
                && bytes >= furthest + HEADWAY_BYTES
            {
                (left, pause, furthest) = (tries, self.settings.pause, bytes);
            }
            left -= 1;
            match fault.pause(pause) {
                Some(wait) if left > 0 => self.pause(wait, &fault)?,
                _ => return Err(fault),
            }
            pause *= 2;
        }
    }

    fn pause(&mut self, wait: Duration, fault: &Fault) -> Result<(), Fault> {
        if wait >= LONG_PAUSE || !matches!(fault, Fault::Status(..)) {
            let line = format!(
                "{} {}; trying again in {:.0} s",
                self.settings.endpoint,
                fault.brief(),
                wait.as_secs_f32().ceil()
            );
            self.progress.notice(&line);
        }
        let start = Instant::now();
        while start.elapsed() < wait {
            if self.progress.interrupted() {
                return Err(Fault::Interrupted);
            }
            thread::sleep(GLANCE.min(wait));
        }
        Ok(())
    }

    fn metadata(&mut self, commit: &str, name: &str) -> Result<Meta, Fault> {
        let parts = format!("{}/resolve/{commit}/{}", self.id.name, encoded(name));
        let address = self.client.address(&parts)?;
        let mut answer = self.client.ask(Ask::Head, address.clone(), self.progress)?;
        if !(300..400).contains(&answer.status) {
            answer = answer.success()?;
        }
        let tag = answer
            .header("x-linked-etag")
            .or_else(|| answer.header("etag"));
        let tag = tag.ok_or_else(|| Fault::Answer("it gives no ETag".to_owned()))?;
        Ok(Meta {
            address,
            etag: names::etag(tag)?,
            bytes: answer.number("x-linked-size"),
        })
    }

    fn lock(&mut self, name: &str, meta: &Meta, blob: &Path) -> Result<Lock, Fault> {
        let partial = incomplete(blob);
        let progress = &mut *self.progress;
        let mut said = false;
        let lock = self.repo.lock(&meta.etag, &mut || {
            if !said {
                progress.notice(&format!(
                    "another process is downloading {name}; waiting until it is done"
                ));
                progress.begin(name, meta.bytes);
                said = true;
            }
            progress.at(fs::metadata(&partial).map_or(0, |data| data.len()));
            if progress.interrupted() {
                Err(Fault::Interrupted)
            } else {
                Ok(())
            }
        });
        if said {
            self.progress.end();
        }
        lock
    }

    /// The bytes of a file, from where an earlier transfer stopped.
    fn receive(&mut self, name: &str, meta: &Meta, blob: &Path) -> Result<(), Fault> {
        let path = incomplete(blob);
        let mut part = Part::open(&path, meta)?;
        self.progress.begin(name, meta.bytes);
        let mut filled = self.fill(&mut part, name, meta);
        if matches!(filled, Err(Fault::Restart)) {
            part.clear()?;
            filled = self.fill(&mut part, name, meta);
        }
        if let Err(fault) = filled {
            if matches!(fault, Fault::Corrupt(_)) {
                let _ = fs::remove_file(&path);
            }
            return Err(fault.after(part.bytes));
        }
        Ok(fs::rename(path, blob)?)
    }

    /// What is still missing.
    fn fill(&mut self, part: &mut Part, name: &str, meta: &Meta) -> Result<(), Fault> {
        part.rehash(self.progress)?;
        let resumed = part.bytes > 0;
        if !resumed || meta.bytes != Some(part.bytes) {
            self.append(part, name, meta)?;
        }
        // On file systems without working locks another process may have written, the same bytes to the same places.
        if part.file.metadata()?.len() != part.bytes {
            return Err(Fault::Restart);
        }
        let (Some(announced), Some(hash)) = (meta.sha256(), part.hash.take()) else {
            return Ok(());
        };
        if is_digest(hash.finish().as_ref(), announced) {
            return Ok(());
        }
        // Perhaps it was the beginning that was wrong.
        Err(if resumed {
            Fault::Restart
        } else {
            Fault::Corrupt(format!(
                "{name} arrived with another SHA-256 than {announced}"
            ))
        })
    }

    fn append(&mut self, part: &mut Part, name: &str, meta: &Meta) -> Result<(), Fault> {
        if meta.bytes.is_some_and(|bytes| part.bytes > bytes) {
            return Err(Fault::Restart);
        }
        let answer = self
            .client
            .ask(Ask::Get(part.bytes), meta.address.clone(), self.progress)?;
        let announced = announced(&answer, part)?;
        let mut stream = Stream::new(answer, self.settings.transfer_limit)?;
        let expected = match (meta.bytes, announced) {
            (Some(bytes), Some(other)) if bytes != other && !stream.compressed => {
                return Err(Fault::Answer(format!(
                    "{name} has {bytes} bytes, and {other} when it is sent"
                )));
            }
            (None, announced) if !stream.compressed => announced,
            (bytes, _) => bytes,
        };
        self.progress.begin(name, expected);
        self.progress.at(part.bytes);
        let most = if name.ends_with(".safetensors") {
            u64::MAX
        } else {
            MOST_SMALL_BYTES
        };
        loop {
            let chunk = stream.next(self.progress)?;
            if chunk.is_empty() {
                break;
            }
            part.write(&chunk)?;
            self.progress.at(part.bytes);
            if part.bytes > most {
                return Err(Fault::Corrupt(format!(
                    "{name} arrived with more than {} MiB, too large for what it is",
                    MOST_SMALL_BYTES >> 20
                )));
            }
            if expected.is_some_and(|expected| part.bytes > expected) {
                return Err(Fault::Corrupt(format!(
                    "{name} arrived with more bytes than the hub announced"
                )));
            }
        }
        match expected {
            Some(expected) if part.bytes < expected => {
                Err(stream.broken(&format!("{} of {expected} bytes arrived", part.bytes)))
            }
            _ => Ok(()),
        }
    }
}

/// How many bytes the file has, as the answer to a question for a part of it says, if it does. The part is dropped if the answer brings
/// the whole file.
fn announced(answer: &Answer, part: &mut Part) -> Result<Option<u64>, Fault> {
    let length = answer.number("content-length");
    match answer.status {
        206 => {
            let range = answer
                .header("content-range")
                .and_then(|range| range.strip_prefix("bytes "));
            let (first, total) = match range.and_then(|range| range.split_once('/')) {
                Some((range, total)) => (range.split('-').next(), total.parse().ok()),
                None => (None, None),
            };
            let first = first.map_or(Some(0), |first| first.trim().parse().ok());
            let plain = answer
                .header("content-encoding")
                .is_none_or(|encoding| encoding == "identity");
            if first != Some(part.bytes) || (part.bytes > 0 && !plain) {
                return Err(Fault::Restart);
            }
            Ok(total.or_else(|| length.map(|length| length.saturating_add(part.bytes))))
        }
        416 if part.bytes > 0 => Err(Fault::Restart),
        200..=299 => {
            part.clear()?;
            Ok(length)
        }
        _ => Err(answer.refusal()),
    }
}

/// A file that is not complete.
struct Part {
    file: File,
    bytes: u64,
    /// The hash of what is there, if the hub gives one to compare with.
    hash: Option<Context>,
    hashed: bool,
}

impl Part {
    fn open(path: &Path, meta: &Meta) -> io::Result<Part> {
        let file = cache::partial(path)?;
        let bytes = file.metadata()?.len();
        Ok(Part {
            file,
            bytes,
            hash: None,
            hashed: meta.sha256().is_some(),
        })
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.bytes = 0;
        self.hash = self.hashed.then(|| Context::new(&SHA256));
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.bytes += chunk.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(chunk);
        }
        Ok(())
    }

    /// Hashes what is there from before, and goes to its end.
    fn rehash(&mut self, progress: &dyn Progress) -> Result<(), Fault> {
        if self.hashed {
            let mut hash = Context::new(&SHA256);
            self.file.rewind()?;
            let mut before = (&self.file).take(self.bytes);
            let mut chunk = vec![0; 1 << 20];
            loop {
                if progress.interrupted() {
                    return Err(Fault::Interrupted);
                }
                match before.read(&mut chunk)? {
                    0 => break,
                    bytes => hash.update(&chunk[..bytes]),
                }
            }
            self.hash = Some(hash);
        }
        self.file.seek(SeekFrom::Start(self.bytes))?;
        Ok(())
    }
}

fn is_digest(digest: &[u8], announced: &str) -> bool {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.eq_ignore_ascii_case(announced)
}

fn incomplete(blob: &Path) -> PathBuf {
    let mut path = blob.as_os_str().to_owned();
    path.push(".incomplete");
    path.into()
}

impl Fault {
    /// How long to wait before the same is tried again, if it may help: as long as the hub asks for, or this pause.
    fn pause(&self, pause: Duration) -> Option<Duration> {
        match self {
            Fault::Status(408 | 429 | 500 | 502 | 503 | 504, wait) => {
                Some(wait.unwrap_or(pause)).filter(|wait| *wait <= LONGEST_PAUSE)
            }
            Fault::Unreachable(_, true) | Fault::Broken(..) => Some(pause),
            _ => None,
        }
    }

    /// The fault of a transfer that got so far.
    fn after(self, bytes: u64) -> Fault {
        match self {
            Fault::Broken(why, _) => Fault::Broken(why, bytes),
            Fault::Restart => {
                Fault::Answer("it sends another part of the file than we ask for".to_owned())
            }
            fault => fault,
        }
    }
}
