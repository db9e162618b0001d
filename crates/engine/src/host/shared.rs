//! What the engine's thread and those that submit requests both see.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Sink;
use super::queue::Queue;
use crate::EngineError;
use crate::batch::{Active, Stats, StepReport};

/// A request on its way to the engine, and who gets its events.
pub(super) struct Entry {
    pub request: Active,
    pub sink: Sink,
    /// Others wait until its prompt is in the cache.
    pub leads: bool,
    /// The index, in the same submission, of the one whose prompt it waits for.
    pub behind: Option<usize>,
}

impl Entry {
    /// It is cancelled before the engine had it.
    pub fn cancel(mut self) {
        (self.sink)(self.request.finish());
    }
}

/// Requests at a time: of all tenants, and of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub all: usize,
    pub tenant: usize,
}

pub(super) type Observer = Box<dyn FnMut(&StepReport) + Send>;

pub(super) struct Shared {
    limits: Limits,
    state: Mutex<State>,
    /// There is something to do for a thread that has nothing.
    work: Condvar,
    observers: Mutex<Vec<Observer>>,
}

/// The lock of it is held for moments only, never while a step runs or a sink is called.
struct State {
    queue: Queue<Entry>,
    /// Requests that have not ended, by tenant.
    taken: BTreeMap<u64, usize>,
    total: usize,
    /// The number of the next request.
    next: u64,
    /// Requests that the engine has, and that are to end.
    cancelled: Vec<u64>,
    /// How many were cancelled before the engine had them.
    cancelled_early: u64,
    stage: Stage,
    /// As of the last step.
    stats: Stats,
    /// When the last step ended, or the engine got something to do.
    progress: Instant,
}

enum Stage {
    Open,
    /// No new requests.
    Draining,
    /// All requests are to end.
    Closed,
    /// A panic ended the thread, with this message.
    Failed(String),
}

/// What the engine's thread does next.
pub(super) enum Work {
    /// Steps, without these requests.
    Step { cancelled: Vec<u64> },
    /// Ends these, and all it has.
    Close(Vec<Entry>),
}

