//! The part of a communicator that differs between sockets, MPI and channels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Bytes;
use crate::error::Result;

/// What stands at the head of each message, for the communicator to read; links carry it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head(pub [u64; 8]);

/// What a link has to tell.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message.
    Message {
        /// Whose: the rank's number in the world.
        from: usize,
        /// Its head.
        head: Head,
        /// Its bytes; none if it has none.
        body: Option<Arc<Bytes>>,
    },
    /// A rank from which nothing will come any more. Told once, after the last of its messages.
    Lost {
        /// The rank's number in the world.
        rank: usize,
        /// What the link knows about it.
        why: String,
    },
}

/// Carries messages between the ranks of a world. Ranks are numbered in the world.
///
/// What is sent is owned by the link until it has gone out: a send that is abandoned never reads what its sender has
/// freed. Nothing here waits but [`receive`](Self::receive) and [`close`](Self::close), which say how long.
pub trait Link: Send + 'static {
    /// What messages call it: `tcp`, `MPI`.
    const NAME: &'static str;

    /// This rank's number.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Queues a message to another rank. What moves tensors cuts bodies to 2^30 bytes at most. Messages from one rank to one
    /// rank arrive in their order, whole. A message to a rank that is lost is dropped: the loss has been told, or will be.
    ///
    /// # Errors
    /// If the link itself fails.
    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()>;

    /// The next event, whichever rank's: at once if there is one, else as soon as one comes, none if none has come when
    /// `until` has passed. Waits without keeping a core busy for long, and goes on with what was sent.
    ///
    /// # Errors
    /// If the link itself fails.
    fn receive(&mut self, until: Instant) -> Result<Option<Event>>;

    /// Gets out what was sent, for so long at most; to be called last. `well` is false if a rank has failed: then the
    /// link must not wait for others in ways that have no end.
    fn close(&mut self, well: bool, grace: Duration);
}
