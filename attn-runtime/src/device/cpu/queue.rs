//! The threads of one rank: parked until a kernel has rows to share, never spinning.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::memory::{CpuMemory, Lender};
use crate::error::{Error, Result};

/// The processor's queue: the calling thread and its helpers. Clones share the helpers.
#[derive(Clone)]
pub struct CpuQueue {
    team: Arc<Team>,
    /// Who lends memory for scratch tensors.
    lender: Option<Arc<dyn Lender>>,
}

struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held for the length of a run, so that runs from clones on several threads follow one another. Holds what the
    /// workers use as scratch memory, which only grows.
    turn: Mutex<CpuMemory>,
}

thread_local! {
    /// Whether this thread is at work on a run. A run inside a run stays on its thread, since all others are taken.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// More threads than this are a mistake: no machine has so many cores.
const MAX_THREADS: usize = 4096;

/// Floats of a cache line: what separates the scratch memory of two workers.
const LINE: usize = 16;

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
        // More workers than tasks would have nothing to do, and have no scratch memory.
        if worker >= self.tasks {
            return;
        }
        let _mark = AtWork::begin();
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

/// Marks this thread as at work while it lives.
struct AtWork;

impl AtWork {
    fn begin() -> Self {
        AT_WORK.set(true);
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.set(false);
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
        if threads > MAX_THREADS {
            return Err(Error::Configuration(format!(
                "{threads} threads are more than the {MAX_THREADS} of a team"
            )));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State { generation: 0, run: None, busy: 0, panic: None, closing: false }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let turn = Mutex::new(CpuMemory::zeroed(0)?);
        let mut team = Team { shared, helpers: Vec::with_capacity(threads - 1), turn };
        for worker in 1..threads {
            let shared = Arc::clone(&team.shared);
            let helper =
                Builder::new().name(format!("attn-helper-{worker}")).spawn(move || shared.help(worker));
            team.helpers.push(helper.map_err(|error| Error::Thread(error.to_string()))?);
        }
        Ok(Self { team: Arc::new(team), lender: None })
    }

    /// The same queue, whose arenas take what `lender` has.
    pub(crate) fn borrowing(&self, lender: Arc<dyn Lender>) -> Self {
        Self { team: Arc::clone(&self.team), lender: Some(lender) }
    }

    /// Memory for scratch tensors that is lent to this queue, if any.
    pub(super) fn lent(&self, bytes: usize) -> Option<CpuMemory> {
        self.lender.as_ref()?.lend(bytes)
    }

    /// How many threads take part in a run.
    pub fn threads(&self) -> usize {
        self.team.helpers.len() + 1
    }

    /// Calls `body(worker, task)` once for each task, each worker on a thread of its own, and returns when all are
    /// done. Tasks are claimed in ascending order; nothing is allocated.
    ///
    /// # Panics
    /// If a body panics, with its panic, after all workers have stopped.
    pub fn for_each<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) {
        if self.team.helpers.is_empty() || tasks <= 1 || AT_WORK.get() {
            (0..tasks).for_each(|task| body(0, task));
            return;
        }
        let turn = lock(&self.team.turn);
        self.team.run(tasks, &body);
        drop(turn);
    }

    /// Calls `body(scratch, task)` once for each task, as [`for_each`](Self::for_each) does. Each worker has `floats`
    /// floats of scratch memory of its own, aligned to a cache line, with arbitrary values in it.
    ///
    /// # Errors
    /// If the memory had to grow and could not.
    ///
    /// # Panics
    /// As `for_each`.
    pub fn for_each_with<F>(&self, tasks: usize, floats: usize, body: F) -> Result<()>
    where
        F: Fn(&mut [f32], usize) + Sync,
    {
        let nested = AT_WORK.get();
        let workers = if nested { 1 } else { self.threads().min(tasks) };
        let failed = || Error::OutOfMemory { device: "cpu", bytes: usize::MAX };
        let stride = floats.checked_next_multiple_of(LINE).ok_or_else(failed)?;
        let bytes =
            stride.checked_mul(workers).and_then(|floats| floats.checked_mul(4)).ok_or_else(failed)?;
        if nested {
            let mut own = CpuMemory::zeroed(bytes)?;
            let scratch: &mut [f32] = bytemuck::cast_slice_mut(own.bytes_mut());
            (0..tasks).for_each(|task| body(&mut scratch[..floats], task));
            return Ok(());
        }
        let mut memory = lock(&self.team.turn);
        if memory.bytes().len() < bytes {
            *memory = CpuMemory::zeroed(bytes)?;
        }
        let scratch = Scratch(memory.base().cast());
        self.team.run(tasks, &|worker, task| {
            // SAFETY: `run` gives each of at most `workers` workers a thread of its own, on which its tasks follow one
            // another, so nobody else uses this part of the memory; it lies inside the block, which `memory` keeps
            // locked, and holds initialised floats.
            let scratch = unsafe { std::slice::from_raw_parts_mut(scratch.of(worker, stride), floats) };
            body(scratch, task);
        });
        Ok(())
    }
}

/// The address of all workers' scratch memory.
struct Scratch(NonNull<f32>);

// SAFETY: an address; each use of it is argued where it stands.
unsafe impl Sync for Scratch {}

impl Scratch {
    fn of(&self, worker: usize, stride: usize) -> *mut f32 {
        self.0.as_ptr().wrapping_add(worker * stride)
    }
}

impl Team {
    /// Runs tasks on at most as many workers as there are tasks. The caller holds the turn.
    fn run<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: &F) {
        let job = Job { body, tasks, next: AtomicUsize::new(0) };
        if self.helpers.is_empty() || tasks <= 1 {
            job.work(0);
            return;
        }
        let shared = &self.shared;
        {
            let mut state = lock(&shared.state);
            state.generation += 1;
            state.busy = self.helpers.len();
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
                    // SAFETY: `Team::run` keeps the job alive until `busy` is zero, and this helper counts among the
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
    fn each_worker_has_scratch_of_its_own() {
        let queue = CpuQueue::new(3).unwrap();
        for floats in [0, 1, 5, 100, 7] {
            queue
                .for_each_with(40, floats, |scratch, task| {
                    assert_eq!(scratch.len(), floats);
                    assert_eq!(scratch.as_ptr() as usize % 64, 0);
                    scratch.fill(task as f32);
                    std::thread::yield_now();
                    assert!(scratch.iter().all(|x| *x == task as f32));
                })
                .unwrap();
        }
        assert!(queue.for_each_with(3, usize::MAX, |_, _| ()).is_err());
        assert!(queue.for_each_with(3, usize::MAX / 16, |_, _| ()).is_err());
    }

    #[test]
    fn a_run_inside_a_run_stays_on_its_thread() {
        for threads in [1, 3] {
            let queue = CpuQueue::new(threads).unwrap();
            let sum = AtomicUsize::new(0);
            queue.for_each(5, |_, outer| {
                queue.for_each(4, |_, inner| {
                    sum.fetch_add(outer * inner, Ordering::Relaxed);
                });
                queue
                    .for_each_with(4, 8, |scratch, inner| {
                        scratch.fill(1.0);
                        sum.fetch_add(outer * inner, Ordering::Relaxed);
                    })
                    .unwrap();
            });
            assert_eq!(sum.into_inner(), 2 * 10 * 6);
        }
    }

    #[test]
    fn a_team_of_none_is_an_error() {
        assert!(matches!(CpuQueue::new(0), Err(Error::ZeroSize { .. })));
        assert!(matches!(CpuQueue::new(usize::MAX), Err(Error::Configuration(_))));
    }
}
