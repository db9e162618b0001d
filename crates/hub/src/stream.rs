//! The bytes of an answer as they arrive.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;

use crate::Progress;
use crate::client::{Answer, GLANCE};
use crate::error::Fault;

const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 8;
/// Less than this in a second, over the whole time limit, is a transfer that stands still: a modem had more.
const LEAST_BYTES_PER_SECOND: u64 = 1024;

/// A body that is read by a thread of its own, so that the reader can be interrupted and sees when nothing comes.
pub struct Stream {
    chunks: Receiver<io::Result<Vec<u8>>>,
    limit: Duration,
    window: (Instant, u64),
    /// Bytes so far.
    pub arrived: u64,
    /// Whether the bytes were compressed on the way, so that lengths in headers are not those of the file.
    pub compressed: bool,
}

impl Stream {
    /// The body of this answer, which may stand still for no longer than `limit`.
    pub fn new(answer: Answer, limit: Duration) -> Result<Stream, Fault> {
        let encoding = answer
            .header("content-encoding")
            .unwrap_or_default()
            .trim()
            .to_lowercase();
        let compressed = match encoding.as_str() {
            "" | "identity" => false,
            "gzip" | "x-gzip" => true,
            _ => {
                let what = crate::names::shown(&encoding);
                return Err(Fault::Answer(format!(
                    "it has Content-Encoding {what} though we asked for none"
                )));
            }
        };
        let plain = answer.body.into_reader();
        let (sender, chunks) = mpsc::sync_channel(CHUNKS_AHEAD);
        thread::spawn(move || {
            let mut body: Box<dyn Read> = if compressed {
                Box::new(MultiGzDecoder::new(plain))
            } else {
                Box::new(plain)
            };
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = body.read(&mut chunk).map(|bytes| {
                    chunk.truncate(bytes);
                    chunk
                });
                let end = !matches!(&read, Ok(chunk) if !chunk.is_empty());
                // Nobody reads on if the download was given up.
                if sender.send(read).is_err() || end {
                    return;
                }
            }
        });
        Ok(Stream {
            chunks,
            limit,
            window: (Instant::now(), 0),
            arrived: 0,
            compressed,
        })
    }

    /// The next bytes, none at the end.
    pub fn next(&mut self, progress: &dyn Progress) -> Result<Vec<u8>, Fault> {
        loop {
            if progress.interrupted() {
                return Err(Fault::Interrupted);
            }
            match self.chunks.recv_timeout(GLANCE) {
                Ok(Ok(chunk)) => {
                    self.arrived += chunk.len() as u64;
                    if !chunk.is_empty() {
                        self.keeps_up()?;
                    }
                    return Ok(chunk);
                }
                Ok(Err(error)) if is_timeout(&error) => return Err(self.stood_still()),
                Ok(Err(error)) => return Err(self.broken(&error.to_string())),
                Err(RecvTimeoutError::Timeout) => self.keeps_up()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.broken("the transfer failed"));
                }
            }
        }
    }

    /// All bytes, if they are no more than `most`.
    pub fn all(mut self, most: usize, progress: &dyn Progress) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        loop {
            let chunk = self.next(progress)?;
            if chunk.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(chunk);
            if bytes.len() > most {
                return Err(Fault::Answer(format!(
                    "it sends more than {most} bytes about the model"
                )));
            }
        }
    }

    /// A failure after what has arrived.
    pub fn broken(&self, why: &str) -> Fault {
        Fault::Broken(why.to_owned(), self.arrived)
    }

    fn stood_still(&self) -> Fault {
        self.broken(&format!("it stood still for {} s", self.limit.as_secs()))
    }

    /// Fails if less than a trickle came within the time limit.
    fn keeps_up(&mut self) -> Result<(), Fault> {
        let (since, before) = self.window;
        if since.elapsed() < self.limit {
            return Ok(());
        }
        let least = LEAST_BYTES_PER_SECOND * self.limit.as_secs().max(1);
        if self.arrived - before < least {
            return Err(self.stood_still());
        }
        self.window = (Instant::now(), self.arrived);
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}
