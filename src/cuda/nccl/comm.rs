//! A communicator of NCCL's, and who may call it when.
//!
//! NCCL wants one thread at a time for a communicator, and frees what it aborts. So the handle is behind a lock; calls
//! never block (the communicators are not of the blocking kind), so that whoever must abort gets the lock at once; and
//! whoever comes after that gets an error. What NCCL is still at is waited for by asking, with a deadline.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attn_runtime::{Error, Result};

use super::abi::{self, Config, RawComm, UniqueId};
use super::library::{Library, small};

/// How long a communicator may take to say good-bye to ranks that are still at work.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long NCCL may take to abort or destroy one.
const PATIENCE: Duration = Duration::from_secs(2);

/// One rank's end of a group of GPUs. Owned by one thread at a time; [`Handle`]s let others look after it.
///
/// Dropping it, or [`close`](Self::close), ends it: at once if a rank has failed, else once all have said good-bye.
#[derive(Debug)]
pub struct Comm {
    handle: Arc<Handle>,
    rank: usize,
    size: usize,
}

/// What a watchdog needs of a communicator: it can ask for errors and abort, on any thread.
#[derive(Debug)]
pub struct Handle {
    library: &'static Library,
    /// None once it was aborted or destroyed.
    raw: Mutex<Option<Raw>>,
}

/// The address of a live communicator.
#[derive(Clone, Copy, Debug)]
struct Raw(NonNull<RawComm>);

// SAFETY: NCCL's communicators are bound to no thread; the lock round each sees to one call at a time.
unsafe impl Send for Raw {}

