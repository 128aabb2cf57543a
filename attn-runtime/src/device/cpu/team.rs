//! The threads of one rank: parked until a kernel has rows to share, never spinning.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};

/// The processor's queue: the calling thread and its helpers. Clones share the helpers.
#[derive(Clone)]
pub struct CpuQueue(Arc<Team>);

struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held for the length of a run, so that runs from clones on several threads follow one another.
    turn: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Helpers wait here for a run.
    work: Condvar,
    /// The caller waits here for the helpers.
    done: Condvar,
}

struct State {
    /// Counts runs, so that a helper takes part in each once.
    generation: u64,
    run: Option<Run>,
    /// Helpers that have not finished the present run.
    busy: usize,
    panic: Option<Box<dyn Any + Send>>,
    closing: bool,
}

/// A run as the helpers see it: a function of the worker's number and the address of what the caller lent.
#[derive(Clone, Copy)]
struct Run {
    enter: unsafe fn(*const (), usize),
    lent: *const (),
}

// SAFETY: the address is only dereferenced by `enter`, as a shared borrow of a `Job`, which is `Sync`.
unsafe impl Send for Run {}

/// What a caller lends to its helpers: the body and the counter from which tasks are claimed.
struct Job<'a, F> {
    body: &'a F,
    tasks: usize,
    next: AtomicUsize,
}

impl<F: Fn(usize, usize) + Sync> Job<'_, F> {
    fn work(&self, worker: usize) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            (self.body)(worker, task);
        }
    }

    /// # Safety
    /// `lent` must point to a live `Job<F>`.
    unsafe fn enter(lent: *const (), worker: usize) {
        // SAFETY: the caller's contract.
        unsafe { &*lent.cast::<Self>() }.work(worker);
    }
}

impl CpuQueue {
    /// A team of `threads` threads: the caller of each run and `threads - 1` helpers.
    ///
    /// # Errors
    /// If `threads` is zero or a thread cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::ZeroSize { what: "the number of threads" });
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State { generation: 0, run: None, busy: 0, panic: None, closing: false }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let mut team = Team { shared, helpers: Vec::with_capacity(threads - 1), turn: Mutex::new(()) };
        for worker in 1..threads {
            let shared = Arc::clone(&team.shared);
            let helper =
                Builder::new().name(format!("attn-helper-{worker}")).spawn(move || shared.help(worker));
            team.helpers.push(helper.map_err(|error| Error::Thread(error.to_string()))?);
        }
        Ok(Self(Arc::new(team)))
    }

    /// How many threads take part in a run.
    pub fn threads(&self) -> usize {
        self.0.helpers.len() + 1
    }

    /// Calls `body(worker, task)` once for each task, each worker on a thread of its own, and returns when all are
    /// done. Tasks are claimed in ascending order; nothing is allocated.
    ///
    /// # Panics
    /// If a body panics, with its panic, after all workers have stopped.
    pub fn for_each<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) {
        let job = Job { body: &body, tasks, next: AtomicUsize::new(0) };
        if self.0.helpers.is_empty() || tasks <= 1 {
            job.work(0);
            return;
        }
        let _turn = lock(&self.0.turn);
        let shared = &self.0.shared;
        {
            let mut state = lock(&shared.state);
            state.generation += 1;
            state.busy = self.0.helpers.len();
            state.run = Some(Run { enter: Job::<F>::enter, lent: (&raw const job).cast() });
        }
        shared.work.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| job.work(0)));
        // The helpers borrow `job`: whatever happened here, wait until they have let go of it.
        let mut state = lock(&shared.state);
        while state.busy > 0 {
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.run = None;
        let helpers = state.panic.take();
        drop(state);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = helpers {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn help(&self, worker: usize) {
        let mut seen = 0;
        let mut state = lock(&self.state);
        loop {
            if state.closing {
                return;
            }
            match state.run {
                Some(run) if state.generation != seen => {
                    seen = state.generation;
                    drop(state);
                    // SAFETY: `for_each` keeps the job alive until `busy` is zero, and this helper counts among the
                    // busy until below.
                    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (run.enter)(run.lent, worker) }));
                    state = lock(&self.state);
                    if let Err(panic) = outcome {
                        state.panic = Some(panic);
                    }
                    state.busy -= 1;
                    if state.busy == 0 {
                        self.done.notify_one();
                    }
                }
                _ => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.work.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of the bodies it runs, so joining it cannot fail.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for CpuQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuQueue").field("threads", &self.threads()).finish()
    }
}

/// Locks a mutex whose data stay valid when a holder panics: each critical section here is a few assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..5 {
            let queue = CpuQueue::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                queue.for_each(tasks, |worker, task| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let queue = CpuQueue::new(3).unwrap();
        for _ in 0..10 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                queue.for_each(50, |_, task| assert!(task != 31, "task 31"));
            }));
            assert!(outcome.is_err());
            let sum = AtomicUsize::new(0);
            queue.for_each(10, |_, task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn clones_on_several_threads_take_turns() {
        let queue = CpuQueue::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let queue = queue.clone();
                scope.spawn(move || {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        queue.for_each(7, |_, task| {
                            sum.fetch_add(task, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 21);
                    }
                });
            }
        });
    }

    #[test]
    fn a_team_of_none_is_an_error() {
        assert!(matches!(CpuQueue::new(0), Err(Error::ZeroSize { .. })));
    }
}
