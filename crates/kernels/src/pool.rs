//! The pool of pinned threads that every kernel call runs on.
//!
//! A decode step is some hundred short calls, so a call must begin within a microsecond or two: between calls the threads spin
//! for a while, then park, so that an idle engine burns nothing. The caller works as thread 0. There is no work stealing: who
//! computes what is decided before a call begins, and results do not depend on it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use sparamx_cpu::topology::{self, Placement};

use crate::KernelError;

/// How long a thread spins for work before it parks: longer than the gaps between the calls of a decode step (some
/// microseconds of sampling and tokenizing at most), far shorter than anyone notices as burnt power.
const SPIN: Duration = Duration::from_micros(200);
/// Spins between looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// Calls a function on up to so many threads at once, the caller's among them, and returns when all calls have.
pub type Lender = fn(usize, &(dyn Fn() + Sync));

/// Threads that run one function together, again and again.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where thread `i` runs; none if there are more threads than CPUs.
    cpus: Vec<usize>,
    /// The threads are another's: their number, and how they are had.
    lent: Option<(usize, Lender)>,
    /// Held during a run: one run at a time.
    running: Mutex<()>,
}

struct Shared {
    /// How long to spin before parking.
    spin: Duration,
    /// Number of runs begun; a change tells the workers that `job` is new.
    run: AtomicUsize,
    /// The function of the present run. Written by the caller before `run` changes, and only while `unfinished` is 0.
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers that have not finished the present run. On a line of its own: those that have finished spin on `run`, and each
    /// that finishes would take the line away from them.
    unfinished: Line<AtomicUsize>,
    stop: AtomicBool,
    parked: Box<[AtomicBool]>,
    /// The thread to wake when the run is done, if it parked.
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Two cache lines, as they are prefetched in pairs.
#[repr(align(128))]
struct Line<T>(T);

// SAFETY: `job` is the only field that is not Sync by itself. It is written before the release store to `run` that starts a
// run and read after the acquire load that sees it; the next write waits until `unfinished` is 0. The function is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; a raw pointer is all that hinders Send.
unsafe impl Send for Shared {}

thread_local! {
    /// Set while this thread works for a pool, so that a run inside a run is found out and does not wait for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// As [`Pool::on`] the first CPUs of [`Placement::all`]; with more threads than there are, they run where the system puts them.
    ///
    /// # Errors
    /// [`KernelError::Thread`] if `threads` is 0 or the system refuses one.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        let cpus = Placement::all().take(threads);
        Self::start_threads(threads, cpus.unwrap_or_default())
    }

    /// A thread for each of `cpus`: worker `i` is pinned to `cpus[i]`, the caller, thread 0, is not.
    ///
    /// # Errors
    /// [`KernelError::Thread`] if there are none, or the system refuses a thread.
    pub fn on(cpus: &[usize]) -> Result<Self, KernelError> {
        Self::start_threads(cpus.len(), cpus.to_vec())
    }

