//! One rank's end of a group of threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::group::{Group, Lent, Publication};
use super::health::Health;
use crate::comm::plan::{check_rotation, unlike};
use crate::comm::{Call, Communicator, Rendezvous, Signature, Traffic, Transfer, Whereabouts, split};
use crate::device::{Cpu, Device, Scope, StridedCopy};
use crate::error::{Error, Result};
use crate::tensor::{Element, KeyValue};

/// A rank in a group of threads of this process. Made by [`World`](crate::World).
///
/// Clones are handles of the same rank: use them one at a time.
pub struct ThreadComm<D: Device = Cpu> {
    end: Arc<End<D>>,
}

/// What the handles of one rank in one group share.
struct End<D: Device> {
    group: Arc<Group>,
    rank: usize,
    life: Arc<Life<D>>,
    busy: AtomicBool,
    sent: AtomicU64,
    collectives: AtomicU64,
    /// Reused from call to call.
    copies: Mutex<Vec<StridedCopy>>,
}

// SAFETY: the addresses in `copies` are only used within the call that put them there.
unsafe impl<D: Device> Send for End<D> {}
// SAFETY: as above; the vector is behind a mutex.
unsafe impl<D: Device> Sync for End<D> {}

/// A rank's presence in the world: it ends when the last handle of any of its groups is dropped.
struct Life<D: Device> {
    health: Arc<Health>,
    rank: usize,
    queue: D::Queue,
}

impl<D: Device> Drop for Life<D> {
    fn drop(&mut self) {
        self.health.end(self.rank);
    }
}

impl<D: Device> Clone for ThreadComm<D> {
    fn clone(&self) -> Self {
        Self { end: Arc::clone(&self.end) }
    }
}

impl<D: Device> ThreadComm<D> {
    pub(super) fn new(group: Arc<Group>, rank: usize, queue: D::Queue) -> Self {
        let life = Arc::new(Life { health: Arc::clone(&group.health), rank: group.members[rank], queue });
        Self::in_group(group, rank, life)
    }

    fn in_group(group: Arc<Group>, rank: usize, life: Arc<Life<D>>) -> Self {
        let end = End {
            group,
            rank,
            life,
            busy: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            collectives: AtomicU64::new(0),
            copies: Mutex::new(Vec::new()),
        };
        Self { end: Arc::new(end) }
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.end.life.health
    }

    /// Runs one collective: publish, meet, compare, `body`, meet. Any error but the world's own becomes the world's,
    /// before this rank withdraws.
    fn collective<R>(
        &self,
        call: Call,
        lent: Lent,
        body: impl FnOnce(&Publication<'_>) -> Result<R>,
    ) -> Result<R> {
        let end = &*self.end;
        end.collectives.fetch_add(1, Ordering::Relaxed);
        let publication = end.group.publish(end.rank, call, lent);
        let outcome = (|| {
            publication.meet()?;
            publication.agree()?;
            let value = body(&publication)?;
            publication.meet()?;
            Ok(value)
        })();
        outcome.inspect_err(|error| self.fail(error))
    }

    /// Makes an error of this rank the world's, unless the world has one: then it is that one, or follows from it.
    fn fail(&self, error: &Error) {
        let rank = self.end.life.rank;
        let (rank, shown) = match error {
            // These name ranks of the world already.
            Error::RanksDisagree { rank, .. }
            | Error::RankPanicked { rank, .. }
            | Error::RankFailed { rank, .. }
            | Error::RankLeft { rank, .. }
            | Error::RankLost { rank, .. } => (*rank, error.clone()),
            Error::Deadline { missing, .. } => (missing.first().copied().unwrap_or(rank), error.clone()),
            own => (rank, Error::RankFailed { rank, message: own.to_string() }),
        };
        self.end.life.health.fail(rank, shown);
    }

    /// Marks this rank as inside a collective.
    fn enter(&self) -> Result<Inside<'_>> {
        if self.end.busy.swap(true, Ordering::Acquire) {
            return Err(Error::Reentrant);
        }
        Ok(Inside(&self.end.busy))
    }
}

