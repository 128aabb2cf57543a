//! The shim's functions, and what they are in Rust: codes become errors, handles become types.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use crate::error::{Error, Result};

/// A process's place in the world. Mirrors `attn_mpi_place`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    comm: u64,
    cores: u64,
    pub(super) rank: i32,
    pub(super) size: i32,
    pub(super) local_rank: i32,
    pub(super) local_size: i32,
    /// How many of the processes on this machine may use the same cores, this one included.
    pub(super) sharers: i32,
    unused: i32,
}

const _: () = assert!(size_of::<Place>() == 40 && core::mem::offset_of!(Place, rank) == 16);

/// A message that was found. Mirrors `attn_mpi_found`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    message: u64,
    bytes: u64,
    from: i32,
    there: i32,
}

const _: () = assert!(size_of::<Found>() == 24 && core::mem::offset_of!(Found, from) == 16);

unsafe extern "C" {
    fn attn_mpi_state() -> c_int;
    fn attn_mpi_init(level: *mut c_int) -> c_int;
    fn attn_mpi_serialized(level: c_int) -> c_int;
    fn attn_mpi_open(place: *mut Place) -> c_int;
    fn attn_mpi_send(
        comm: u64,
        bytes: *const c_void,
        length: c_int,
        to: c_int,
        tag: c_int,
        request: *mut u64,
    ) -> c_int;
    fn attn_mpi_receive(
        comm: u64,
        bytes: *mut c_void,
        length: c_int,
        from: c_int,
        tag: c_int,
        request: *mut u64,
    ) -> c_int;
    fn attn_mpi_probe(comm: u64, tag: c_int, found: *mut Found) -> c_int;
    fn attn_mpi_fetch(message: *mut u64, bytes: *mut c_void, length: c_int, request: *mut u64) -> c_int;
    fn attn_mpi_test(request: *mut u64, done: *mut c_int) -> c_int;
    fn attn_mpi_alltoall(comm: u64, parts: *const c_void, received: *mut c_void, bytes: c_int) -> c_int;
    fn attn_mpi_free(comm: u64) -> c_int;
    fn attn_mpi_finalize() -> c_int;
    fn attn_mpi_watch_exit(comm: u64, note: *const c_void, length: c_int, tag: c_int) -> c_int;
    fn attn_mpi_linger(milliseconds: u32);
    fn attn_mpi_text(code: c_int, text: *mut c_char, capacity: c_int);
    fn attn_mpi_version(text: *mut c_char, capacity: c_int);
}

/// Whether MPI may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has started it.
    Down,
    /// It runs.
    Up,
    /// It has ended, and cannot be started again.
    Over,
}

/// Whether MPI may be called.
pub(super) fn state() -> State {
    // SAFETY: MPI allows this at any time.
    match unsafe { attn_mpi_state() } {
        0 => State::Down,
        1 => State::Up,
        _ => State::Over,
    }
}

/// The library's name and version, in its own words.
pub(super) fn version() -> String {
    // SAFETY: MPI allows this at any time; the shim writes a string of the capacity at most.
    text(|text, capacity| unsafe { attn_mpi_version(text, capacity) })
}

/// Starts MPI, unless somebody has.
///
/// # Errors
/// If it cannot be started, or does not let threads call it in turns.
pub(super) fn init() -> Result<()> {
    let mut level = 0;
    // SAFETY: the caller has seen that it is not over; `level` is written before success is returned.
    check("MPI_Init_thread", unsafe { attn_mpi_init(&mut level) })?;
    // SAFETY: a comparison.
    if unsafe { attn_mpi_serialized(level) } != 0 {
        return Ok(());
    }
    Err(Error::Unavailable {
        what: "MPI for threads that call it in turns (MPI_THREAD_SERIALIZED)",
        why: format!("it was started with a lower level, or gives none higher: {level}"),
        cure: "start it with MPI_Init_thread and that level or MPI_THREAD_MULTIPLE, or leave it to \
               `attn::comm::mpi::world`"
            .to_owned(),
    })
}

/// Ends MPI. Waits for all ranks to do so.
///
/// # Errors
/// What MPI says.
pub(super) fn finalize() -> Result<()> {
    // SAFETY: the caller has started MPI and has nothing under way.
    check("MPI_Finalize", unsafe { attn_mpi_finalize() })
}

/// How long after it began to exit such a process ends its job.
pub(super) fn linger(time: Duration) {
    // SAFETY: stores a number.
    unsafe { attn_mpi_linger(u32::try_from(time.as_millis()).unwrap_or(u32::MAX)) };
}

/// A communicator of MPI: a duplicate of `MPI_COMM_WORLD`, so that nobody else's messages meet ours.
#[derive(Debug)]
pub(super) struct Comm(u64);

/// What MPI does with memory of ours, until it says that it is done. Not dropped before: see [`Comm::send`].
#[derive(Debug)]
pub(super) struct Request(u64);

/// A message that is waiting to be fetched.
#[derive(Debug)]
pub(super) struct Message {
    handle: u64,
    /// Who sent it.
    pub(super) from: usize,
    /// How long it is.
    pub(super) bytes: usize,
}

