//! An engine that owns what it runs, on a thread of its own.
//!
//! A front end opens a [`Host`] and submits requests; each comes back as a [`Handle`], which yields the request's events. The
//! thread takes requests from a bounded channel between steps and steps as long as there is work. Events go to a queue per
//! request without bound, so that a slow reader never holds up a step; `max_tokens` bounds what can be in it.

mod handle;
mod outcome;
mod thread;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use sparamx_kernels::{KernelError, Runtime};

use self::thread::{Client, Submission};
use crate::batch::{BatchEngine, Engine, EngineOptions, Intake, Request, Stats};
use crate::{EngineError, Loaded, Opening};

pub use handle::Handle;
pub use outcome::Outcome;

/// How a model is opened and run.
#[derive(Debug, Clone, PartialEq)]
pub struct HostOptions {
    /// Memory for weights; none: a part of what is available.
    pub memory_bytes: Option<u64>,
    /// How the engine works.
    pub engine: EngineOptions,
    /// Requests at a time, those that run and those that wait. More are refused.
    pub max_requests: usize,
    /// Pins the thread to its processor, as the threads of the runtime are. Off where several hosts share processors.
    pub pin: bool,
}

impl Default for HostOptions {
    /// 1024 requests at a time, on a pinned thread.
    fn default() -> Self {
        Self {
            memory_bytes: None,
            engine: EngineOptions::default(),
            max_requests: 1024,
            pin: true,
        }
    }
}

/// A model and the thread that runs it. Any thread may submit requests.
///
/// Dropping it cancels the requests that have not ended, and waits for the thread: at most a step.
pub struct Host {
    loaded: Loaded,
    intake: Intake,
    max_requests: usize,
    shared: Arc<Shared>,
    submissions: Option<SyncSender<Box<Submission>>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and its clients both see.
struct Shared {
    /// As of the last step.
    stats: Mutex<Stats>,
    /// Requests that have not ended.
    requests: AtomicUsize,
    /// The message of the panic that ended the thread.
    panic: OnceLock<String>,
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a request without a last event ended: only a panic leaves one.
    fn failure(&self) -> EngineError {
        let message = self.panic.get().cloned().unwrap_or_default();
        EngineError::Panicked { message }
    }
}

/// Counts a request for as long as it lives.
struct Ticket(Arc<Shared>);

impl Ticket {
    fn new(shared: &Arc<Shared>, most: usize) -> Result<Self, EngineError> {
        let ticket = Self(Arc::clone(shared));
        if shared.requests.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(EngineError::Busy { requests: most });
        }
        Ok(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    /// Opens the model in a directory or GGUF file and starts an engine for it, on the threads of `runtime`.
    ///
    /// # Errors
    /// As [`Loaded::open`] and [`Host::start`].
    pub fn open(
        path: &Path,
        runtime: Arc<Runtime>,
        options: HostOptions,
        report: &mut dyn FnMut(Opening),
    ) -> Result<Self, EngineError> {
        let loaded = Loaded::open(path, runtime, options.memory_bytes, report)?;
        Self::start(loaded, options)
    }

    /// Starts an engine for a model that is open.
    ///
    /// # Errors
    /// As [`BatchEngine::new`]; the system refuses a thread.
    pub fn start(loaded: Loaded, options: HostOptions) -> Result<Self, EngineError> {
        let engine = BatchEngine::new(&loaded, options.engine)?;
        let intake = engine.intake().clone();
        let shared = Arc::new(Shared {
            stats: Mutex::new(engine.stats()),
            requests: AtomicUsize::new(0),
            panic: OnceLock::new(),
        });
        let (sender, receiver) = mpsc::sync_channel(options.max_requests);
        let pinned = options.pin.then(|| Arc::clone(&loaded.runtime));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sparamx-engine".to_owned())
            .spawn(move || {
                if let Some(runtime) = pinned {
                    runtime.pin_caller();
                }
                thread::run(engine, &receiver, &theirs);
            })
            .map_err(|error| KernelError::Thread {
                threads: 1,
                error: error.to_string(),
            })?;
        Ok(Self {
            loaded,
            intake,
            max_requests: options.max_requests,
            shared,
            submissions: Some(sender),
            thread: Some(thread),
        })
    }

    /// The model.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Tokens that a request may have, prompt and text together.
    pub fn context(&self) -> usize {
        self.intake.room()
    }

    /// What the engine has done up to its last step.
    pub fn stats(&self) -> Stats {
        *self.shared.stats()
    }

    /// Takes a request in. It is checked here; the engine sees it before its next step.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`EngineError::Busy`] beyond [`HostOptions::max_requests`]; [`EngineError::Panicked`] after a
    /// fault of the engine.
    pub fn submit(&self, request: Request) -> Result<Handle, EngineError> {
        let request = self.intake.take(request)?;
        let ticket = Ticket::new(&self.shared, self.max_requests)?;
        let (client, handle) = Client::new(ticket, &self.shared);
        let submission = Box::new(Submission { request, client });
        // There is room in the channel for all that have a ticket.
        if let Some(sender) = &self.submissions
            && sender.try_send(submission).is_ok()
        {
            return Ok(handle);
        }
        Err(self.shared.failure())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.submissions = None;
        if let Some(thread) = self.thread.take() {
            // Its panics are caught.
            let _ = thread.join();
        }
    }
}
