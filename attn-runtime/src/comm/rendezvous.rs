//! What ranks tell each other on the host: where communicators that move device memory get their start.

use crate::comm::Call;
use crate::error::{Error, Result};

/// What is known of a rank, without asking it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// What it gave to [`Rendezvous::arrive`] last, if that can be told.
    pub arrived: Option<u64>,
    /// Whether it makes no further call.
    pub ended: bool,
}

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

    /// Leaves word of how far this rank has come, in numbers that only grow and that the communicator which was opened on
    /// this group gives a meaning: what [`whereabouts`](Self::whereabouts) tells the others. Does not wait.
    fn arrive(&self, _place: u64) {}

    /// What is known of the ranks, by rank, without waiting. Unless a group knows better, nothing.
    fn whereabouts(&self) -> Vec<Whereabouts> {
        vec![Whereabouts::default(); self.members().len()]
    }
}
