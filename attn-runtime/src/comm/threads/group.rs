//! The meeting place of a group's ranks.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::health::{Health, Wake};
use crate::comm::Call;
use crate::error::{Error, Result};

/// A group of ranks: who they are, what they publish, and where they wait.
pub(super) struct Group {
    /// The members' numbers in the world, by their number here.
    pub(super) members: Vec<usize>,
    pub(super) deadline: Duration,
    pub(super) health: Arc<Health>,
    /// How far each rank says that it has come.
    pub(super) arrivals: Vec<AtomicU64>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    slots: Vec<Slot>,
    /// Counts meetings that have taken place: two for each collective.
    meetings: u64,
    /// How many ranks have come to the next meeting.
    arrived: usize,
    /// New groups made by a split, until their members have fetched them.
    children: Vec<(usize, Arc<Group>)>,
}

#[derive(Clone, Default)]
struct Slot {
    arrived: bool,
    call: Option<Call>,
    lent: Option<Lent>,
    /// Ranks that are reading what this one lent.
    readers: usize,
}

/// What a rank lends: the address of something on its stack that lives until its [`Publication`] is dropped, or the
/// numbers of a split.
#[derive(Clone, Copy)]
pub(super) enum Lent {
    Address(*const ()),
    Split { color: usize, key: usize },
}

// SAFETY: the address travels between threads; each dereference of it is argued where it stands.
unsafe impl Send for Lent {}

impl Wake for Group {
    fn wake(&self) {
        // Taking the lock puts the wake-up after any check of the health that a waiter has under way.
        drop(self.lock());
        self.changed.notify_all();
    }
}

impl Group {
    pub(super) fn new(members: Vec<usize>, deadline: Duration, health: Arc<Health>) -> Arc<Self> {
        let slots = vec![Slot::default(); members.len()];
        let arrivals = members.iter().map(|_| AtomicU64::new(0)).collect();
        let state = State { slots, meetings: 0, arrived: 0, children: Vec::new() };
        let group = Arc::new(Self {
            members,
            deadline,
            health,
            arrivals,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let watched: Weak<Self> = Arc::downgrade(&group);
        group.health.watch(watched);
        group
    }

    /// Publishes a rank's call. What is lent must live until the publication is dropped.
    pub(super) fn publish(&self, rank: usize, call: Call, lent: Lent) -> Publication<'_> {
        let mut state = self.lock();
        let slot = &mut state.slots[rank];
        slot.call = Some(call);
        slot.lent = Some(lent);
        Publication { group: self, rank, call }
    }

    /// The error for a member that has revoked what it lent. It has reported why before it did.
    fn withdrew(&self, rank: usize) -> Error {
        match self.health.failure() {
            Some(failure) => failure.error.clone(),
            None => Error::RankFailed {
                rank: self.members[rank],
                message: String::from("it withdrew from the collective"),
            },
        }
    }

    /// Forgets the groups of a split, once all members have fetched theirs.
    pub(super) fn forget_children(&self) {
        self.lock().children.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank's call while it is under way.
///
/// Dropping it revokes what was lent and waits until nobody reads it: on the way out of every collective, whether it
/// went well or not. (It never leaves the frames of this module and `comm`, so it is always dropped.)
pub(super) struct Publication<'g> {
    group: &'g Group,
    rank: usize,
    call: Call,
}

impl Publication<'_> {
    /// Waits until every rank has come to this meeting.
    pub(super) fn meet(&self) -> Result<()> {
        let Self { group, rank, .. } = *self;
        let started = Instant::now();
        let mut state = group.lock();
        let meeting = state.meetings;
        state.slots[rank].arrived = true;
        state.arrived += 1;
        if state.arrived == group.members.len() {
            state.meetings += 1;
            state.arrived = 0;
            for slot in &mut state.slots {
                slot.arrived = false;
            }
            drop(state);
            group.changed.notify_all();
            return Ok(());
        }
        loop {
            if let Some(failure) = group.health.failure() {
                return Err(failure.error.clone());
            }
            let missing = || {
                state
                    .slots
                    .iter()
                    .zip(&group.members)
                    .filter(|(slot, _)| !slot.arrived)
                    .map(|(_, &member)| member)
            };
            let sequence = meeting / 2 + 1;
            if let Some(gone) = missing().find(|&member| group.health.has_ended(member)) {
                let error = Error::RankLeft { rank: gone, operation: self.call.to_string(), sequence };
                drop(state);
                group.health.fail(gone, error.clone());
                return Err(error);
            }
            let Some(left) = group.deadline.checked_sub(started.elapsed()).filter(|left| !left.is_zero())
            else {
                let error = Error::Deadline {
                    operation: self.call.to_string(),
                    sequence,
                    seconds: group.deadline.as_secs_f64(),
                    missing: missing().collect(),
                };
                let first = missing().next().unwrap_or(group.members[rank]);
                drop(state);
                group.health.fail(first, error.clone());
                return Err(error);
            };
            state = group.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if state.meetings != meeting {
                return Ok(());
            }
        }
    }

    /// Compares all ranks' calls. To be called between the two meetings. Ranks are numbered in the world: the error
    /// may reach other groups of it.
    pub(super) fn agree(&self) -> Result<()> {
        let state = self.group.lock();
        if let Some(failure) = self.group.health.failure() {
            return Err(failure.error.clone());
        }
        if let Some(gone) = state.slots.iter().position(|slot| slot.call.is_none()) {
            return Err(self.group.withdrew(gone));
        }
        let calls = state.slots.iter().filter_map(|slot| slot.call);
        if calls.clone().all(|call| call == self.call) {
            return Ok(());
        }
        let calls: Vec<Call> = calls.collect();
        Call::agree(&self.group.members, || calls.iter())
    }

    /// Begins to read what all ranks have lent; to be called between the two meetings.
    pub(super) fn read(&self) -> Result<Reading<'_>> {
        let mut state = self.group.lock();
        if let Some(failure) = self.group.health.failure() {
            return Err(failure.error.clone());
        }
        if let Some(gone) = state.slots.iter().position(|slot| slot.lent.is_none()) {
            return Err(self.group.withdrew(gone));
        }
        for slot in &mut state.slots {
            slot.readers += 1;
        }
        Ok(Reading { group: self.group })
    }