    /// `threads - 1` workers, pinned unless `cpus` is empty.
    fn start_threads(threads: usize, cpus: Vec<usize>) -> Result<Self, KernelError> {
        let error = |error: String| KernelError::Thread { threads, error };
        if threads == 0 {
            return Err(error("at least one is needed".into()));
        }
        let shared = Arc::new(Shared {
            // More threads than processors: who spins keeps another from its work.
            spin: if cpus.is_empty() {
                Duration::ZERO
            } else {
                SPIN
            },
            run: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            unfinished: Line(AtomicUsize::new(0)),
            stop: AtomicBool::new(false),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            cpus,
            lent: None,
            running: Mutex::new(()),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = pool.cpus.get(index).copied();
            let worker = thread::Builder::new()
                .name(format!("sparamx-{index}"))
                .spawn(move || work(&shared, index, cpu));
            pool.workers.push(worker.map_err(|e| error(e.to_string()))?);
        }
        Ok(pool)
    }

    /// A pool without threads of its own, for a program whose own threads would be in their way: they spin for work too.
    ///
    /// # Errors
    /// [`KernelError::Thread`] if `threads` is 0.
    pub fn of_lent(threads: usize, lender: Lender) -> Result<Self, KernelError> {
        let mut pool = Self::start_threads(threads.min(1), Vec::new())?;
        pool.lent = Some((threads, lender));
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.lent
            .map_or(self.workers.len() + 1, |(threads, _)| threads)
    }

    /// Pins the calling thread to where thread 0 is to run, as the others are pinned; not if they are not.
    pub fn pin_caller(&self) {
        if let Some(&cpu) = self.cpus.first() {
            // Without a pin the work is the same and a little slower, so a refusal is no error.
            let _ = topology::pin_current_thread(cpu);
        }
    }

    /// Calls `f` for each item; each thread takes the next that is left. Memory that `f` touches first lies where the pool's
    /// threads read it fastest.
    ///
    /// # Errors
    /// One of those that `f` gave; items that are left then are not taken.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn try_for_each<T: Send, E: Send>(
        &self,
        items: &mut [T],
        f: impl Fn(&mut T) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let (left, failed) = (Mutex::new(items.iter_mut()), Mutex::new(None));
        self.run(&|_| {
            while lock(&failed).is_none() {
                let next = lock(&left).next();
                let Some(item) = next else { return };
                if let Err(error) = f(item) {
                    lock(&failed).get_or_insert(error);
                }
            }
        });
        let failed = failed.into_inner();
        failed
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// Runs `job(i)` for each thread `i` and returns when all are done. Calls from several threads take turns.
    ///
    /// # Panics
    /// If `job` panics on any thread (after all have finished), or if called from inside a job.
    pub fn run(&self, job: &Job<'_>) {
        assert!(
            !INSIDE.get(),
            "Pool::run called from inside a job of a pool"
        );
        let _turn = lock(&self.running);
        if let Some((threads, lender)) = self.lent
            && threads > 1
        {
            return self.run_lent(threads, lender, job);
        }
        if self.workers.is_empty() {
            return inside(|| job(0));
        }
        self.start(job);
        let own = catch_unwind(AssertUnwindSafe(|| inside(|| job(0))));
        self.wait();
        let others = lock(&self.shared.panic).take();
        if let Some(panic) = own.err().or(others) {
            resume_unwind(panic);
        }
    }

    /// However many threads there are, each takes what is left to do.
    fn run_lent(&self, threads: usize, lender: Lender, job: &Job<'_>) {
        let next = AtomicUsize::new(0);
        lender(threads, &|| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= threads {
                    return;
                }
                let done = catch_unwind(AssertUnwindSafe(|| inside(|| job(index))));
                if let Err(panic) = done {
                    lock(&self.shared.panic).get_or_insert(panic);
                }
            }
        });
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }

    fn start(&self, job: &Job<'_>) {
        let s = &*self.shared;
        s.unfinished.0.store(self.workers.len(), Ordering::Relaxed);
        // SAFETY: only the lifetime is changed. `run` does not return before every worker has finished with the job (`wait`),
        // also when a job panics. No worker reads `job` now: `unfinished` was 0.
        unsafe {
            *s.job.get() = Some(std::mem::transmute::<*const Job<'_>, *const Job<'static>>(
                job,
            ))
        };
        s.run.fetch_add(1, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&s.parked[1..]) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    fn wait(&self) {
        let s = &*self.shared;
        if spin_until(s.spin, || s.unfinished.0.load(Ordering::Acquire) == 0) {
            return;
        }
        *lock(&s.caller) = Some(thread::current());
        s.caller_parked.store(true, Ordering::SeqCst);
        while s.unfinished.0.load(Ordering::SeqCst) != 0 {
            thread::park();
        }
        s.caller_parked.store(false, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.run.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of jobs, so it has ended well.
            let _ = worker.join();
        }
    }
}

fn inside<R>(f: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.set(false);
        }
    }
    INSIDE.set(true);
    let _leave = Leave;
    f()
}

/// Spins until `done` or for as long as `spin`; says whether it is done.
fn spin_until(spin: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_PER_LOOK {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= spin {
            return done();
        }
    }
}