/// Clears the mark on the way out.
struct Inside<'c>(&'c AtomicBool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Waits on the way out, however that comes, until the queue has done what reads the peers' memory.
struct Settle<'q, D: Device>(&'q D::Queue);

impl<D: Device> Drop for Settle<'_, D> {
    fn drop(&mut self) {
        // An error has no place to go from here; the paths that can report one have asked before.
        let _ = D::synchronize(self.0);
    }
}

impl<D: Device> Communicator for ThreadComm<D> {
    type Device = D;

    fn rank(&self) -> usize {
        self.end.rank
    }

    fn size(&self) -> usize {
        self.end.group.members.len()
    }

    fn queue(&self) -> Result<D::Queue> {
        Ok(self.end.life.queue.clone())
    }

    fn split(&self, color: usize, key: usize) -> Result<Self> {
        let _inside = self.enter()?;
        let (rank, group) = (self.end.rank, &self.end.group);
        let (rank, child) = self.collective(Call::Split, Lent::Split { color, key }, |publication| {
            let numbers = publication.split_numbers()?;
            let members = split::members(&numbers, color);
            let place = members.iter().position(|&member| member == rank).unwrap_or_default();
            let child =
                publication.child(color, || members.iter().map(|&member| group.members[member]).collect());
            Ok((place, child))
        })?;
        group.forget_children();
        Ok(Self::in_group(child, rank, Arc::clone(&self.end.life)))
    }

    fn exchange(
        &self,
        scope: Scope<'_, D>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, D>],
    ) -> Result<()> {
        let _inside = self.enter()?;
        let (me, size, members) = (self.rank(), self.size(), self.members());
        let transfers: &[Transfer<'_, D>] = transfers;
        for transfer in transfers {
            transfer.check_peers(size).inspect_err(|error| self.fail(error))?;
        }
        let mut copies = self.end.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.clear();
        if size == 1 {
            self.end.collectives.fetch_add(1, Ordering::Relaxed);
            for transfer in transfers {
                transfer.copies_from(me, transfer, me, members, &mut copies)?;
            }
            // SAFETY: the boxes lie inside the transfers' own tensors, which are lent for this call, the destination
            // exclusively.
            return unsafe { D::copy(scope.queue(), &copies) };
        }
        // Peers read what this rank's queue has written.
        D::synchronize(scope.queue()).inspect_err(|error| self.fail(error))?;
        let lent = Lent::Address(transfers.as_ptr().cast());
        self.collective(Call::Exchange(*signature, transfers.len()), lent, |publication| {
            let reading = publication.read()?;
            let _settle = Settle::<D>(scope.queue());
            // Start with the next rank, so that not all read from the same one at once.
            for peer in (0..size).map(|hop| (me + 1 + hop) % size) {
                let address: *const Transfer<'_, D> = reading.address(peer)?.cast();
                for (index, mine) in transfers.iter().enumerate() {
                    // SAFETY: the peer made the same call (`agree`), so `address` is that of as many transfers of
                    // the same device, which stay while `reading` lives.
                    let theirs = unsafe { &*address.add(index) };
                    mine.copies_from(me, theirs, peer, members, &mut copies)?;
                }
            }
            // SAFETY: the sources lie inside tensors that the peers lend while `reading` lives, the destinations
            // inside those that this rank's caller lends exclusively.
            unsafe { D::copy(scope.queue(), &copies) }?;
            D::synchronize(scope.queue())?;
            let sent = transfers.iter().map(|transfer| transfer.bytes_sent_by(me)).sum();
            self.end.sent.fetch_add(sent, Ordering::Relaxed);
            Ok(())
        })
    }

    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, D>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, D>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, D>) -> Result<()>,
    ) -> Result<()> {
        let _inside = self.enter()?;
        let (me, size) = (self.rank(), self.size());
        check_rotation::<T>(signature, lengths, size).inspect_err(|error| self.fail(error))?;
        if size == 1 {
            self.end.collectives.fetch_add(1, Ordering::Relaxed);
            return visit(0, block);
        }
        D::synchronize(scope.queue()).inspect_err(|error| self.fail(error))?;
        self.collective(Call::Rotate(*signature), Lent::Address((&raw const block).cast()), |publication| {
            let reading = publication.read()?;
            let _settle = Settle::<D>(scope.queue());
            for hop in 0..size {
                let owner = (me + size - hop) % size;
                // SAFETY: the peer made the same call with the same element type (`agree` compares it, and it was
                // checked above), so the address is that of a `KeyValue` of this type, which stays while `reading`
                // lives. The copy made here keeps the tensors' addresses only; `visit` cannot keep it.
                let theirs = unsafe { *reading.address(owner)?.cast::<KeyValue<'_, T, D>>() };
                let length = theirs.key.shape()[1];
                if length != lengths[owner] {
                    return Err(unlike(self.members()[owner], length, lengths[owner]));
                }
                if hop + 1 < size {
                    // To the next rank, who has it next.
                    let elements =
                        |shape: [usize; 4]| shape.iter().fold(1_usize, |n, &axis| n.saturating_mul(axis));
                    let both = elements(theirs.key.shape()).saturating_add(elements(theirs.value.shape()));
                    let bytes = both.saturating_mul(size_of::<T>()) as u64;
                    self.end.sent.fetch_add(bytes, Ordering::Relaxed);
                }
                visit(owner, theirs)?;
            }
            D::synchronize(scope.queue())
        })
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.end.sent.load(Ordering::Relaxed),
            collectives: self.end.collectives.load(Ordering::Relaxed),
        }
    }
}