impl Shared {
    pub fn new(limits: Limits, stats: Stats) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                queue: Queue::new(),
                taken: BTreeMap::new(),
                total: 0,
                next: 0,
                cancelled: Vec::new(),
                cancelled_early: 0,
                stage: Stage::Open,
                stats,
                progress: Instant::now(),
            }),
            work: Condvar::new(),
            observers: Mutex::new(Vec::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many requests of tenants would be taken now.
    ///
    /// # Errors
    /// As [`Host::submit_to`](super::Host::submit_to).
    pub fn check(&self, tenants: impl Iterator<Item = u64>) -> Result<(), EngineError> {
        self.lock().check(self.limits, tenants)
    }

    /// Takes all of them, or none. Says what their numbers are.
    ///
    /// # Errors
    /// As [`Host::submit_to`](super::Host::submit_to).
    pub fn submit(&self, entries: Vec<Entry>) -> Result<Range<u64>, EngineError> {
        let mut state = self.lock();
        state.check(self.limits, entries.iter().map(|e| e.request.tenant()))?;
        if state.total == 0 {
            state.progress = Instant::now();
        }
        let first = state.next;
        for entry in entries {
            let (number, tenant) = (state.next, entry.request.tenant());
            let behind = entry.behind.map(|index| first + index as u64);
            state.next += 1;
            state.total += 1;
            *state.taken.entry(tenant).or_default() += 1;
            state.queue.push(number, tenant, behind, entry);
        }
        let numbers = first..state.next;
        drop(state);
        self.work.notify_one();
        Ok(numbers)
    }

    /// Ends requests: those that wait at once, the others before the next step.
    pub fn cancel(&self, numbers: Range<u64>) {
        let mut waiting = Vec::new();
        let mut state = self.lock();
        for number in numbers {
            if let Some(entry) = state.queue.remove(number) {
                state.leave(entry.request.tenant());
                state.cancelled_early += 1;
                waiting.push(entry);
            } else if state.total > 0 {
                state.cancelled.push(number);
            }
        }
        drop(state);
        waiting.into_iter().for_each(Entry::cancel);
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        let mut state = self.lock();
        if let Stage::Open = state.stage {
            state.stage = Stage::Draining;
        }
    }

    /// All requests are to end, and the thread.
    pub fn close(&self) {
        let mut state = self.lock();
        if !matches!(state.stage, Stage::Failed(_)) {
            state.stage = Stage::Closed;
        }
        drop(state);
        self.work.notify_one();
    }

    /// A panic has ended the thread: those that wait never run.
    pub fn fail(&self, message: String) -> Vec<Entry> {
        let mut state = self.lock();
        state.stage = Stage::Failed(message);
        state.taken.clear();
        state.total = 0;
        state.queue.drain()
    }

    /// Requests that have not ended.
    pub fn requests(&self) -> usize {
        self.lock().total
    }

    pub fn stats(&self) -> Stats {
        let state = self.lock();
        let mut stats = state.stats;
        stats.waiting += state.queue.len();
        stats.deferred = state.queue.deferred();
        stats.finished.cancelled += state.cancelled_early;
        stats
    }

    pub fn busy_for(&self) -> Option<Duration> {
        let state = self.lock();
        (state.total > 0).then(|| state.progress.elapsed())
    }

    pub fn failure(&self) -> Option<EngineError> {
        self.lock().failure()
    }

    pub fn observe(&self, observer: Observer) {
        self.observers().push(observer);
    }

    fn observers(&self) -> MutexGuard<'_, Vec<Observer>> {
        self.observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the engine's thread.
impl Shared {
    /// What there is to do. Waits for it if the engine is idle.
    pub fn work(&self, idle: bool) -> Work {
        let mut state = self.lock();
        loop {
            if let Stage::Closed = state.stage {
                let entries = state.queue.drain();
                for entry in &entries {
                    state.leave(entry.request.tenant());
                }
                state.cancelled_early += entries.len() as u64;
                return Work::Close(entries);
            }
            if !idle || state.queue.len() > 0 {
                let cancelled = std::mem::take(&mut state.cancelled);
                return Work::Step { cancelled };
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next request, with its number.
    pub fn next(&self) -> Option<(u64, Entry)> {
        self.lock().queue.pop()
    }

    /// The prompt of a request is in the cache, or it has ended: those that wait for it may run.
    pub fn release(&self, number: u64) {
        self.lock().queue.release(number);
    }

    /// A request of a tenant has ended.
    pub fn leave(&self, tenant: u64) {
        self.lock().leave(tenant);
    }

    /// A step has ended.
    pub fn step_ended(&self, stats: Stats, report: Option<StepReport>) {
        let mut state = self.lock();
        state.stats = stats;
        state.progress = Instant::now();
        drop(state);
        if let Some(report) = report {
            for observer in self.observers().iter_mut() {
                observer(&report);
            }
        }
    }
}

impl State {
    fn check(&self, limits: Limits, tenants: impl Iterator<Item = u64>) -> Result<(), EngineError> {
        match &self.stage {
            Stage::Open => {}
            Stage::Draining | Stage::Closed => return Err(EngineError::Draining),
            Stage::Failed(_) => return self.failure().map_or(Ok(()), Err),
        }
        let mut new: BTreeMap<u64, usize> = BTreeMap::new();
        for tenant in tenants {
            *new.entry(tenant).or_default() += 1;
        }
        let over = |has: usize, requests: usize, most: usize| match requests > most {
            // To come back would not help.
            true => Err(EngineError::TooMany { requests, most }),
            false if has + requests > most => Err(EngineError::Busy { requests: most }),
            false => Ok(()),
        };
        over(self.total, new.values().sum(), limits.all)?;
        new.iter().try_for_each(|(tenant, &count)| {
            let has = self.taken.get(tenant).copied().unwrap_or_default();
            over(has, count, limits.tenant)
        })
    }

    fn failure(&self) -> Option<EngineError> {
        match &self.stage {
            Stage::Failed(message) => Some(EngineError::Panicked {
                message: message.clone(),
            }),
            _ => None,
        }
    }

    fn leave(&mut self, tenant: u64) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.taken.get_mut(&tenant) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(&tenant);
            }
        }
    }
}
