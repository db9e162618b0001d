//! The log of a server: lines on standard error, written by a thread of their own.
//!
//! A terminal or a pipe that takes nothing holds up that thread, and no request. Lines that do not fit into its queue are lost,
//! and it says how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use sparamx_server::Log;

use crate::output;

/// Lines that wait to be written; each has about 1000 letters at most.
const QUEUE: usize = 1024;
/// How long the lines that wait at the end are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread does next.
enum Work {
    Write(String),
    /// Says that all lines before it are written.
    Tell(SyncSender<()>),
}

/// The thread. Dropping it waits, not for long, until its lines are written.
pub struct Writer {
    queue: SyncSender<Work>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> Result<Self> {
        Self::to(output::complain)
    }

    /// The same for lines that `write` takes.
    fn to(write: impl Fn(&str) + Send + 'static) -> Result<Self> {
        let (queue, works) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&lost);
        let run = move || {
            for work in works {
                match work {
                    Work::Write(line) => write(&line),
                    // Nobody listens any more if it took too long.
                    Work::Tell(written) => drop(written.try_send(())),
                }
                let lost = theirs.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    write(&format!(
                        "{lost} lines of the log are lost: they came faster than they were taken"
                    ));
                }
            }
        };
        thread::Builder::new()
            .name("sparamx-log".to_owned())
            .spawn(run)
            .context("cannot start the thread of the log")?;
        Ok(Self { queue, lost })
    }

    /// What takes lines.
    pub fn log(&self) -> Log {
        let (queue, lost) = (self.queue.clone(), Arc::clone(&self.lost));
        Arc::new(move |line: &str| {
            let line = output::shortened(&output::one_line(line));
            if let Err(TrySendError::Full(_)) = queue.try_send(Work::Write(line)) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let (tell, told) = sync_channel(1);
        if self.queue.try_send(Work::Tell(tell)).is_ok() {
            let _ = told.recv_timeout(PATIENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn lines_are_written_in_order_before_the_end() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&lines);
        let writer = Writer::to(move |line| theirs.lock().unwrap().push(line.to_owned())).unwrap();
        let log = writer.log();
        for line in ["one", "two\nlines", "three"] {
            log(line);
        }
        drop(writer);
        assert_eq!(*lines.lock().unwrap(), ["one", "two lines", "three"]);
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_up_nobody() {
        let (go, wait) = channel::<()>();
        let (wrote, lines) = channel();
        let writer = Writer::to(move |line| {
            // Until the sender is gone.
            let _ = wait.recv();
            let _ = wrote.send(line.to_owned());
        })
        .unwrap();
        let log = writer.log();
        for number in 0..QUEUE + 20 {
            log(&number.to_string());
        }
        drop(go);
        let mut written = Vec::new();
        let told = loop {
            let line: String = lines.recv().unwrap();
            if line.contains("lost") {
                break line;
            }
            written.push(line);
        };
        let lost: usize = told.split(' ').next().unwrap().parse().unwrap();
        // One was being written.
        assert!((19..=20).contains(&lost), "{told}");
        assert_eq!(written[0], "0");
    }
}