impl<D: Device> Rendezvous for ThreadComm<D> {
    fn me(&self) -> usize {
        self.end.rank
    }

    fn members(&self) -> &[usize] {
        &self.end.group.members
    }

    fn gather(&self, what: &'static str, record: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _inside = self.enter()?;
        self.collective(Call::Gather(what), Lent::Address((&raw const record).cast()), |publication| {
            let reading = publication.read()?;
            let record = |rank| {
                // SAFETY: the peer made the same call (`agree`), so the address is that of a slice on its stack, which
                // stays, as what it borrows, while `reading` lives.
                Ok(unsafe { *reading.address(rank)?.cast::<&[u8]>() }.to_vec())
            };
            (0..self.end.group.members.len()).map(record).collect()
        })
    }

    fn agree(&self, call: &Call) -> Result<()> {
        let _inside = self.enter()?;
        self.collective(*call, Lent::Address(core::ptr::null()), |_| Ok(()))
    }

    fn subgroup(&self, color: usize, key: usize) -> Result<Box<dyn Rendezvous>> {
        Ok(Box::new(self.split(color, key)?))
    }

    fn fail(&self, error: &Error) {
        Self::fail(self, error);
    }

    fn failure(&self) -> Option<Error> {
        self.end.life.health.failure().map(|failure| failure.error.clone())
    }

    fn arrive(&self, place: u64) {
        self.end.group.arrivals[self.end.rank].store(place, Ordering::Release);
    }

    fn whereabouts(&self) -> Vec<Whereabouts> {
        let Group { members, arrivals, health, .. } = &*self.end.group;
        // In this order: a rank that has ended arrives nowhere afterwards.
        let of = |(member, arrived): (&usize, &AtomicU64)| {
            let ended = health.has_ended(*member);
            Whereabouts { arrived: Some(arrived.load(Ordering::Acquire)), ended }
        };
        members.iter().zip(arrivals).map(of).collect()
    }
}

impl<D: Device> std::fmt::Debug for ThreadComm<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadComm")
            .field("rank", &self.rank())
            .field("size", &self.size())
            .field("world_rank", &self.end.life.rank)
            .finish_non_exhaustive()
    }
}
