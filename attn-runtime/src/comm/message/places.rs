//! How far the ranks of a group say that they have come: for who waits for one of them elsewhere than in a collective of the
//! host's, as between GPUs.
//!
//! To leave word costs a rank nothing: it is written down here. Who has looked for a while and not come further itself asks the
//! others, less and less often, and whoever looks at its link answers, whatever it does there. At its end, or that of its
//! group, a rank tells it unasked: so of who has said farewell there is no more to know.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::note::{Kind, Note};

/// How long a rank looks before it asks, and between two questions at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What is known of a group's ranks, which are numbered in the world here.
#[derive(Debug)]
pub(super) struct Places {
    /// The group's number.
    pub(super) group: u64,
    me: usize,
    /// Who belongs to it. Where others are may be heard before that is known.
    members: OnceLock<Vec<usize>>,
    /// By rank: one more than where it is, as far as is known; zero if nothing is.
    places: Vec<AtomicU64>,
    asking: Mutex<Asking>,
}

/// When to ask.
#[derive(Debug)]
struct Asking {
    /// Where this rank was.
    place: u64,
    /// When it was first seen there, or has last asked, and how long after that it asks.
    since: Instant,
    pause: Duration,
}

impl Places {
    /// Of a group of a world of so many ranks.
    pub(super) fn new(group: u64, me: usize, size: usize) -> Self {
        let places = (0..size).map(|_| AtomicU64::new(0)).collect();
        let asking = Asking { place: 0, since: Instant::now(), pause: PAUSE[0] };
        Self { group, me, members: OnceLock::new(), places, asking: Mutex::new(asking) }
    }

    /// Who belongs to the group.
    pub(super) fn set_members(&self, members: &[usize]) {
        let _ = self.members.set(members.to_vec());
    }

    pub(super) fn members(&self) -> &[usize] {
        self.members.get().map_or(&[], |members| members)
    }

    /// The other members.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        self.members().iter().copied().filter(|rank| *rank != self.me)
    }

    /// This rank has come to a place.
    pub(super) fn arrive(&self, place: u64) {
        self.places[self.me].store(place.saturating_add(1), Ordering::Release);
    }

    /// A rank says where it is.
    pub(super) fn hear(&self, from: usize, place: u64) {
        // Of itself a rank knows more than anybody.
        if let Some(known) = self.places.get(from).filter(|_| from != self.me) {
            known.fetch_max(place.saturating_add(1), Ordering::AcqRel);
        }
    }

    /// Where a rank is, as far as is known.
    pub(super) fn of(&self, rank: usize) -> Option<u64> {
        self.places.get(rank)?.load(Ordering::Acquire).checked_sub(1)
    }

    /// What asks a member where it is.
    pub(super) const fn question(&self) -> Note {
        Note { group: self.group, ..Note::of_the_world(Kind::Where) }
    }

    /// What tells where this rank is, if it has left word.
    pub(super) fn answer(&self) -> Option<Note> {
        let place = self.of(self.me)?;
        Some(Note { group: self.group, numbers: [place, 0, 0, 0, 0], ..Note::of_the_world(Kind::Place) })
    }

    /// Whether to ask the others now. To be called whenever somebody looks.
    pub(super) fn asks(&self, now: Instant) -> bool {
        let asking = &mut *self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.places[self.me].load(Ordering::Acquire);
        if asking.place != place {
            *asking = Asking { place, since: now, pause: PAUSE[0] };
        }
        let is_due = now.saturating_duration_since(asking.since) >= asking.pause;
        if is_due {
            (asking.since, asking.pause) = (now, (2 * asking.pause).min(PAUSE[1]));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_further_does_not_ask_and_who_stays_asks_less_and_less() {
        let places = Places::new(1, 2, 8);
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        for step in 0..10 {
            places.arrive(step);
            assert!(!places.asks(at(90 * step)));
        }
        let asked: Vec<u64> = (810..6000).filter(|now| places.asks(at(*now))).collect();
        assert_eq!(asked, [910, 1110, 1510, 2310, 3310, 4310, 5310]);
    }

    #[test]
    fn members_are_known_by_what_they_say_of_themselves() {
        let places = Places::new(1, 2, 8);
        places.arrive(0);
        for (from, place) in [(7, 5), (7, 3), (2, 9), (8, 1), (4, u64::MAX)] {
            places.hear(from, place);
        }
        places.set_members(&[4, 2, 7, 1]);
        let known = [Some(u64::MAX - 1), Some(0), Some(5), None];
        assert_eq!([0, 1, 2, 3].map(|member| places.of(places.members()[member])), known);
        assert!(places.others().eq([4, 7, 1]));
    }
}
