//! One rank's end of a group of ranks that have no memory in common but what the communicator makes.

use core::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::exchange::Exchange;
use super::places::Places;
use super::rotate::{PART, Ring};
use super::round::{Group, Round};
use super::shared::{self, Blocks, Shared};
use super::world::World;
use super::{Bytes, Link};
use crate::comm::call::hash;
use crate::comm::panic::text;
use crate::comm::plan::check_rotation;
use crate::comm::{Call, Communicator, Rendezvous, Signature, Traffic, Transfer, Whereabouts, split};
use crate::device::Scope;
use crate::device::cpu::{Cpu, CpuQueue};
use crate::error::{Error, Result};
use crate::tensor::{Element, KeyValue};

/// The number of the group of all ranks.
const ALL: u64 = 1;

/// The number that it has while ranks find out who shares memory.
const SETTING_UP: u64 = 0;

/// A rank in a group whose ranks have no memory in common but what this makes: what it says and moves goes over a [`Link`],
/// or through memory that ranks of one host share.
///
/// Clones are handles of the same rank: use them one at a time. When the last one is dropped, with those that were split
/// from it, the rank has ended.
pub struct MessageComm<L: Link> {
    end: Arc<End<L>>,
}

/// What the handles of one rank in one group share.
struct End<L: Link> {
    life: Arc<Life<L>>,
    group: Group,
    busy: AtomicBool,
    /// Collectives so far, those that failed included.
    sequence: AtomicU64,
    sent: AtomicU64,
    collectives: AtomicU64,
    /// What ranks of one host show each other in rings.
    blocks: Mutex<Blocks>,
    /// Where they say that they are.
    places: Arc<Places>,
}

impl<L: Link> Drop for End<L> {
    fn drop(&mut self) {
        self.life.world.leave(&self.places);
    }
}

/// A rank's presence in the world: it ends when the last handle of any of its groups is dropped.
struct Life<L: Link> {
    world: World<L>,
    queue: CpuQueue,
}

impl<L: Link> Drop for Life<L> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.fail(&panicked(self.world.rank, "outside of collectives"));
        }
        self.world.close();
    }
}

fn panicked(rank: usize, message: &str) -> Error {
    Error::RankPanicked { rank, message: message.to_owned() }
}

impl<L: Link> Clone for MessageComm<L> {
    fn clone(&self) -> Self {
        Self { end: Arc::clone(&self.end) }
    }
}

impl<L: Link> MessageComm<L> {
    /// Collective: the group of all ranks that the link reaches. No wait of a collective is longer than `deadline`. Ranks of
    /// one host move tensors through memory that they share, unless `ATTN_SHARED_MEMORY=0` is set for one of them or the
    /// system refuses it.
    ///
    /// # Errors
    /// If a rank fails or the deadline passes.
    pub fn new(link: L, queue: CpuQueue, deadline: Duration) -> Result<Self> {
        Self::on_host(link, queue, deadline, &shared::key())
    }

    /// As [`new`](Self::new): ranks of the same key are on one host, one whose key is empty shares no memory.
    pub(super) fn on_host(link: L, queue: CpuQueue, deadline: Duration, key: &[u8]) -> Result<Self> {
        let comm = Self::by_link(link, queue, deadline)?;
        let world = comm.world();
        if world.size > 1 {
            let group = Group { number: SETTING_UP, members: (0..world.size).collect(), me: world.rank };
            let places = world.places(group.number);
            let ranks = Self::in_group(Arc::clone(&comm.end.life), group, places);
            let gather = &mut |what: &'static str, record: &[u8]| ranks.gather(what, record);
            let (pairs, shared) = Shared::open(world.rank, key, gather)?;
            world.share(pairs, shared);
        }
        Ok(comm)
    }

    /// As [`new`](Self::new), but everything goes over the link, also where ranks could share memory; no collective.
    ///
    /// # Errors
    /// If the link's numbers make no sense.
    pub fn by_link(link: L, queue: CpuQueue, deadline: Duration) -> Result<Self> {
        if link.rank() >= link.size() {
            return Err(Error::Configuration(format!(
                "rank {} of a world of {} ranks: ranks are numbered from 0",
                link.rank(),
                link.size()
            )));
        }
        let world = World::new(link, deadline);
        let group = Group { number: ALL, members: (0..world.size).collect(), me: world.rank };
        let places = world.places(group.number);
        Ok(Self::in_group(Arc::new(Life { world, queue }), group, places))
    }

