//! Exchanges between GPUs that reach each other's memory, without the host: every rank's kernel writes its part straight
//! into its peers' tensors, any permutation folded into the copy, and waits for theirs on the GPU. `kernels/exchange/`
//! says how.
//!
//! A call queues its kernels and returns. It allocates nothing and waits for nothing once a shape has been seen, and so can
//! be captured in a graph, and replayed: who has come how far is counted in the GPUs' memory. In return an error shows
//! late, at the next call or at [`Direct::check`]: what was computed since must not be taken for a result before that.
//!
//! Ranks are threads of one process, each with a queue. For ranks that are processes, mailboxes and tensors would have to
//! lie in memory that is exported and mapped; all else stands as it is: the kernels are given addresses.

mod boxes;
mod open;
mod report;
mod rotate;
mod seat;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use attn_runtime::comm::{StridedBox, Transfer};
use attn_runtime::device::Scope;
use attn_runtime::{Error, Result};

use super::abi::{self, ExchangeReport};
use super::architecture::{Architecture, supports};
use super::launches::{Launches, launch};
use boxes::Boxes;
use seat::Seat;

/// How long a rank waits for the others, unless said otherwise.
const DEADLINE: Duration = Duration::from_secs(300);

/// What ranks do, in the reports of their kernels.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Exchange,
    Rotate,
}

/// One rank's end of a group of GPUs that write into each other's memory. Made by [`open`](Self::open).
///
/// As for every communicator, each rank of the group makes the same calls in the same order. Nothing here compares them
/// but for the boxes' extents: that is for who calls it.
pub struct Direct<D: Launches> {
    /// By rank: mailboxes that this rank's kernels write to stay while it can queue one.
    seats: Vec<Arc<Seat<D>>>,
    me: usize,
    /// The ranks' numbers in the world.
    members: Vec<usize>,
    limit_nanoseconds: AtomicU64,
    /// How many messages are said to have passed before the first.
    first: u32,
    /// Reused from call to call.
    boxes: Mutex<Boxes>,
}

impl<D: Launches> Direct<D> {
    /// This rank's number in the group, from 0.
    pub const fn rank(&self) -> usize {
        self.me
    }

    /// How many ranks the group has.
    pub const fn size(&self) -> usize {
        self.members.len()
    }

    /// Sets how long what is queued from now on waits for the last rank (five minutes, unless set).
    pub fn set_deadline(&self, deadline: Duration) {
        let nanoseconds = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        self.limit_nanoseconds.store(nanoseconds, Ordering::Relaxed);
    }

