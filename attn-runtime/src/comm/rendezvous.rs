//! What ranks tell each other on the host: where communicators that move device memory get their start.

use crate::comm::Call;
use crate::error::{Error, Result};

/// A group of ranks that can talk on the host: threads, sockets, MPI. A communicator for GPUs is opened on one: it hands
/// round identifiers and addresses, compares calls, and learns whether a rank has failed.
pub trait Rendezvous: Send {
    /// This rank's number in the group, from 0.
    fn me(&self) -> usize;

    /// The ranks' numbers in the world, by their number here.
    fn members(&self) -> &[usize];

    /// Collective: every rank's record, by rank. `what` is for messages, and compared.
    ///
    /// # Errors
    /// If ranks call differently, a rank fails, or the deadline passes.
    fn gather(&self, what: &'static str, record: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Collective: compares a call.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    fn agree(&self, call: &Call) -> Result<()>;

    /// Collective: as [`Communicator::split`](crate::Communicator::split).
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    fn subgroup(&self, color: usize, key: usize) -> Result<Box<dyn Rendezvous>>;

    /// Tells every rank of the world of a failure of this one, which ends their waits. Only the first counts.
    fn fail(&self, error: &Error);

    /// The first failure that a rank of the world has told, without waiting.
    fn failure(&self) -> Option<Error>;
}
