//! An engine that owns what it runs, on a thread of its own.
//!
//! A front end opens a [`Host`] and submits requests, each with a [`Sink`] for its events, or as a [`Handle`] that yields them.
//! Requests wait in the host, the tenants in turn, and the engine gets no more than it can run. The thread steps as long as there
//! is work. Between steps it takes in requests and lets go of those that were cancelled; after a step it hands out events. A
//! sink must not wait, so that a slow reader never holds up a step: a queue without bound is fine, as `max_tokens` bounds what
//! can be in it.

mod handle;
mod outcome;
mod queue;
mod shared;
mod thread;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sparamx_kernels::{KernelError, Runtime};

use self::shared::{Entry, Limits, Observer, Shared};
use crate::batch::{BatchEngine, Engine, EngineOptions, Event, Intake, Request, Stats, StepReport};
use crate::{ChatTemplate, EngineError, KvOptions, Loaded, Opening};

pub use handle::{Cancel, Handle};
pub use outcome::Outcome;

/// Takes the events of a request. It is called on the engine's thread (for a request that is cancelled while it waits, on the
/// thread that cancels) and holds up all requests: it must not wait.
pub type Sink = Box<dyn FnMut(Event) + Send>;

/// How a model is opened and run.
#[derive(Debug, Clone, PartialEq)]
pub struct HostOptions {
    /// Memory for weights; none: a part of what is available.
    pub memory_bytes: Option<u64>,
    /// How the engine works.
    pub engine: EngineOptions,
    /// Requests at a time, those that run and those that wait. More are refused.
    pub max_requests: usize,
    /// The same for each tenant.
    pub max_tenant_requests: usize,
    /// Pins the thread to its processor, as the threads of the runtime are. Off where several hosts share processors.
    pub pin: bool,
    /// A file with a chat template in place of the model's.
    pub chat_template: Option<PathBuf>,
    /// Does without a chat template, whatever the model has.
    pub no_chat_template: bool,
}

impl Default for HostOptions {
    /// 1024 requests at a time, of one tenant or of many, on a pinned thread; the chat template of the model.
    fn default() -> Self {
        Self {
            memory_bytes: None,
            engine: EngineOptions::default(),
            max_requests: 1024,
            max_tenant_requests: usize::MAX,
            pin: true,
            chat_template: None,
            no_chat_template: false,
        }
    }
}

/// A model and the thread that runs it. Any thread may submit requests.
///
/// Dropping it cancels the requests that have not ended, and waits for the thread: at most a step.
pub struct Host {
    loaded: Loaded,
    intake: Intake,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Opens the model in a directory or GGUF file and starts an engine for it, on the threads of `runtime`.
    ///
    /// # Errors
    /// As [`Loaded::open`] and [`Host::start`]; a chat template that cannot be used.
    pub fn open(
        path: &Path,
        runtime: Arc<Runtime>,
        options: HostOptions,
        report: &mut dyn FnMut(Opening),
    ) -> Result<Self, EngineError> {
        // Before the weights: it is smaller, and as often wrong.
        let template = match &options.chat_template {
            _ if options.no_chat_template => None,
            Some(file) => ChatTemplate::from_file(file, path)?,
            None => ChatTemplate::from_dir(path)?,
        };
        let mut loaded = Loaded::open(path, runtime, options.memory_bytes, report)?;
        loaded.template = template;
        Self::start(loaded, options)
    }