    /// Collective: queues what [`Communicator::exchange`](attn_runtime::Communicator::exchange) does.
    ///
    /// # Errors
    /// If the group has failed before (as [`check`](Self::check) says it), a plan names a rank that is not there, or the
    /// device reports an error.
    pub fn exchange(&self, scope: Scope<'_, D>, transfers: &[Transfer<'_, D>]) -> Result<()> {
        self.exchange_all(scope, transfers).inspect_err(|_| self.stay_away(scope.queue()))
    }

    fn exchange_all(&self, scope: Scope<'_, D>, transfers: &[Transfer<'_, D>]) -> Result<()> {
        for transfer in transfers {
            transfer.check_peers(self.size())?;
        }
        let mut boxes = self.boxes.lock().unwrap_or_else(PoisonError::into_inner);
        boxes.clear();
        for peer in 0..self.size() {
            for transfer in transfers {
                boxes.send(peer, transfer.outgoing(peer))?;
                boxes.receive(peer, transfer.incoming(peer))?;
            }
        }
        // SAFETY: the boxes lie inside the transfers' tensors, which are lent for this call, the destinations exclusively.
        // Memory of a device stays until its queues have passed what uses it, and what is queued here is over when no peer
        // writes there any more.
        unsafe { self.post(scope.queue(), &boxes, self.everybody(), Operation::Exchange) }
    }

    /// Collective: as [`exchange`](Self::exchange), of boxes alone. The n-th box that goes from one rank to another is the
    /// n-th that the other receives from it.
    ///
    /// # Safety
    /// As [`Device::copy`](attn_runtime::Device::copy): what goes must be initialised memory that nobody writes, and what
    /// comes memory that nobody else touches, until the queue has passed the call.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange), and if a box is of elements that the kernels do not move.
    #[doc(hidden)]
    pub unsafe fn exchange_boxes(
        &self,
        queue: &D::Queue,
        outgoing: &[(usize, StridedBox)],
        incoming: &[(usize, StridedBox)],
    ) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.exchange_lists(queue, outgoing, incoming) }.inspect_err(|_| self.stay_away(queue))
    }

    /// # Safety
    /// As [`exchange_boxes`](Self::exchange_boxes).
    unsafe fn exchange_lists(
        &self,
        queue: &D::Queue,
        outgoing: &[(usize, StridedBox)],
        incoming: &[(usize, StridedBox)],
    ) -> Result<()> {
        let all = outgoing.iter().chain(incoming);
        if let Some((peer, _)) = all.clone().find(|(peer, _)| *peer >= self.size()) {
            return Err(Error::Plan(format!("there is no rank {peer} in a group of {}", self.size())));
        }
        let of = |list: &[(usize, StridedBox)], peer: usize| -> Vec<StridedBox> {
            list.iter().filter(|(other, _)| *other == peer).map(|(_, part)| *part).collect()
        };
        let mut boxes = self.boxes.lock().unwrap_or_else(PoisonError::into_inner);
        boxes.clear();
        for peer in 0..self.size() {
            boxes.send(peer, of(outgoing, peer).into_iter())?;
            boxes.receive(peer, of(incoming, peer).into_iter())?;
        }
        // SAFETY: the caller's contract.
        unsafe { self.post(queue, &boxes, self.everybody(), Operation::Exchange) }
    }

    /// Whether the group has failed, as far as this rank's kernels have told. Does not wait: whoever wants to know of what
    /// is queued synchronizes the queue before.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the ranks that had not come, [`Error::Plan`] if boxes do not fit each other,
    /// [`Error::RankFailed`] if a rank has given up; numbered in the world. It stays so.
    pub fn check(&self) -> Result<()> {
        report::read(self.report(), self.me, &self.members, self.deadline())
    }

    /// Ends this rank's waits, also those under way, and with them all ranks'. To be called, from any thread, when it is
    /// known that a rank will not come.
    pub fn abort(&self) {
        self.report().abort.store(1, Ordering::Release);
    }

    /// Tells all ranks that this one takes part no more, in the order of the queue. Their waits end.
    ///
    /// # Errors
    /// If the device reports one.
    pub fn withdraw(&self, queue: &D::Queue) -> Result<()> {
        let group = self.group();
        // SAFETY: mailboxes and report stay while `self` does, and kernels are waited for before it goes.
        unsafe { launch::<D, _>(queue, "exchange_withdraw", |launchers| launchers.exchange_withdraw, &group) }
    }

    /// [`withdraw`](Self::withdraw), after an error that is told instead: peers must not wait for what was not queued.
    fn stay_away(&self, queue: &D::Queue) {
        // If this fails too, the others' waits end by their deadline.
        let _ = self.withdraw(queue);
    }

    /// Queues one exchange of boxes with `peers`, a bit for each, and with whom boxes are exchanged.
    ///
    /// # Safety
    /// As [`exchange_boxes`](Self::exchange_boxes).
    unsafe fn post(&self, queue: &D::Queue, boxes: &Boxes, peers: u32, operation: Operation) -> Result<()> {
        self.check()?;
        supports::<D>(queue, "exchange", Architecture::Ampere)?;
        let call = abi::Exchange {
            group: self.group(),
            outgoing: boxes.outgoing().as_ptr(),
            incoming: boxes.incoming().as_ptr(),
            sends: boxes.sends(),
            receives: boxes.receives(),
            peers,
            operation: operation as u32,
        };
        // SAFETY: the lists have as many boxes as are counted, which the caller vouches for; mailboxes and report as in
        // `withdraw`.
        let queued = unsafe { launch::<D, _>(queue, "exchange", |launchers| launchers.exchange, &call) };
        queued.inspect_err(|_| {
            // A part of it may be queued: peers may write here, or wait for what could not be queued, and will hear nothing
            // from a GPU that has failed. What this rank has queued before is over then, or has failed with it.
            self.abort();
            let _ = self.withdraw(queue);
            self.leave(D::synchronize(queue));
        })
    }

    fn group(&self) -> abi::ExchangeGroup {
        let mut mailbox = [core::ptr::null_mut(); abi::EXCHANGE_RANKS];
        for (address, seat) in mailbox.iter_mut().zip(&self.seats) {
            *address = seat.mailbox().as_ptr().cast();
        }
        abi::ExchangeGroup {
            mailbox,
            report: self.report(),
            limit_nanoseconds: self.limit_nanoseconds.load(Ordering::Relaxed),
            me: self.me as u32,
            size: self.size() as u32,
            first: self.first,
            reserved: 0,
        }
    }

    /// A bit for each rank.
    fn everybody(&self) -> u32 {
        (1 << self.size()) - 1
    }

    fn deadline(&self) -> Duration {
        Duration::from_nanos(self.limit_nanoseconds.load(Ordering::Relaxed))
    }

    fn report(&self) -> &ExchangeReport {
        self.seats[self.me].report()
    }

    /// Tells the peers' kernels, once this rank's queue was waited for, that none of its kernels runs or will run: they are
    /// over, or the GPU has failed. Whether that is so.
    fn leave(&self, waited: Result<()>) -> bool {
        if matches!(waited, Err(Error::Capturing { .. })) {
            return false;
        }
        for seat in &self.seats {
            seat.report().gone.fetch_or(1 << self.me, Ordering::AcqRel);
        }
        true
    }
}

impl<D: Launches> Drop for Direct<D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What is queued would wait for peers that may wait for this rank.
            self.abort();
        }
        if !self.leave(self.seats[self.me].settle()) {
            // Kernels may still write to mailboxes: those stay to the end of the process.
            self.seats.drain(..).for_each(core::mem::forget);
        }
    }
}

impl<D: Launches> core::fmt::Debug for Direct<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Direct")
            .field("rank", &self.me)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