    /// The colors and keys of a split, by rank; to be called between the two meetings.
    pub(super) fn split_numbers(&self) -> Result<Vec<(usize, usize)>> {
        let state = self.group.lock();
        let numbers = state.slots.iter().enumerate().map(|(rank, slot)| match slot.lent {
            Some(Lent::Split { color, key }) => Ok((color, key)),
            Some(Lent::Address(_)) | None => Err(self.group.withdrew(rank)),
        });
        numbers.collect()
    }

    /// The new group of a color: made by the first of its members who asks.
    pub(super) fn child(&self, color: usize, members: impl FnOnce() -> Vec<usize>) -> Arc<Group> {
        let mut state = self.group.lock();
        if let Some((_, child)) = state.children.iter().find(|(other, _)| *other == color) {
            return Arc::clone(child);
        }
        let child = Group::new(members(), self.group.deadline, Arc::clone(&self.group.health));
        state.children.push((color, Arc::clone(&child)));
        child
    }
}

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others must not take what is missing now for a difference in calls, nor go on without this rank.
            let rank = self.group.members[self.rank];
            let message = format!("inside {}", self.call);
            self.group.health.fail(rank, Error::RankPanicked { rank, message });
        }
        let mut state = self.group.lock();
        state.slots[self.rank].lent = None;
        while state.slots[self.rank].readers > 0 {
            state = self.group.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.slots[self.rank].call = None;
    }
}

/// While it lives, what the ranks have lent stays.
pub(super) struct Reading<'g> {
    group: &'g Group,
}

impl Reading<'_> {
    /// The address that a rank has lent. What stands there stays while `self` lives.
    pub(super) fn address(&self, rank: usize) -> Result<*const ()> {
        // Who reads on after a failure keeps the failing rank waiting for it.
        if let Some(failure) = self.group.health.failure() {
            return Err(failure.error.clone());
        }
        match self.group.lock().slots[rank].lent {
            Some(Lent::Address(address)) => Ok(address),
            Some(Lent::Split { .. }) | None => Err(self.group.withdrew(rank)),
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        for slot in &mut state.slots {
            slot.readers -= 1;
        }
        drop(state);
        self.group.changed.notify_all();
    }
}