    /// Starts an engine for a model that is open.
    ///
    /// # Errors
    /// As [`BatchEngine::new`]; the system refuses a thread.
    pub fn start(loaded: Loaded, options: HostOptions) -> Result<Self, EngineError> {
        let engine = BatchEngine::new(&loaded, options.engine)?;
        let intake = engine.intake().clone();
        let limits = Limits {
            all: options.max_requests,
            tenant: options.max_tenant_requests,
        };
        let shared = Arc::new(Shared::new(limits, engine.stats()));
        let pinned = options.pin.then(|| Arc::clone(&loaded.runtime));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sparamx-engine".to_owned())
            .spawn(move || {
                if let Some(runtime) = pinned {
                    runtime.pin_caller();
                }
                thread::run(engine, &theirs);
            })
            .map_err(|error| KernelError::Thread {
                threads: 1,
                error: error.to_string(),
            })?;
        Ok(Self {
            loaded,
            intake,
            shared,
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

    /// Tokens that the cache holds, about, of long texts that share nothing.
    pub fn cache_tokens(&self) -> u64 {
        let (pool, tokens) = (&self.intake.pool, self.context());
        let bytes = pool.sequence_bytes(tokens, 1).max(1);
        (u128::from(pool.usage().budget_bytes) * tokens as u128 / u128::from(bytes)) as u64
    }

    /// What the cache was made with.
    pub fn kv_options(&self) -> &KvOptions {
        self.intake.pool.options()
    }

    /// What the engine has done up to its last step, and what waits now. Never waits for a step.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Requests that have not ended: those that run and those that wait.
    pub fn requests(&self) -> usize {
        self.shared.requests()
    }

    /// Time since the last step ended, or since there is work, if that is later; none if there is no work. Never waits for a
    /// step.
    pub fn busy_for(&self) -> Option<Duration> {
        self.shared.busy_for()
    }

    /// What ended the engine's thread, if something has: [`EngineError::Panicked`]. No request runs then any more.
    pub fn failure(&self) -> Option<EngineError> {
        self.shared.failure()
    }

    /// Has `observer` called after each step that ran the model, on the engine's thread: it must not wait.
    pub fn observe(&self, observer: Box<dyn FnMut(&StepReport) + Send>) {
        let observer: Observer = observer;
        self.shared.observe(observer);
    }

    /// Takes no more requests from now on. Those that were taken go on to their ends.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Whether so many requests of a tenant would be taken now: [`Host::submit_to`] says so as well, but only once they are
    /// made.
    ///
    /// # Errors
    /// As [`Host::submit_to`], but for what is wrong with a request.
    pub fn check(&self, tenant: u64, requests: usize) -> Result<(), EngineError> {
        self.shared.check(std::iter::repeat_n(tenant, requests))
    }

    /// Takes requests in, all or none. They are checked here; the engine gets them when it can run them. Of those that have
    /// the same prompt, the others wait until the prompt of the first is in the cache.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`EngineError::Busy`] beyond [`HostOptions::max_requests`] and
    /// [`HostOptions::max_tenant_requests`], and [`EngineError::TooMany`] if these requests alone are beyond them;
    /// [`EngineError::Draining`] after [`Host::drain`]; [`EngineError::Panicked`] after a
    /// fault of the engine.
    pub fn submit_to(&self, requests: Vec<(Request, Sink)>) -> Result<Cancel, EngineError> {
        self.shared
            .check(requests.iter().map(|(request, _)| request.tenant))?;
        let behind = leaders(&requests);
        let mut entries = Vec::with_capacity(requests.len());
        for ((request, sink), behind) in requests.into_iter().zip(behind) {
            let request = self.intake.take(request)?;
            entries.push(Entry {
                behind: behind.filter(|_| request.fills_a_page()),
                request,
                sink,
                leads: false,
            });
        }
        for index in 0..entries.len() {
            if let Some(first) = entries[index].behind {
                entries[first].leads = true;
            }
        }
        let numbers = self.shared.submit(entries)?;
        Ok(Cancel::new(&self.shared, numbers))
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// As [`Host::submit_to`].
    pub fn submit(&self, request: Request) -> Result<Handle, EngineError> {
        let (sender, receiver) = mpsc::channel();
        let sink: Sink = Box::new(move |event| {
            // One whose handle is gone no longer cares.
            let _ = sender.send(event);
        });
        let cancel = self.submit_to(vec![(request, sink)])?;
        Ok(Handle::new(receiver, cancel))
    }
}

/// For each request the index of the first one whose pages it can share, if that is an earlier one.
fn leaders(requests: &[(Request, Sink)]) -> Vec<Option<usize>> {
    let mut first = HashMap::new();
    let requests = requests.iter().enumerate();
    requests
        .map(|(index, (request, _))| {
            let prompt = (request.prompt.as_slice(), request.cache_salt.as_deref());
            let leader = *first.entry(prompt).or_insert(index);
            (leader < index).then_some(leader)
        })
        .collect()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take()
            // A sink may have held the host.
            && thread.thread().id() != std::thread::current().id()
        {
            // Its panics are caught.
            let _ = thread.join();
        }
    }
}
