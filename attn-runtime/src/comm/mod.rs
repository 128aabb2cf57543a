//! Communicators: what moves tensors between ranks. They are given boxes and base addresses and never ask what the
//! axes mean.

mod call;
pub mod message;
#[cfg(feature = "mpi")]
pub mod mpi;
mod panic;
mod place;
mod plan;
mod processes;
mod rendezvous;
mod signature;
mod split;
pub mod tcp;
pub mod threads;
mod world;

pub use call::Call;
pub use place::{Place, Token};
pub(crate) use plan::packed;
pub use plan::{ExchangePlan, Region, Section, StridedBox, Transfer};
pub use processes::Processes;
pub use rendezvous::{Rendezvous, Whereabouts};
pub use signature::Signature;
pub use threads::ThreadComm;
pub use world::World;

use crate::device::{Device, Scope};
use crate::error::Result;
use crate::tensor::{Element, KeyValue};

/// What a rank has moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes that this rank sent to other ranks. (What ranks of one memory read in place is counted as if it went over
    /// links: each block of a ring once for each hop, whether a mask then skips it or not.)
    pub sent: u64,
    /// Collective calls.
    pub collectives: u64,
}

impl core::ops::Sub for Traffic {
    type Output = Self;

    /// What was moved since an earlier reading.
    fn sub(self, earlier: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            collectives: self.collectives.saturating_sub(earlier.collectives),
        }
    }
}

impl core::ops::Add for Traffic {
    type Output = Self;

    /// What was moved through both of two groups.
    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent.saturating_add(other.sent),
            collectives: self.collectives.saturating_add(other.collectives),
        }
    }
}

/// One rank's end of a group.
///
/// All methods that take part in a collective must be called by every rank of the group, in the same order. A
/// communicator that can tell compares the [`Signature`]s and answers a difference with
/// [`Error::RanksDisagree`](crate::Error::RanksDisagree) on every rank; and a rank that fails must end the others'
/// waits with an error, never leave them waiting.
pub trait Communicator: Sized + 'static {
    /// Where the tensors live that it moves. A kernel for another device does not fit, which the compiler sees.
    type Device: Device;

    /// This rank's number in the group, from 0.
    fn rank(&self) -> usize;

    /// How many ranks the group has.
    fn size(&self) -> usize;

    /// The queue on which this rank works.
    ///
    /// # Errors
    /// If it has to be made and cannot be.
    fn queue(&self) -> Result<<Self::Device as Device>::Queue>;

    /// Collective: splits the group into one group per `color`. Ranks of a color are numbered by `key`, then by
    /// their number here.
    ///
    /// # Errors
    /// If a rank fails.
    fn split(&self, color: usize, key: usize) -> Result<Self>;

    /// Collective: every transfer's plan says which box of its source goes to which rank, and where what comes from
    /// each rank belongs in its destination.
    ///
    /// # Errors
    /// If ranks differ in `signature` or in the extents of a box, if a rank fails, or the deadline passes.
    fn exchange(
        &self,
        scope: Scope<'_, Self::Device>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, Self::Device>],
    ) -> Result<()>;

    /// Collective: shows every rank's block to every rank. `visit(owner, block)` is called `size` times: with this
    /// rank's own block first, then in the order in which a ring would bring them: the ranks before it, backwards,
    /// round the corner. Blocks are alike but for their length: `lengths` says how long the second axis of each rank's is,
    /// the same on every rank, and it may be zero. The block is lent for the call of `visit` alone; where memory is shared it
    /// is the owner's own, read in place. `visit` must make no collective call on this group. What it takes of scratch memory is
    /// free again when it returns, while the queue may still use it: who takes some after that touches it in the queue's order.
    ///
    /// # Errors
    /// If `visit` returns one (then every rank of the group gets one), if ranks differ in `signature`, if a rank
    /// fails, or the deadline passes.
    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, Self::Device>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, Self::Device>,
        visit: impl FnMut(usize, KeyValue<'_, T, Self::Device>) -> Result<()>,
    ) -> Result<()>;

    /// What this rank has moved through this group so far.
    fn traffic(&self) -> Traffic;
}
