//! Memory that ranks of one host share: messages between them need no system call, and their bodies move at the speed of
//! memory. The link wakes who sleeps, and tells of failures.
//!
//! Each rank writes to memory of its own, which the others map for reading. So whatever a rank does wrong or whenever it is
//! killed, nobody else's memory is written; and memory that a rank has left behind stays while others map it. Windows alone are
//! written by others, when their rank asks for it.

mod blocks;
mod body;
mod cores;
mod desk;
mod host;
mod memory;
mod windows;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub(super) use blocks::{Blocks, Look, Shown};
pub(super) use body::Body;
use body::Lent;
pub(super) use desk::MESSAGE;
use desk::{Entry, Layout, RING, SHORT, SLEEPS, SLOT, SLOTS, Where, Written};
use host::Mates;
pub(super) use host::{Pairs, key};
use memory::Memory;
pub(super) use windows::{Address, View, Window, Windows};

use super::note::{Kind, Note};
use super::{Bytes, Head, Link};
use crate::error::Result;

/// The number of a message that is being packed: none has it, so its slot is in use until it has got another one.
const PACKED: u64 = u64::MAX;

/// One rank's shared memory.
pub(super) struct Shared {
    layout: Layout,
    place: usize,
    own: Arc<Memory>,
    /// By place; none where no memory is shared, as with this rank itself.
    mates: Vec<Option<Mate>>,
    /// The slots in use: the place of the reader, and the number of the message.
    slots: Vec<Option<(usize, u64)>>,
    /// Whether every rank of the host has a core for itself.
    pub(super) roomy: bool,
}

/// Another rank of the host.
struct Mate {
    rank: usize,
    memory: Arc<Memory>,
    /// Messages written to it and taken from it.
    written: u64,
    taken: u64,
    /// What could not be written yet.
    outbox: VecDeque<(Head, Option<Arc<Bytes>>)>,
    /// Bodies of its messages that came over the link.
    bodies: VecDeque<Body>,
    /// The sleep from which it has been woken.
    rung: u64,
}

/// A slot that is to be filled for a reader.
pub(super) struct Slot {
    own: Arc<Memory>,
    index: usize,
    offset: usize,
    length: usize,
}

impl Slot {
    /// The bytes to be filled.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self.own.at(self.offset, self.length) {
            // SAFETY: the bytes lie inside the mapping and hold what the slot held before, or zeros. The slot is marked as
            // used and not written of to anybody, so whoever read it has said that it does so no more, and nobody else of
            // this process gets it; the borrow is exclusive.
            Some(base) => unsafe { core::slice::from_raw_parts_mut(base, self.length) },
            None => &mut [],
        }
    }
}

/// What stands in a ring next.
pub(super) struct Taken {
    pub(super) from: usize,
    pub(super) head: Head,
    pub(super) body: Body,
}