impl Comm {
    /// Collective: a communicator of all ranks, and this one's place in it. `cores` is a number for the cores that this
    /// process may use.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn open(cores: u64) -> Result<(Self, Place)> {
        let mut place = Place { cores, ..Place::default() };
        // SAFETY: MPI runs; the place is written before success is returned.
        check("MPI_Comm_dup", unsafe { attn_mpi_open(&mut place) })?;
        Ok((Self(place.comm), place))
    }

    /// Sees to it that this process, if it exits while MPI is up, sends the others a note and ends its job. To be called
    /// once.
    pub(super) fn watch_exit(&self, note: &[u8], tag: c_int) {
        let length = count(note.len()).unwrap_or(c_int::MAX);
        // SAFETY: the note is copied; a function of C is registered.
        if unsafe { attn_mpi_watch_exit(self.0, note.as_ptr().cast(), length, tag) } != 0 {
            log::warn!("no room to register what ends the MPI job: exit with a status other than 0");
        }
    }

    /// Collective: the n-th of as many equal parts as there are ranks goes to rank n. Waits for all.
    ///
    /// # Errors
    /// What MPI says.
    ///
    /// # Safety
    /// `parts` and `received` have `bytes` for each rank, on every rank the same.
    pub(super) unsafe fn alltoall(&self, parts: &[u8], received: &mut [u8], bytes: usize) -> Result<()> {
        let (parts, received, bytes) = (parts.as_ptr().cast(), received.as_mut_ptr().cast(), count(bytes)?);
        // SAFETY: the caller's contract; MPI is done with both when it returns.
        check("MPI_Alltoall", unsafe { attn_mpi_alltoall(self.0, parts, received, bytes) })
    }

    /// Collective: gives the communicator back.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn free(self) -> Result<()> {
        // SAFETY: it was made by `open`, and nothing names it after this.
        check("MPI_Comm_free", unsafe { attn_mpi_free(self.0) })
    }

    /// Begins to send to a rank.
    ///
    /// # Errors
    /// What MPI says.
    ///
    /// # Safety
    /// The bytes stay where they are, and unchanged, until the request is done.
    pub(super) unsafe fn send(&self, bytes: &[u8], to: usize, tag: c_int) -> Result<Request> {
        let mut request = 0;
        // SAFETY: the caller keeps the bytes; `request` is written before success is returned.
        let code = unsafe {
            attn_mpi_send(self.0, bytes.as_ptr().cast(), count(bytes.len())?, number(to)?, tag, &mut request)
        };
        check("MPI_Isend", code).map(|()| Request(request))
    }

    /// Begins to receive the next message of a rank and tag, which is `length` long.
    ///
    /// # Errors
    /// What MPI says.
    ///
    /// # Safety
    /// `bytes` are so many, and nobody reads, writes or frees them until the request is done.
    pub(super) unsafe fn receive(
        &self,
        bytes: *mut u8,
        length: usize,
        from: usize,
        tag: c_int,
    ) -> Result<Request> {
        let mut request = 0;
        // SAFETY: the caller keeps the bytes; `request` is written before success is returned.
        let code = unsafe {
            attn_mpi_receive(self.0, bytes.cast(), count(length)?, number(from)?, tag, &mut request)
        };
        check("MPI_Irecv", code).map(|()| Request(request))
    }

    /// Looks for a message of a tag, whichever rank's. One that is returned must be fetched.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn probe(&self, tag: c_int) -> Result<Option<Message>> {
        let mut found = Found::default();
        // SAFETY: `found` is written before success is returned.
        check("MPI_Improbe", unsafe { attn_mpi_probe(self.0, tag, &mut found) })?;
        if found.there == 0 {
            return Ok(None);
        }
        let from = usize::try_from(found.from).map_err(|_| unusual("MPI_Improbe", "a negative rank"))?;
        let bytes = usize::try_from(found.bytes).map_err(|_| unusual("MPI_Improbe", "a length too long"))?;
        Ok(Some(Message { handle: found.message, from, bytes }))
    }
}

impl Message {
    /// Begins to receive the message.
    ///
    /// # Errors
    /// What MPI says.
    ///
    /// # Safety
    /// `bytes` are as many as it has, and nobody reads, writes or frees them until the request is done.
    pub(super) unsafe fn fetch(mut self, bytes: *mut u8) -> Result<Request> {
        let mut request = 0;
        // SAFETY: the caller keeps the bytes; `request` is written before success is returned.
        let code =
            unsafe { attn_mpi_fetch(&mut self.handle, bytes.cast(), count(self.bytes)?, &mut request) };
        check("MPI_Imrecv", code).map(|()| Request(request))
    }
}

impl Request {
    /// Whether MPI is done with the memory; after that it always is.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn test(&mut self) -> Result<bool> {
        let mut done = 0;
        // SAFETY: the handle is that of a request, or what MPI puts in the place of one that is done.
        check("MPI_Test", unsafe { attn_mpi_test(&mut self.0, &mut done) })?;
        Ok(done != 0)
    }
}

/// A code as a result.
fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the shim asks MPI only while it runs, and writes a string of the capacity at most.
    let text = text(|text, capacity| unsafe { attn_mpi_text(code, text, capacity) });
    Err(Error::Library { library: "MPI", call, text })
}

fn unusual(call: &'static str, what: &str) -> Error {
    Error::Library { library: "MPI", call, text: format!("it gives {what}") }
}

/// A length as MPI counts; callers cut what is longer.
fn count(length: usize) -> Result<c_int> {
    c_int::try_from(length).map_err(|_| unusual("attn", "a piece longer than MPI counts"))
}

fn number(rank: usize) -> Result<c_int> {
    c_int::try_from(rank).map_err(|_| unusual("attn", "a rank beyond MPI's"))
}

/// A string that C writes.
fn text(write: impl FnOnce(*mut c_char, c_int)) -> String {
    const CAPACITY: usize = 512;
    let mut text = [0_u8; CAPACITY];
    write(text.as_mut_ptr().cast(), CAPACITY as c_int);
    let words = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    words.to_string_lossy().trim().to_owned()
}
