//! A queue of the simulated GPU that runs beside its caller, on a thread: where work waits for other ranks.

use core::ffi::c_void;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use attn_runtime::{Error, Result};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one piece of work after the other, and what C calls to give it one: `SimStream` of
/// `kernels/sim/nccl/nccl.h`.
#[repr(C)]
pub(super) struct Lane {
    enqueue: extern "C" fn(*const Lane, extern "C" fn(*mut c_void), *mut c_void),
    work: Mutex<Sender<Work>>,
}

/// An argument that C passes on to another thread.
struct Argument(*mut c_void);

// SAFETY: who enqueues work with an argument gives it away.
unsafe impl Send for Argument {}

impl Argument {
    fn give(self, work: extern "C" fn(*mut c_void)) {
        work(self.0);
    }
}

extern "C" fn enqueue(lane: *const Lane, work: extern "C" fn(*mut c_void), argument: *mut c_void) {
    let argument = Argument(argument);
    // SAFETY: the stream that a queue gives out is its lane, which lives through the call that it is given to.
    unsafe { &*lane }.run(move || argument.give(work));
}

impl Lane {
    pub(super) fn new() -> Result<Arc<Self>> {
        let (work, queued) = channel::<Work>();
        // It ends when the last handle of the lane is dropped, and what is queued is done.
        let body = move || queued.iter().for_each(|work| work());
        let thread = std::thread::Builder::new().name(String::from("attn-sim-lane"));
        thread.spawn(body).map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Arc::new(Self { enqueue, work: Mutex::new(work) }))
    }

    /// Queues a piece of work.
    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) {
        let sender = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread receives as long as there is a sender.
        let _ = sender.send(Box::new(work));
    }

    /// What C knows it by.
    pub(super) fn stream(self: &Arc<Self>) -> *mut c_void {
        Arc::as_ptr(self).cast_mut().cast()
    }
}

impl core::fmt::Debug for Lane {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

/// A place in a simulated queue: how often it was set, and the last of these that was passed.
#[derive(Clone, Debug, Default)]
pub struct Mark(Arc<(Mutex<[u64; 2]>, Condvar)>);

impl Mark {
    /// Sets it: what is returned is to be called when the queue is there.
    pub(super) fn set(&self) -> impl FnOnce() + Send + 'static {
        let mark = self.clone();
        let number = {
            let mut numbers = mark.lock();
            numbers[0] += 1;
            numbers[0]
        };
        move || {
            mark.lock()[1] = number;
            mark.0.1.notify_all();
        }
    }

    /// The place where it was set last: what is returned waits for it.
    pub(super) fn place(&self) -> impl FnOnce() + Send + 'static {
        let mark = self.clone();
        let number = mark.lock()[0];
        move || {
            let mut numbers = mark.lock();
            while numbers[1] < number {
                numbers = mark.0.1.wait(numbers).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    pub(super) fn is_past(&self) -> bool {
        let numbers = self.lock();
        numbers[1] >= numbers[0]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [u64; 2]> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