    fn in_group(life: Arc<Life<L>>, group: Group, places: Arc<Places>) -> Self {
        places.set_members(&group.members);
        let end = End {
            life,
            group,
            busy: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            collectives: AtomicU64::new(0),
            blocks: Mutex::default(),
            places,
        };
        Self { end: Arc::new(end) }
    }

    /// Calls `body` and ends this rank, however that returns: the others learn of an error or a panic at once.
    ///
    /// # Errors
    /// What `body` returns; [`Error::RankPanicked`] if it panics. If another rank failed before, its failure, from which this
    /// rank's follows.
    pub fn run<R, E: From<Error> + Display>(self, body: impl FnOnce(Self) -> Result<R, E>) -> Result<R, E> {
        let life = Arc::clone(&self.end.life);
        let world = &life.world;
        let outcome = catch_unwind(AssertUnwindSafe(|| body(self)));
        let failure = world.failure().filter(|failure| failure.told);
        let outcome = match (outcome, failure) {
            (Ok(Ok(value)), _) => Ok(value),
            (_, Some(failure)) => Err(failure.error.into()),
            (Ok(Err(error)), None) => {
                world.fail(&Error::RankFailed { rank: world.rank, message: error.to_string() });
                Err(error)
            }
            (Err(panic), None) => {
                let error = panicked(world.rank, &text(&*panic));
                world.fail(&error);
                Err(error.into())
            }
        };
        // Whatever became of its handles: a rank whose body has returned makes no further call.
        world.close();
        outcome
    }

    pub(super) fn world(&self) -> &World<L> {
        &self.end.life.world
    }

    /// Runs one collective. Any error but the world's own becomes the world's.
    fn collective<R>(&self, call: Call, body: impl FnOnce(&mut Round<'_, L>) -> Result<R>) -> Result<R> {
        let end = &*self.end;
        end.collectives.fetch_add(1, Ordering::Relaxed);
        let sequence = end.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let _unwinding = Unwinding { world: self.world(), call };
        let outcome =
            Round::begin(self.world(), &end.group, call, sequence).and_then(|mut round| body(&mut round));
        outcome.inspect_err(|error| self.world().fail(error))
    }

    /// Refuses a call that makes no sense, which ends the others' waits for it.
    fn refuse<R>(&self, error: Error) -> Result<R> {
        self.world().fail(&error);
        Err(error)
    }

    /// Counts a collective of a group of one, which has nobody to ask.
    fn alone(&self) {
        self.end.collectives.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self) -> Result<Inside<'_>> {
        if self.end.busy.swap(true, Ordering::Acquire) {
            return Err(Error::Reentrant);
        }
        Ok(Inside(&self.end.busy))
    }
}

/// Clears the mark of being inside a collective on the way out.
struct Inside<'c>(&'c AtomicBool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Tells the others of a panic inside a collective.
struct Unwinding<'w, L: Link> {
    world: &'w World<L>,
    call: Call,
}

impl<L: Link> Drop for Unwinding<'_, L> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.fail(&panicked(self.world.rank, &format!("inside {}", self.call)));
        }
    }
}

impl<L: Link> Communicator for MessageComm<L> {
    type Device = Cpu;

    fn rank(&self) -> usize {
        self.end.group.me
    }

    fn size(&self) -> usize {
        self.end.group.members.len()
    }

    fn queue(&self) -> Result<CpuQueue> {
        let queue = &self.end.life.queue;
        Ok(match self.world().windows() {
            Some(windows) => queue.borrowing(Arc::clone(windows) as _),
            None => queue.clone(),
        })
    }

