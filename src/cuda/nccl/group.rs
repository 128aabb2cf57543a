//! Sends and receives that go together.

use core::ffi::c_void;
use core::ptr::NonNull;
use std::time::Instant;

use attn_runtime::{Error, Result};

use super::abi::{self, RawComm};
use super::comm::Comm;
use super::library::{Library, small};

/// A part of a group: bytes to a rank or from one.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// The n-th to a rank is the n-th that it receives from here.
    Send {
        /// The rank.
        to: usize,
        /// The first byte.
        data: *const u8,
        /// How many.
        bytes: usize,
    },
    /// The n-th from a rank is the n-th that it sends here.
    Receive {
        /// The rank.
        from: usize,
        /// The first byte.
        data: *mut u8,
        /// How many.
        bytes: usize,
    },
}

impl Comm {
    /// Queues messages that all move at once. Returns when they are queued. Between groups of all of a rank's
    /// communicators there must be an order: one stream for all of them is one.
    ///
    /// # Safety
    /// The stream must be one of the communicator's GPU, whose context is the thread's current one. The memory must be
    /// the GPU's; what is sent must not be written, and what is received not touched, until the stream has passed.
    ///
    /// # Errors
    /// If NCCL reports one, another rank has failed, or a first connection takes longer than the deadline. Then nothing
    /// can be said about what was sent, and the communicator was aborted.
    pub unsafe fn group(
        &mut self,
        messages: &[Message],
        stream: *mut c_void,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<()> {
        let library = self.library();
        let mut name = "ncclGroupEnd";
        let queued = self.handle().call_group(&mut name, |raw| {
            // SAFETY: the functions take nothing; between them this thread puts messages into its group.
            let begun = unsafe { (library.group_start)() };
            if begun != abi::SUCCESS {
                return ("ncclGroupStart", begun);
            }
            let mut first = ("ncclGroupEnd", abi::SUCCESS);
            for message in messages {
                // SAFETY: the communicator is live; memory and stream are the caller's contract.
                let (call, code) = unsafe { message.queue(library, raw, stream) };
                if code != abi::SUCCESS && code != abi::IN_PROGRESS {
                    first = (call, code);
                    break;
                }
            }
            // Also after an error, so that the thread's group is closed.
            // SAFETY: as above.
            let ended = unsafe { (library.group_end)() };
            if first.1 == abi::SUCCESS { ("ncclGroupEnd", ended) } else { first }
        });
        self.queued(name, queued, until, failed)
    }

    /// Queues an exchange in which every rank sends as many bytes to every rank, itself included: part n of `from` goes
    /// to rank n, and what comes from rank n becomes part n of `to`.
    ///
    /// # Safety
    /// As [`group`](Self::group); both are `bytes` times the number of ranks long.
    ///
    /// # Errors
    /// As [`group`](Self::group), or if the library has no such function.
    pub unsafe fn all_to_all(
        &mut self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<()> {
        const CALL: &str = "ncclAlltoAll";
        let Some(all_to_all) = self.library().all_to_all else {
            let text = format!("version {} does not have it", self.library().version());
            return Err(Error::Library { library: "NCCL", call: CALL, text });
        };
        let queued = self.handle().call(CALL, |raw| {
            // SAFETY: the communicator is live; memory and stream are the caller's contract.
            unsafe { all_to_all(from.cast(), to.cast(), bytes, abi::BYTES, raw, stream) }
        });
        self.queued(CALL, queued, until, failed)
    }

    /// Waits until what was called for is on its stream: with a communicator that does not block, a first connection
    /// takes place meanwhile.
    fn queued(
        &self,
        call: &'static str,
        queued: Result<()>,
        until: Instant,
        failed: &dyn Fn() -> Option<Error>,
    ) -> Result<()> {
        match queued {
            Ok(()) => self.handle().settle(call, until, failed),
            Err(error) => {
                // Whoever aborted it knows why.
                let error = failed().unwrap_or(error);
                self.handle().abort();
                Err(error)
            }
        }
    }
}

impl super::comm::Handle {
    /// [`call`](Self::call), for a body that says which of its calls the code is of.
    fn call_group(
        &self,
        name: &mut &'static str,
        body: impl FnOnce(*mut RawComm) -> (&'static str, abi::Code),
    ) -> Result<()> {
        let mut of = *name;
        let outcome = self.call(of, |raw| {
            let (call, code) = body(raw);
            of = call;
            code
        });
        *name = of;
        outcome.map_err(|error| match error {
            Error::Library { library, text, .. } => Error::Library { library, call: of, text },
            other => other,
        })
    }
}

impl Message {
    /// Puts the message into the thread's group.
    ///
    /// # Safety
    /// As [`Comm::group`].
    unsafe fn queue(
        &self,
        library: &Library,
        raw: *mut RawComm,
        stream: *mut c_void,
    ) -> (&'static str, abi::Code) {
        /// `ncclInvalidArgument`.
        const NO_SUCH_RANK: abi::Code = 4;
        match *self {
            Self::Send { to, data, bytes } => (
                "ncclSend",
                match small(to, "rank") {
                    // SAFETY: the caller's contract.
                    Ok(to) => unsafe { (library.send)(data.cast(), bytes, abi::BYTES, to, raw, stream) },
                    Err(_) => NO_SUCH_RANK,
                },
            ),
            Self::Receive { from, data, bytes } => (
                "ncclRecv",
                match small(from, "rank") {
                    // SAFETY: the caller's contract.
                    Ok(from) => unsafe {
                        (library.receive)(data.cast(), bytes, abi::BYTES, from, raw, stream)
                    },
                    Err(_) => NO_SUCH_RANK,
                },
            ),
        }
    }
}

// SAFETY: a message is a description; who queues it vouches for the memory.
unsafe impl Send for Message {}

/// The first byte of a buffer, for a message.
pub(crate) const fn at(base: NonNull<u8>, offset: usize) -> *mut u8 {
    base.as_ptr().wrapping_add(offset)
}