impl Shared {
    /// Finds out who shares memory with whom, and shares this rank's with those of the same key. `gather` is a collective of
    /// the world.
    ///
    /// # Errors
    /// If `gather` returns one.
    pub(super) fn open(
        me: usize,
        key: &[u8],
        gather: &mut dyn FnMut(&'static str, &[u8]) -> Result<Vec<Vec<u8>>>,
    ) -> Result<(Pairs, Option<Self>)> {
        let (pairs, mates) = host::meet(me, key, gather)?;
        let Some(Mates { layout, place, own, mates, roomy }) = mates else {
            return Ok((pairs, None));
        };
        let mate = |(rank, memory)| Mate {
            rank,
            memory,
            written: 0,
            taken: 0,
            outbox: VecDeque::new(),
            bodies: VecDeque::new(),
            rung: 0,
        };
        let mates = mates.into_iter().map(|found| found.map(mate)).collect();
        let slots = vec![None; SLOTS];
        Ok((pairs, Some(Self { layout, place, own, mates, slots, roomy })))
    }

    fn place_of(&self, rank: usize) -> Option<usize> {
        self.mates.iter().position(|mate| mate.as_ref().is_some_and(|mate| mate.rank == rank))
    }

    /// Whether a rank shares memory with this one.
    pub(super) fn reaches(&self, rank: usize) -> bool {
        self.place_of(rank).is_some()
    }

    /// Whether a slot can be had for a message to a rank.
    pub(super) fn has_room(&self, rank: usize) -> bool {
        self.place_of(rank).is_some_and(|place| self.free(place).is_some())
    }

    /// A slot for a message to the rank at a place.
    fn free(&self, place: usize) -> Option<usize> {
        let mate = self.mates[place].as_ref()?;
        if !mate.outbox.is_empty() || !self.has_entry(place) {
            return None;
        }
        // Nobody who reads slowly keeps all slots from the others.
        let own = |slot: &&Option<(usize, u64)>| matches!(slot, Some(used) if used.0 == place && !self.is_read(*used));
        let share = (self.slots.len() / (self.mates.len() - 1)).max(1);
        if self.slots.iter().filter(own).count() >= share {
            return None;
        }
        self.slots.iter().position(|slot| slot.is_none_or(|used| self.is_read(used)))
    }

    /// Whether a reader has taken a message.
    fn is_read(&self, (place, number): (usize, u64)) -> bool {
        self.taken_by(place) > number
    }

    /// How many messages the rank at a place has taken from this one.
    fn taken_by(&self, place: usize) -> u64 {
        let mate = self.mates[place].as_ref();
        mate.map_or(0, |mate| mate.memory.number(self.layout.taken(self.place)).load(Ordering::Acquire))
    }

    /// Whether the ring to the rank at a place has room, beside what is being packed for it.
    fn has_entry(&self, place: usize) -> bool {
        let written = self.mates[place].as_ref().map_or(0, |mate| mate.written);
        let packed = self.slots.iter().filter(|slot| **slot == Some((place, PACKED))).count() as u64;
        written.wrapping_sub(self.taken_by(place)) + packed < RING
    }

    /// A slot for so many bytes to a rank, if one is free; to be sent at once. What is short needs none.
    pub(super) fn slot(&mut self, rank: usize, length: usize) -> Option<Slot> {
        let place = self.place_of(rank)?;
        let index = self.free(place).filter(|_| (SHORT + 1..=SLOT).contains(&length))?;
        self.slots[index] = Some((place, PACKED));
        Some(Slot { own: Arc::clone(&self.own), index, offset: self.layout.slot(index), length })
    }

    /// Sends a slot that has been filled for this rank.
    pub(super) fn send_slot(
        &mut self,
        link: &mut impl Link,
        rank: usize,
        head: Head,
        slot: &Slot,
    ) -> Result<()> {
        let Some(place) = self.place_of(rank) else { return Ok(()) };
        let number = self.mates[place].as_ref().map_or(0, |mate| mate.written);
        self.slots[slot.index] = Some((place, number));
        self.write(place, head, Where::Here { offset: slot.offset, length: slot.length });
        self.wake(place, link)
    }

    /// Sends a message to a rank that shares memory, as soon as there is room.
    pub(super) fn send(
        &mut self,
        link: &mut impl Link,
        rank: usize,
        head: Head,
        body: Option<Arc<Bytes>>,
    ) -> Result<()> {
        let Some(place) = self.place_of(rank) else { return Ok(()) };
        if let Some(mate) = &mut self.mates[place] {
            mate.outbox.push_back((head, body));
        }
        self.flush(place, link)
    }

    /// Writes what waits for room. Says whether anything still does, for one of the ranks that count.
    pub(super) fn flush_all(&mut self, link: &mut impl Link, counts: impl Fn(usize) -> bool) -> Result<bool> {
        let mut waits = false;
        for place in 0..self.mates.len() {
            self.flush(place, link)?;
            let mate = self.mates[place].as_ref();
            waits |= mate.is_some_and(|mate| !mate.outbox.is_empty() && counts(mate.rank));
        }
        Ok(waits)
    }

    /// Writes what waits for room at one place.
    fn flush(&mut self, place: usize, link: &mut impl Link) -> Result<()> {
        let mut written = false;
        while self.has_entry(place) {
            let Some(mate) = &mut self.mates[place] else { break };
            let Some((head, body)) = mate.outbox.pop_front() else { break };
            let (rank, number) = (mate.rank, mate.written);
            let body = match body {
                None => Where::Nowhere,
                Some(body) if body.len() <= SHORT => {
                    let (offset, length) = (self.layout.short(place, number), body.len());
                    if let Some(to) = self.own.at(offset, length) {
                        // SAFETY: the reader has taken what stood in this entry before (`has_entry`), and is not told of
                        // the new one yet; the entry is memory of this rank, which the body is not.
                        unsafe { core::ptr::copy_nonoverlapping(body.as_ptr(), to, length) };
                    }
                    Where::Here { offset, length }
                }
                Some(body) => {
                    let note = Note::of_the_world(Kind::Body);
                    link.send(rank, note.head(), Some(body))?;
                    Where::Link
                }
            };
            self.write(place, head, body);
            written = true;
        }
        if written { self.wake(place, link) } else { Ok(()) }
    }

    /// Writes a message into the ring of the rank at a place, which has room.
    fn write(&mut self, place: usize, head: Head, body: Where) {
        let Some(mate) = &mut self.mates[place] else { return };
        let numbers = Entry { head, body }.write();
        if let Some(to) = self.own.at(self.layout.entry(place, mate.written), size_of::<Written>()) {
            // SAFETY: the reader has taken what stood in this entry before, and is not told of the new one yet; it is
            // memory of this rank, aligned to 64.
            unsafe { to.cast::<Written>().write(numbers) };
        }
        mate.written += 1;
        self.own.number(self.layout.written(place)).store(mate.written, Ordering::Release);
    }

    /// Wakes the rank at a place if it sleeps: it has something to read, or more room.
    fn wake(&mut self, place: usize, link: &mut impl Link) -> Result<()> {
        let Some(mate) = &mut self.mates[place] else { return Ok(()) };
        // Between what was written before and the look at who sleeps; who goes to sleep has the other order.
        fence(Ordering::SeqCst);
        let sleeps = mate.memory.number(SLEEPS).load(Ordering::Acquire);
        if sleeps % 2 == 1 && mate.rung != sleeps {
            mate.rung = sleeps;
            link.send(mate.rank, Note::of_the_world(Kind::Bell).head(), None)?;
        }
        Ok(())
    }

    /// Says that this rank goes to sleep: whoever writes to it from now on wakes it.
    pub(super) fn sleep(&self) {
        self.own.number(SLEEPS).fetch_or(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub(super) fn awake(&self) {
        let sleeps = self.own.number(SLEEPS);
        let now = sleeps.load(Ordering::Relaxed);
        sleeps.store(now + now % 2, Ordering::Release);
    }

    /// Takes the body of a message from a rank, which came over the link.
    pub(super) fn body(&mut self, from: usize, body: Body) {
        if let Some(place) = self.place_of(from)
            && let Some(mate) = &mut self.mates[place]
        {
            mate.bodies.push_back(body);
        }
    }

    /// The next message of any rank, if there is one; and what waits for room is written, where there is some.
    pub(super) fn take(&mut self, link: &mut impl Link) -> Result<Option<Taken>> {
        for hop in 1..self.mates.len() {
            let place = (self.place + hop) % self.mates.len();
            if self.mates[place].as_ref().is_some_and(|mate| !mate.outbox.is_empty()) {
                self.flush(place, link)?;
            }
            if let Some(taken) = self.take_from(place) {
                if !matches!(taken.body, Body::Lent(_)) {
                    self.wake(place, link)?;
                }
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// The message of the rank at a place that comes next, if it can be taken.
    fn peek(&self, place: usize) -> Option<Entry> {
        let mate = self.mates[place].as_ref()?;
        let written = mate.memory.number(self.layout.written(self.place)).load(Ordering::Acquire);
        // One body at a time: that of the message before has been given back when it counts as taken.
        if written == mate.taken
            || self.own.number(self.layout.taken(place)).load(Ordering::Acquire) != mate.taken
        {
            return None;
        }
        let from = mate.memory.at(self.layout.entry(self.place, mate.taken), size_of::<Written>())?;
        // SAFETY: the entry lies inside the mapping, aligned to 64; the other rank has written it, before it counted it, and
        // writes it no more until it is counted as taken.
        let entry = Entry::read(unsafe { from.cast::<Written>().read() });
        // What is no entry is a message with a head that nobody can read.
        let entry = entry.unwrap_or(Entry { head: Head([0; 8]), body: Where::Nowhere });
        (entry.body != Where::Link || !mate.bodies.is_empty()).then_some(entry)
    }

    fn take_from(&mut self, place: usize) -> Option<Taken> {
        let Entry { head, body } = self.peek(place)?;
        let taken = self.layout.taken(place);
        let mate = self.mates[place].as_mut()?;
        let number = mate.taken;
        mate.taken += 1;
        let body = match body {
            Where::Here { offset, length } => {
                let lent = Lent::new(&mate.memory, offset, length, &self.own, taken, number);
                return Some(Taken { from: mate.rank, head, body: lent.map_or(Body::None, Body::Lent) });
            }
            Where::Link => mate.bodies.pop_front().unwrap_or(Body::None),
            Where::Nowhere => Body::None,
        };
        self.own.number(taken).store(mate.taken, Ordering::Release);
        Some(Taken { from: mate.rank, head, body })
    }

    /// Whether there is something to read.
    pub(super) fn has_mail(&self) -> bool {
        (0..self.mates.len()).any(|place| self.peek(place).is_some())
    }

    /// Tells a rank that a body which it lent has been given back.
    pub(super) fn given_back(&mut self, from: usize, link: &mut impl Link) -> Result<()> {
        self.place_of(from).map_or(Ok(()), |place| self.wake(place, link))
    }
}
