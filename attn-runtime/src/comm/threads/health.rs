//! Who still lives: shared by all groups of a world, so that a failure ends every wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, Weak};

use crate::error::Error;

/// What a world knows of its ranks.
pub(super) struct Health {
    /// The first failure: the one that all ranks report.
    failure: OnceLock<Failure>,
    /// Which ranks have ended, well or badly.
    ended: Vec<AtomicBool>,
    /// Whom to wake.
    groups: Mutex<Vec<Weak<dyn Wake>>>,
}

/// The failure that brought a world down.
#[derive(Debug)]
pub(super) struct Failure {
    /// The rank at fault.
    pub(super) rank: usize,
    /// What its peers are told.
    pub(super) error: Error,
}

/// Something with waiting ranks in it.
pub(super) trait Wake: Send + Sync {
    fn wake(&self);
}

impl Health {
    pub(super) fn new(ranks: usize) -> Self {
        Self {
            failure: OnceLock::new(),
            ended: (0..ranks).map(|_| AtomicBool::new(false)).collect(),
            groups: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn watch(&self, group: Weak<dyn Wake>) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(group);
    }

    /// The first failure, if there was one.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Reports a failure (only the first counts) and wakes everybody.
    pub(super) fn fail(&self, rank: usize, error: Error) {
        if self.failure.set(Failure { rank, error }).is_ok() {
            self.wake_all();
        }
    }

    pub(super) fn has_ended(&self, rank: usize) -> bool {
        self.ended[rank].load(Ordering::Acquire)
    }

    /// Reports that a rank will make no further call.
    pub(super) fn end(&self, rank: usize) {
        if !self.ended[rank].swap(true, Ordering::AcqRel) {
            self.wake_all();
        }
    }

    fn wake_all(&self) {
        let groups: Vec<_> = self
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for group in groups {
            group.wake();
        }
    }
}