    fn split(&self, color: usize, key: usize) -> Result<Self> {
        let _inside = self.enter()?;
        let Group { number, ref members, me } = self.end.group;
        let (numbers, places) = self.collective(Call::Split, |round| {
            // Others may be done with the new group before this rank has it: what they say is heard from here on.
            let places = self.world().places(hash(&(number, round.sequence(), color as u64)));
            let mut numbers = vec![(color, key); members.len()];
            round.others().try_for_each(|peer| round.call(peer, [color as u64, key as u64, 0, 0], None))?;
            round.meet(|peer, letter| {
                let [_, color, key, ..] = letter.numbers;
                let (Ok(color), Ok(key)) = (color.try_into(), key.try_into()) else {
                    return Ok(());
                };
                numbers[peer] = (color, key);
                Ok(())
            })?;
            Ok((numbers, places))
        })?;
        let chosen = split::members(&numbers, color);
        let group = Group {
            number: places.group,
            me: chosen.iter().position(|&member| member == me).unwrap_or_default(),
            members: chosen.iter().map(|&member| members[member]).collect(),
        };
        Ok(Self::in_group(Arc::clone(&self.end.life), group, places))
    }

    fn exchange(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, Cpu>],
    ) -> Result<()> {
        let _inside = self.enter()?;
        let (me, size) = (self.rank(), self.size());
        let transfers: &[Transfer<'_, Cpu>] = transfers;
        for transfer in transfers {
            transfer.check_peers(size).or_else(|error| self.refuse(error))?;
        }
        if size == 1 {
            self.alone();
            return Exchange::new(scope, transfers, me, size, |_| 0).keep(me, self.members());
        }
        self.collective(Call::Exchange(*signature, transfers.len()), |round| {
            Exchange::of(scope, transfers, round).run(round)?;
            let sent = transfers.iter().map(|transfer| transfer.bytes_sent_by(me)).sum();
            self.end.sent.fetch_add(sent, Ordering::Relaxed);
            Ok(())
        })
    }

    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, Cpu>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, Cpu>,
        mut visit: impl FnMut(usize, KeyValue<'_, T, Cpu>) -> Result<()>,
    ) -> Result<()> {
        let _inside = self.enter()?;
        check_rotation::<T>(signature, lengths, self.size()).or_else(|error| self.refuse(error))?;
        if self.size() == 1 {
            self.alone();
            return visit(0, block);
        }
        self.collective(Call::Rotate(*signature), |round| {
            let moved = |bytes| {
                self.end.sent.fetch_add(bytes, Ordering::Relaxed);
            };
            let mut blocks = self.end.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            Ring::new(round, &mut blocks, PART).run(scope, lengths, block, moved, visit)
        })
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.end.sent.load(Ordering::Relaxed),
            collectives: self.end.collectives.load(Ordering::Relaxed),
        }
    }
}

impl<L: Link> Rendezvous for MessageComm<L> {
    fn me(&self) -> usize {
        self.end.group.me
    }

    fn members(&self) -> &[usize] {
        &self.end.group.members
    }

    fn gather(&self, what: &'static str, record: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _inside = self.enter()?;
        self.collective(Call::Gather(what), |round| {
            let body = Arc::new(Bytes::copied(record)?);
            round.others().try_for_each(|peer| round.call(peer, [0; 4], Some(Arc::clone(&body))))?;
            let mut records = vec![Vec::new(); round.size()];
            records[round.me()] = record.to_vec();
            round.meet(|peer, letter| {
                records[peer] = letter.body.bytes().to_vec();
                Ok(())
            })?;
            Ok(records)
        })
    }

    fn agree(&self, call: &Call) -> Result<()> {
        let _inside = self.enter()?;
        self.collective(*call, |round| {
            round.others().try_for_each(|peer| round.call(peer, [0; 4], None))?;
            round.meet(|_, _| Ok(()))
        })
    }

    fn subgroup(&self, color: usize, key: usize) -> Result<Box<dyn Rendezvous>> {
        Ok(Box::new(self.split(color, key)?))
    }

    fn fail(&self, error: &Error) {
        self.world().fail(error);
    }

    fn failure(&self) -> Option<Error> {
        self.world().failure().map(|failure| failure.error)
    }

    fn arrive(&self, place: u64) {
        self.end.places.arrive(place);
    }

    /// What the others answered last: they are asked now and then while this rank comes no further itself.
    fn whereabouts(&self) -> Vec<Whereabouts> {
        self.world().whereabouts(&self.end.places)
    }
}

impl<L: Link> fmt::Debug for MessageComm<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageComm")
            .field("link", &L::NAME)
            .field("rank", &self.end.group.me)
            .field("size", &self.end.group.members.len())
            .field("world_rank", &self.world().rank)
            .finish_non_exhaustive()
    }
}
