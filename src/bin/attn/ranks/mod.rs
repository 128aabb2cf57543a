//! Who carries the ranks of a run: threads of this process, or processes, of which this is one.

mod collect;
mod processes;
mod start;
mod threads;

use std::time::Duration;

use attn::prelude::*;

pub(crate) use self::start::{OnRanks, check, start};
pub(crate) use self::threads::Threads;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::report::Measured;

/// What a rank computed.
pub(crate) struct Shard<T> {
    pub(crate) out: Tensor<T>,
    pub(crate) lse: Tensor<f32>,
    pub(crate) measured: Measured,
    /// From the moment at which it had its tensors to the one at which the host had its results.
    pub(crate) wall: Duration,
}

/// Ranks, as the process sees them that runs them or is one of them. What is not a rank's own is the reporter's: there is
/// one among the processes, or this process is it.
pub(crate) trait Ranks<D: Machine> {
    /// What a rank talks over.
    type Comm: Communicator<Device = D>;

    /// How many ranks there are, if it is not the command line that says so.
    fn world(&self) -> Option<usize>;

    /// The queue of what this process does outside of runs.
    ///
    /// # Errors
    /// If the device is not there.
    fn queue(&self) -> attn::Result<D::Queue>;

    /// Whether this process is the reporter: it alone writes, prints, and has the results of all.
    fn reports(&self) -> bool;

    /// Calls `body` on every rank, and gives the reporter what they return, by rank.
    ///
    /// # Errors
    /// If a rank fails.
    fn run<T: Element>(
        &self,
        ranks: usize,
        threads: Option<usize>,
        body: impl Fn(Self::Comm) -> attn::Result<Shard<T>> + Sync,
    ) -> Result<Option<Vec<Shard<T>>>, Failure>;

    /// Calls `body` in the reporter, for whom the others wait however long it takes.
    ///
    /// # Errors
    /// If it fails; then everywhere.
    fn alone<R: Send>(&self, body: impl FnOnce() -> Result<R, Failure> + Send) -> Result<Option<R>, Failure>;

    /// Makes a failure that a process has had by itself everybody's, with its exit code. All must come here.
    ///
    /// # Errors
    /// The first process's that has one; only there it says why.
    fn agree<R>(&self, outcome: Result<R, Failure>) -> Result<R, Failure>;
}