fn work(s: &Shared, index: usize, cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        // Without a pin the work is the same and a little slower, so a refusal is no error.
        let _ = topology::pin_current_thread(cpu);
    }
    let mut seen = 0;
    loop {
        if !spin_until(s.spin, || s.run.load(Ordering::Acquire) != seen) {
            s.parked[index].store(true, Ordering::SeqCst);
            while s.run.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            s.parked[index].store(false, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        if s.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the caller wrote the job before it changed `run`, and keeps it alive until `unfinished` is 0.
        let job = unsafe { (*s.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| inside(|| job(index))))
        {
            lock(&s.panic).get_or_insert(panic);
        }
        // If the caller parked it is still there, or it has seen the 0 itself and another may have taken its place: then that
        // one is woken for nothing, and looks again.
        if s.unfinished.0.fetch_sub(1, Ordering::SeqCst) == 1
            && s.caller_parked.load(Ordering::SeqCst)
            && let Some(caller) = lock(&s.caller).clone()
        {
            caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_thread_runs_once_in_each_run() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for round in 0..2000 {
                pool.run(&|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|c| c.load(Ordering::Relaxed) == round + 1)
                );
            }
        }
    }

    #[test]
    fn lent_threads_do_all_there_is() {
        fn one(_: usize, f: &(dyn Fn() + Sync)) {
            f();
        }
        fn more(threads: usize, f: &(dyn Fn() + Sync)) {
            thread::scope(|scope| (0..threads + 2).for_each(|_| drop(scope.spawn(f))));
        }
        for lender in [one, more] {
            let pool = Pool::of_lent(3, lender).unwrap();
            assert_eq!(pool.threads(), 3);
            for _ in 0..100 {
                let sum = AtomicU64::new(0);
                pool.run(&|i| {
                    sum.fetch_add(1 << (8 * i), Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 0x10101);
            }
            let fails = || pool.run(&|i| assert_ne!(i, 1, "job 1"));
            assert!(catch_unwind(AssertUnwindSafe(fails)).is_err());
            pool.run(&|_| {});
        }
        assert!(Pool::of_lent(0, one).is_err());
    }

    #[test]
    fn parked_threads_wake_up() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            thread::sleep(SPIN * 10);
            let sum = AtomicU64::new(0);
            pool.run(&|i| {
                thread::sleep(SPIN * (1 + i as u32 * 3));
                sum.fetch_add(1 << (8 * i), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 0x10101);
        }
    }

    /// CPU time that a worker has had.
    #[cfg(target_os = "linux")]
    fn cpu_time(worker: &JoinHandle<()>) -> Duration {
        use std::os::unix::thread::JoinHandleExt;
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the worker has not been joined, so its handle is valid; the other arguments are locals to be written.
        let results = unsafe {
            [
                libc::pthread_getcpuclockid(worker.as_pthread_t(), &mut clock),
                libc::clock_gettime(clock, &mut time),
            ]
        };
        assert_eq!(results, [0, 0]);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn idle_threads_use_no_time() {
        let pool = Pool::new(3).unwrap();
        pool.run(&|_| {});
        let times = || pool.workers.iter().map(cpu_time).collect::<Vec<_>>();
        // They stop some time after the run; a thread that spins never does.
        let stopped = |_| {
            let before = times();
            thread::sleep(SPIN * 100);
            times() == before
        };
        assert!((0..100).any(stopped), "{:?}", times());
        let before = times();
        pool.run(&|_| {});
        assert!(
            times()
                .iter()
                .zip(before)
                .all(|(after, before)| *after > before)
        );
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|i| assert_ne!(i, bad))));
            assert!(result.is_err(), "thread {bad}");
            pool.run(&|_| {});
        }
    }

    #[test]
    #[should_panic(expected = "inside a job")]
    fn a_run_inside_a_run_is_refused() {
        let pool = Pool::new(2).unwrap();
        pool.run(&|_| pool.run(&|_| {}));
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let busy = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(&|_| {
                            assert!(busy.fetch_add(1, Ordering::SeqCst) < 2, "two runs at once");
                            busy.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn items_are_taken_once_until_one_fails() {
        let pool = Pool::new(3).unwrap();
        let mut items: Vec<u32> = (0..1000).collect();
        let double = |item: &mut u32| {
            *item *= 2;
            Ok::<(), String>(())
        };
        pool.try_for_each(&mut items, double).unwrap();
        assert!((0..1000).map(|i| 2 * i).eq(items.iter().copied()));
        let refuse = |item: &mut u32| if *item == 8 { Err("eight") } else { Ok(()) };
        assert_eq!(pool.try_for_each(&mut items, refuse), Err("eight"));
    }

    /// Where each thread of a pool runs.
    #[cfg(target_os = "linux")]
    fn places(pool: &Pool) -> Vec<i32> {
        let places: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(-1)).collect();
        // SAFETY: the call has no arguments and no memory.
        pool.run(&|i| *lock(&places[i]) = unsafe { libc::sched_getcpu() });
        places.iter().map(|place| *lock(place)).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pools_of_one_placement_do_not_share_processors() {
        let all = topology::cpus_by_core();
        let half = all.len() / 2;
        let mut placement = Placement::all();
        let cpus = [half, half].map(|threads| placement.take(threads).unwrap());
        let on = |cpus: &[usize]| {
            let pool = Pool::on(cpus).unwrap();
            // In a thread of its own, which is pinned.
            let places = thread::scope(|scope| {
                let pinned = || {
                    pool.pin_caller();
                    places(&pool)
                };
                scope.spawn(pinned).join().unwrap()
            });
            assert!(
                places
                    .iter()
                    .zip(cpus)
                    .all(|(place, cpu)| *place == *cpu as i32)
            );
        };
        if half > 0 {
            cpus.iter().for_each(|cpus| on(cpus));
            assert!(cpus[0].iter().all(|cpu| !cpus[1].contains(cpu)));
        }
        let reversed: Vec<usize> = all.into_iter().rev().collect();
        on(&reversed);
    }

    #[test]
    fn no_threads_is_an_error() {
        assert!(matches!(
            Pool::new(0),
            Err(KernelError::Thread { threads: 0, .. })
        ));
    }
}
