//! What has come from all ranks, in one queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wire::after;
use crate::comm::message::Event;
use crate::error::{Error, Result};

/// How often a rank that ends looks whether what it has sent still goes out.
const LOOK: Duration = Duration::from_millis(100);

/// A queue of events: readers fill it, the rank empties it.
pub(super) struct Inbox {
    contents: Mutex<Contents>,
    changed: Condvar,
    /// Counts what has gone out.
    moved: AtomicU64,
    /// Whether this rank ends because of a failure.
    ill: AtomicBool,
}

struct Contents {
    events: VecDeque<Event>,
    /// Why nothing more can come.
    failure: Option<Error>,
    /// From which ranks nothing will come any more: the loss has been told.
    lost: Vec<bool>,
    /// Which ranks have all that was sent to them, or will never have it.
    parted: Vec<bool>,
}

impl Inbox {
    pub(super) fn new(size: usize) -> Self {
        let contents = Contents {
            events: VecDeque::new(),
            failure: None,
            lost: vec![false; size],
            parted: vec![false; size],
        };
        Self {
            contents: Mutex::new(contents),
            changed: Condvar::new(),
            moved: AtomicU64::new(0),
            ill: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message.
    pub(super) fn push(&self, event: Event) {
        self.lock().events.push_back(event);
        self.changed.notify_all();
    }

    /// Adds the loss of a rank, once.
    pub(super) fn lose(&self, rank: usize, why: String) {
        let mut contents = self.lock();
        if !core::mem::replace(&mut contents.lost[rank], true) {
            contents.events.push_back(Event::Lost { rank, why });
        }
        drop(contents);
        self.changed.notify_all();
    }

    /// The link itself has failed.
    pub(super) fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    /// A rank has all that was sent to it, or will never have it.
    pub(super) fn part(&self, rank: usize) {
        self.lock().parted[rank] = true;
        self.moved();
        self.changed.notify_all();
    }

    /// Something has gone out.
    pub(super) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// This rank ends because of a failure.
    pub(super) fn end_ill(&self) {
        self.ill.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_ill(&self) -> bool {
        self.ill.load(Ordering::Relaxed)
    }

    pub(super) fn has_lost(&self, rank: usize) -> bool {
        self.lock().lost[rank]
    }

    /// The next event, as soon as there is one, until a time.
    pub(super) fn next(&self, until: Instant) -> Result<Option<Event>> {
        let mut contents = self.lock();
        loop {
            if let Some(event) = contents.events.pop_front() {
                return Ok(Some(event));
            }
            if let Some(failure) = &contents.failure {
                return Err(failure.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            contents = self.changed.wait_timeout(contents, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all ranks have parted but this one, for so long at most; `anew`: since anything has last gone out.
    pub(super) fn wait_for_parting(&self, me: usize, patience: Duration, anew: bool) {
        let (mut until, mut seen) = (after(patience), self.moved.load(Ordering::Relaxed));
        let mut contents = self.lock();
        while contents.parted.iter().enumerate().any(|(rank, parted)| rank != me && !parted) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            contents =
                self.changed.wait_timeout(contents, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
            let moved = self.moved.load(Ordering::Relaxed);
            if anew && core::mem::replace(&mut seen, moved) != moved {
                until = after(patience);
            }
        }
    }
}
