//! What rank 0's store holds, and how far each rank has come. Shared by the threads that serve the ranks.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The longest key, in bytes.
pub(super) const MAX_KEY: usize = 256;

/// The longest value, in bytes.
pub(super) const MAX_VALUE: usize = 1 << 20;

/// What all keys and values may have together, in bytes.
const MAX_TOTAL: usize = 64 << 20;

/// How many keys there may be.
const MAX_KEYS: usize = 1 << 16;

/// Keys, values and ranks.
pub(super) struct Shelf {
    contents: Mutex<Contents>,
    changed: Condvar,
}

struct Contents {
    values: HashMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
    /// Which ranks have come.
    here: Vec<bool>,
    /// Which need the store no more.
    finished: Vec<bool>,
    /// Those that are being served.
    served: usize,
    end: Option<End>,
}

/// Why the store is served no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All ranks have finished.
    Well,
    /// A rank has gone before it had finished.
    Lost(usize),
    /// Rank 0 has given up, when these ranks had not come.
    GaveUp(Vec<usize>),
}

/// What came of a rank's arrival.
pub(super) enum Seat {
    Given,
    /// It has come before, or there is no such rank.
    Taken,
    /// The store is served no more.
    Over,
}

/// What came of a wait.
pub(super) enum Waited {
    Value(Vec<u8>),
    /// Not yet; these ranks have not come so far, or have not finished if that is waited for.
    NotYet(Vec<usize>),
    Ended(End),
}

impl Shelf {
    pub(super) fn new(size: usize) -> Self {
        let mut here = vec![false; size];
        here[0] = true;
        let finished = vec![false; size];
        let contents = Contents { values: HashMap::new(), bytes: 0, here, finished, served: 0, end: None };
        Self { contents: Mutex::new(contents), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a value under a key, in the place of what is there.
    ///
    /// # Errors
    /// If it is more than there is room for: in words.
    pub(super) fn set(&self, key: &[u8], value: Vec<u8>) -> Result<(), String> {
        check(key, &value)?;
        let mut contents = self.lock();
        let old = contents.values.get(key).map_or(0, |old| key.len() + old.len());
        let bytes = contents.bytes - old + key.len() + value.len();
        if bytes > MAX_TOTAL || (old == 0 && contents.values.len() == MAX_KEYS) {
            return Err(format!("the store is full: it takes {MAX_KEYS} keys and {MAX_TOTAL} bytes"));
        }
        contents.bytes = bytes;
        contents.values.insert(key.to_vec(), value);
        drop(contents);
        self.changed.notify_all();
        Ok(())
    }

    /// The value of a key, as soon as there is one, until a time.
    pub(super) fn wait(&self, key: &[u8], until: Instant) -> Waited {
        self.until(until, Contents::absent, |contents| contents.values.get(key).cloned())
    }

    /// Waits for the end that comes when all ranks have finished, until a time.
    pub(super) fn wait_for_end(&self, until: Instant) -> Waited {
        self.until(until, Contents::unfinished, |_| None)
    }

    /// Waits until all ranks have finished, on rank 0.
    pub(super) fn wait_for_all(&self, until: Instant) -> Waited {
        let all = |contents: &Contents| contents.unfinished().is_empty().then(Vec::new);
        self.until(until, Contents::unfinished, all)
    }

    fn until(
        &self,
        until: Instant,
        missing: fn(&Contents) -> Vec<usize>,
        found: impl Fn(&Contents) -> Option<Vec<u8>>,
    ) -> Waited {
        let mut contents = self.lock();
        loop {
            if let Some(value) = found(&contents) {
                return Waited::Value(value);
            }
            if let Some(end) = &contents.end {
                return Waited::Ended(end.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::NotYet(missing(&contents));
            }
            contents = self.changed.wait_timeout(contents, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives a rank its seat.
    pub(super) fn seat(&self, rank: u64) -> Seat {
        let mut contents = self.lock();
        if contents.end.is_some() {
            return Seat::Over;
        }
        match usize::try_from(rank).ok().and_then(|rank| contents.here.get_mut(rank)) {
            Some(here) if !*here => {
                *here = true;
                Seat::Given
            }
            _ => Seat::Taken,
        }
    }

    /// A rank that was given a seat has not learned so, and may come again.
    pub(super) fn unseat(&self, rank: usize) {
        self.lock().here[rank] = false;
    }

    /// A rank's connection is served from now on, or no more.
    pub(super) fn serve(&self, by: isize) {
        let mut contents = self.lock();
        contents.served = contents.served.saturating_add_signed(by);
        drop(contents);
        self.changed.notify_all();
    }

    /// Waits until no rank is served any more.
    pub(super) fn wait_for_silence(&self, until: Instant) {
        let mut contents = self.lock();
        while contents.served > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            contents = self.changed.wait_timeout(contents, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A rank needs the store no more.
    pub(super) fn finish(&self, rank: usize) {
        self.lock().finished[rank] = true;
        self.changed.notify_all();
    }

    /// A rank's connection has ended: if it had not finished, it is lost.
    pub(super) fn left(&self, rank: usize) {
        if !self.lock().finished[rank] {
            self.end(End::Lost(rank));
        }
    }

    /// Ends all waits. Only the first end counts.
    pub(super) fn end(&self, end: End) {
        let mut contents = self.lock();
        contents.end.get_or_insert(end);
        drop(contents);
        self.changed.notify_all();
    }
}

/// Whether a key and a value are of sizes that are taken.
///
/// # Errors
/// If they are not: in words.
pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
        return Err(format!(
            "a key of {} and a value of {} bytes: at most {MAX_KEY} and {MAX_VALUE} are taken, and no empty key",
            key.len(),
            value.len()
        ));
    }
    Ok(())
}

impl Contents {
    fn absent(&self) -> Vec<usize> {
        (0..self.here.len()).filter(|rank| !self.here[*rank]).collect()
    }

    fn unfinished(&self) -> Vec<usize> {
        (0..self.finished.len()).filter(|rank| !self.finished[*rank]).collect()
    }
}