impl Comm {
    /// Collective over all ranks that were given `id`. The GPU is the calling thread's current one; a deadline passed
    /// aborts. `failed` is asked again and again whether another rank has failed.
    ///
    /// # Errors
    /// If NCCL reports one, `failed` says so, or the deadline passes.
    pub fn open(
        library: &'static Library,
        id: UniqueId,
        rank: usize,
        size: usize,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<Self> {
        let (count, number) = (small(size, "number of ranks")?, small(rank, "rank")?);
        let mut config = Config::NONBLOCKING;
        // On the heap, and let go only when NCCL writes to it no more.
        let slot = Box::new(AtomicPtr::<RawComm>::default());
        // SAFETY: the configuration is filled in, the slot stays until NCCL is done or for good.
        let code = unsafe { (library.init)(slot.as_ptr(), count, id, number, &mut config) };
        library.check("ncclCommInitRankConfig", code)?;
        let Some(raw) = NonNull::new(slot.load(Ordering::Acquire)) else {
            Box::leak(slot);
            return Err(no_handle("ncclCommInitRankConfig"));
        };
        let comm = Self { handle: Handle::new(library, raw), rank, size };
        let ready = comm.handle.settle("ncclCommInitRankConfig", until, failed);
        if ready.is_err() {
            Box::leak(slot);
        }
        ready?;
        Ok(comm)
    }

    /// Collective: splits off a communicator for each color; none for ranks without one. Ranks are in the order of
    /// `key`.
    ///
    /// # Errors
    /// As [`open`](Self::open); then this communicator was aborted too.
    pub fn split(
        &mut self,
        color: Option<usize>,
        key: usize,
        size: usize,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<Option<Self>> {
        let library = self.handle.library;
        let number = color.map_or(Ok(abi::NO_COLOR), |color| small(color, "color"))?;
        let rank = small(key, "key")?;
        let mut config = Config::NONBLOCKING;
        let slot = Box::new(AtomicPtr::<RawComm>::default());
        self.handle.call("ncclCommSplit", |raw| {
            // SAFETY: the communicator is live, the configuration filled in, and the slot stays until NCCL is done.
            unsafe { (library.split)(raw, number, rank, slot.as_ptr(), &mut config) }
        })?;
        if let Err(error) = self.handle.settle("ncclCommSplit", until, failed) {
            Box::leak(slot);
            return Err(error);
        }
        match (NonNull::new(slot.load(Ordering::Acquire)), color) {
            (_, None) => Ok(None),
            (None, Some(_)) => Err(no_handle("ncclCommSplit")),
            (Some(raw), Some(_)) => {
                let child = Self { handle: Handle::new(library, raw), rank: key, size };
                child.handle.settle("ncclCommSplit", until, failed)?;
                Ok(Some(child))
            }
        }
    }

    /// This rank's number.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The library that it is of.
    pub fn library(&self) -> &'static Library {
        self.handle.library
    }

    /// For those who look after it.
    pub const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Makes memory known to NCCL, so that it need not copy what is sent from there or received there. None if this
    /// library does not know how.
    ///
    /// # Safety
    /// The memory must be the GPU's, and stay until [`deregister`](Self::deregister) or the communicator's end.
    ///
    /// # Errors
    /// If NCCL reports one.
    pub unsafe fn register(&mut self, memory: NonNull<u8>, bytes: usize) -> Result<Option<Registration>> {
        let Some((register, _)) = self.handle.library.register else { return Ok(None) };
        let mut registration = core::ptr::null_mut();
        self.handle.call("ncclCommRegister", |raw| {
            // SAFETY: the communicator is live; the memory is the caller's contract.
            unsafe { register(raw, memory.as_ptr().cast(), bytes, &mut registration) }
        })?;
        Ok(Some(Registration(registration)))
    }

    /// The contrary of [`register`](Self::register).
    ///
    /// # Errors
    /// If NCCL reports one.
    pub fn deregister(&mut self, registration: Registration) -> Result<()> {
        let Some((_, deregister)) = self.handle.library.register else { return Ok(()) };
        self.handle.call("ncclCommDeregister", |raw| {
            // SAFETY: the communicator is live, and gave the registration.
            unsafe { deregister(raw, registration.0) }
        })
    }

    /// Ends it when its work is over, waiting a second at most for the other ranks to do the same; whatever happens,
    /// nobody can use it afterwards. Graphs that recorded its work must be dropped before: NCCL waits for them, and after
    /// two seconds it is left to that.
    ///
    /// # Errors
    /// What NCCL reported.
    pub fn close(&mut self) -> Result<()> {
        let library = self.handle.library;
        if !self.handle.is_live() {
            return Ok(());
        }
        let finalized = self
            .handle
            .call("ncclCommFinalize", |raw| {
                // SAFETY: the communicator is live.
                unsafe { (library.finalize)(raw) }
            })
            .and_then(|()| self.handle.settle("ncclCommFinalize", Instant::now() + FAREWELL, &|| None));
        match (finalized, self.handle.take()) {
            // Aborted already.
            (outcome, None) => outcome,
            (Ok(()), Some(raw)) => match Ending::begin(library, raw, End::Destroy).wait() {
                Some(code) => library.check("ncclCommDestroy", code),
                None => Ok(()),
            },
            (Err(error), Some(raw)) => {
                Ending::begin(library, raw, End::Abort).wait();
                Err(error)
            }
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        // An error has no place to go from here.
        let _ = self.close();
    }
}

impl Handle {
    fn new(library: &'static Library, raw: NonNull<RawComm>) -> Arc<Self> {
        Arc::new(Self { library, raw: Mutex::new(Some(Raw(raw))) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Raw>> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Raw> {
        self.lock().take()
    }

    /// Whether it was neither aborted nor destroyed.
    pub fn is_live(&self) -> bool {
        self.lock().is_some()
    }

    /// Makes one call, or several of one group, with nobody else in between.
    pub(super) fn call(
        &self,
        name: &'static str,
        body: impl FnOnce(*mut RawComm) -> abi::Code,
    ) -> Result<()> {
        match &*self.lock() {
            Some(raw) => self.library.check(name, body(raw.0.as_ptr())),
            None => Err(aborted(name)),
        }
    }

    /// What the communicator is at: whether NCCL is done with what it was called for.
    ///
    /// # Errors
    /// The asynchronous error, if there is one, or that it was aborted.
    pub fn progress(&self) -> Result<bool> {
        const CALL: &str = "ncclCommGetAsyncError";
        let mut state = abi::SUCCESS;
        self.call(CALL, |raw| {
            // SAFETY: the communicator is live; the function writes one code.
            unsafe { (self.library.async_error)(raw, &mut state) }
        })?;
        self.library.check(CALL, state)?;
        Ok(state != abi::IN_PROGRESS)
    }

    /// Waits until NCCL is done with what it was called for. A communicator that is not is aborted.
    pub(super) fn settle(
        &self,
        call: &'static str,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<()> {
        let mut pause = Duration::from_micros(1);
        let outcome = loop {
            match self.progress() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Whoever aborted it knows why.
                Err(error) => break failed().unwrap_or(error),
            }
            if let Some(error) = failed() {
                break error;
            }
            if Instant::now() >= until {
                let text = "it was still in progress when the deadline passed; the communicator was aborted";
                break Error::Library { library: "NCCL", call, text: String::from(text) };
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(2));
        };
        self.abort();
        Err(outcome)
    }

    /// Ends the communicator and all that is under way on it, on this rank. Others learn nothing of it. What its
    /// kernels wrote to last is in no known state.
    pub fn abort(&self) {
        // An error has nobody to go to: it is aborted because of another one.
        if let Some(ending) = self.begin_abort() {
            ending.wait();
        }
    }

    /// [`abort`](Self::abort), without waiting for NCCL to be done with it. None if there is nothing to abort.
    pub fn begin_abort(&self) -> Option<Ending> {
        Some(Ending::begin(self.library, self.take()?, End::Abort))
    }
}

/// How a communicator ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Abort,
    Destroy,
}

/// A communicator on its way out, on a thread of its own: NCCL does not let go of one before the graphs that recorded
/// its work, and whoever waits here may be who holds them.
#[derive(Debug)]
pub struct Ending {
    how: End,
    until: Instant,
    done: Receiver<abi::Code>,
}

impl Ending {
    fn begin(library: &'static Library, raw: Raw, how: End) -> Self {
        let (tell, done) = channel();
        let end = move || {
            // All of it, which may go to another thread, not the pointer inside.
            let raw: Raw = raw;
            let function = match how {
                End::Abort => library.abort,
                End::Destroy => library.destroy,
            };
            // SAFETY: the communicator was live and nobody can name it any more.
            let code = unsafe { function(raw.0.as_ptr()) };
            // Nobody may be waiting by now.
            let _ = tell.send(code);
        };
        // Without a thread nobody answers, and the communicator stays.
        let _ = std::thread::Builder::new().name(String::from("attn-nccl-end")).spawn(end);
        Self { how, until: Instant::now() + PATIENCE, done }
    }

    /// What NCCL said. None, and the communicator stays to the end of the process or of what holds it, if NCCL takes too
    /// long.
    pub fn wait(self) -> Option<abi::Code> {
        let left = self.until.saturating_duration_since(Instant::now());
        let said = self.done.recv_timeout(left).ok();
        if said.is_none() {
            let (how, seconds) = (self.how, PATIENCE.as_secs());
            log::warn!(
                "{how:?} of a communicator of NCCL's was not over after {seconds} s, and is waited for no more: drop graphs \
                 before the communicator whose work they recorded"
            );
        }
        said
    }
}

/// Memory that a communicator knows.
#[derive(Debug)]
pub struct Registration(*mut c_void);

// SAFETY: it is a token for the communicator, which is bound to no thread.
unsafe impl Send for Registration {}

/// Memory of the current GPU that NCCL allocated, of the kind that it can use best.
#[derive(Debug)]
pub struct Memory {
    library: &'static Library,
    base: NonNull<u8>,
}

// SAFETY: the block is owned, and the host does not read it through this type.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates on the thread's current GPU; none if this library cannot or will not.
    pub fn allocate(library: &'static Library, bytes: usize) -> Option<Self> {
        let (allocate, _) = library.memory?;
        let mut base = core::ptr::null_mut();
        // SAFETY: the function writes one address.
        let code = unsafe { allocate(&mut base, bytes) };
        (code == abi::SUCCESS).then(|| NonNull::new(base.cast()).map(|base| Self { library, base }))?
    }

    /// The address of the first byte.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Frees it.
    ///
    /// # Safety
    /// Nothing may use it any more, and its GPU must be the thread's current one.
    pub unsafe fn free(self) {
        if let Some((_, free)) = self.library.memory {
            // SAFETY: the library allocated it; the rest is the caller's contract. What cannot be freed is leaked.
            let _ = unsafe { free(self.base.as_ptr().cast()) };
        }
    }
}

fn aborted(call: &'static str) -> Error {
    let text = String::from("the communicator was aborted; open a new one");
    Error::Library { library: "NCCL", call, text }
}

fn no_handle(call: &'static str) -> Error {
    Error::Library { library: "NCCL", call, text: String::from("it gave no communicator") }
}
