//! What has come from all ranks, in one queue.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::comm::message::Event;
use crate::error::{Error, Result};

/// A queue of events: readers fill it, the rank empties it.
pub(super) struct Inbox {
    contents: Mutex<Contents>,
    changed: Condvar,
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
        Self { contents: Mutex::new(contents), changed: Condvar::new() }
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
        self.changed.notify_all();
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

    /// Waits until all ranks have parted but this one, until a time.
    pub(super) fn wait_for_parting(&self, me: usize, until: Instant) {
        let mut contents = self.lock();
        while contents.parted.iter().enumerate().any(|(rank, parted)| rank != me && !parted) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            contents = self.changed.wait_timeout(contents, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
