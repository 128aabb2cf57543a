//! What all groups of one rank share: its link, messages that came early, and the first failure.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::note::{Kind, Note};
use super::{Bytes, Event, Link, failure};
use crate::comm::Call;
use crate::error::{Error, Result};

/// For how long one wait keeps the link from other threads of this rank.
const TURN: Duration = Duration::from_millis(10);

/// How long a rank that ends waits for what it has sent to go out.
const GRACE: Duration = Duration::from_secs(2);

/// A rank's end of the world.
pub(super) struct World<L: Link> {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) deadline: Duration,
    state: Mutex<State<L>>,
    /// Threads that want the state. One that waits for messages lets them have it between its turns.
    wanted: AtomicUsize,
}

/// A message of a collective.
#[derive(Debug)]
pub(super) struct Letter {
    /// Whose: the rank's number in the world.
    pub(super) from: usize,
    pub(super) kind: Kind,
    pub(super) numbers: [u64; 5],
    pub(super) body: Option<Arc<Bytes>>,
}

/// The failure that brought the world down.
#[derive(Clone)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Whether another rank has told of it.
    pub(super) told: bool,
}

/// A wait for messages of a collective.
pub(super) struct Wait<'w> {
    /// Group and number of the collective.
    pub(super) collective: (u64, u64),
    pub(super) call: &'w Call,
    pub(super) until: Instant,
    /// The ranks from which messages are needed, numbered in the world.
    pub(super) needed: &'w dyn Fn() -> Vec<usize>,
}

struct State<L> {
    link: L,
    /// What has come and not been asked for, by group and number of the collective.
    mail: HashMap<(u64, u64), VecDeque<Letter>>,
    peers: Vec<Peer>,
    failure: Option<Failure>,
    /// Whether this rank has said farewell.
    closed: bool,
}

/// What is known of a rank.
#[derive(Clone)]
enum Peer {
    Here,
    /// It has said farewell.
    Left,
    /// It has not, and nothing will come from it any more.
    Lost(String),
}

impl<L: Link> World<L> {
    pub(super) fn new(link: L, deadline: Duration) -> Self {
        let (rank, size) = (link.rank(), link.size());
        let peers = vec![Peer::Here; size];
        let state = State { link, mail: HashMap::new(), peers, failure: None, closed: false };
        Self { rank, size, deadline, state: Mutex::new(state), wanted: AtomicUsize::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State<L>> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Whether a rank makes no further call, by rank, as far as is known.
    pub(super) fn ended(&self) -> Vec<bool> {
        let mut state = self.state();
        // An error of the link is told by whoever waits for messages.
        let _ = state.collect();
        state.peers.iter().map(|peer| !matches!(peer, Peer::Here)).collect()
    }

    /// Sends a message to a rank.
    pub(super) fn send(&self, to: usize, note: &Note, body: Option<Arc<Bytes>>) -> Result<()> {
        self.state().link.send(to, note.head(), body)
    }

    /// Begins a collective: what has come so far is sorted, and what came for earlier ones of its group forgotten.
    ///
    /// # Errors
    /// If the world has failed or a rank was lost.
    pub(super) fn begin(&self, wait: &Wait<'_>) -> Result<()> {
        let mut state = self.state();
        let (group, sequence) = wait.collective;
        if state.closed {
            return Err(Error::RankLeft { rank: self.rank, operation: wait.call.to_string(), sequence });
        }
        state.mail.retain(|&(other, number), _| other != group || number >= sequence);
        state.collect()?;
        state.check(wait)
    }

    /// A message of a collective, if one has come.
    pub(super) fn poll(&self, collective: (u64, u64)) -> Result<Option<Letter>> {
        let mut state = self.state();
        if let Some(letter) = state.take(collective) {
            return Ok(Some(letter));
        }
        state.collect()?;
        Ok(state.take(collective))
    }

    /// The next message of a collective.
    ///
    /// # Errors
    /// If the world fails, a rank is lost, a needed one has left, or the time is over.
    pub(super) fn next(&self, wait: &Wait<'_>) -> Result<Letter> {
        loop {
            let mut state = self.state();
            if let Some(letter) = state.take(wait.collective) {
                return Ok(letter);
            }
            state.check(wait)?;
            let now = Instant::now();
            if now >= wait.until {
                return Err(Error::Deadline {
                    operation: wait.call.to_string(),
                    sequence: wait.collective.1,
                    seconds: self.deadline.as_secs_f64(),
                    missing: (wait.needed)(),
                });
            }
            if let Some(event) = state.link.receive(wait.until.min(now + TURN))? {
                state.sort(event);
                state.collect()?;
            }
            drop(state);
            if self.wanted.load(Ordering::Relaxed) > 0 {
                // A mutex need not be fair: without this the thread that holds it would take it again.
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Makes an error the world's, unless it has one: then it is that one, or follows from it.
    pub(super) fn fail(&self, error: &Error) {
        self.state().fail(Failure { error: failure::shown(error, self.rank), told: false }, None);
    }

    /// The first failure of which this rank knows, after a look at what has come.
    pub(super) fn failure(&self) -> Option<Failure> {
        let mut state = self.state();
        if state.failure.is_none() && !state.closed {
            // A link that fails is found out by the next collective, which can say so.
            let _ = state.collect();
        }
        state.failure.clone()
    }

    /// Says farewell: this rank makes no further call. Only the first time counts.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if core::mem::replace(&mut state.closed, true) {
            return;
        }
        let farewell = Note::of_the_world(Kind::Farewell).head();
        for peer in (0..self.size).filter(|peer| *peer != self.rank) {
            // Nothing can be told of a failure here; the others find the link closed.
            let _ = state.link.send(peer, farewell, None);
        }
        let well = state.failure.is_none();
        state.link.close(well, GRACE);
    }
}

impl<L: Link> State<L> {
    fn take(&mut self, collective: (u64, u64)) -> Option<Letter> {
        self.mail.get_mut(&collective)?.pop_front()
    }

    /// Sorts all that has come, without waiting.
    fn collect(&mut self) -> Result<()> {
        while let Some(event) = self.link.receive(Instant::now())? {
            self.sort(event);
        }
        Ok(())
    }

    /// Whether a wait can go on.
    fn check(&self, wait: &Wait<'_>) -> Result<()> {
        if let Some(Failure { error, .. }) = &self.failure {
            return Err(error.clone());
        }
        let (operation, sequence) = (|| wait.call.to_string(), wait.collective.1);
        let ends = |rank: usize| matches!(self.peers.get(rank), Some(Peer::Left));
        if let Some(rank) = (wait.needed)().into_iter().find(|rank| ends(*rank)) {
            return Err(Error::RankLeft { rank, operation: operation(), sequence });
        }
        // Whoever is lost without farewell may hold what others wait for: no group goes on without it.
        for (rank, peer) in self.peers.iter().enumerate() {
            if let Peer::Lost(why) = peer {
                return Err(Error::RankLost { rank, operation: operation(), sequence, why: why.clone() });
            }
        }
        Ok(())
    }

    fn sort(&mut self, event: Event) {
        match event {
            Event::Message { from, head, body } => match Note::read(head) {
                Some(note) => self.file(from, note, body),
                None => self.fail(Failure { error: unreadable(from, "a head"), told: false }, None),
            },
            Event::Lost { rank, why } => {
                if let Some(peer @ Peer::Here) = self.peers.get_mut(rank) {
                    *peer = Peer::Lost(why);
                }
            }
        }
    }

    fn file(&mut self, from: usize, note: Note, body: Option<Arc<Bytes>>) {
        let Note { kind, group, sequence, numbers } = note;
        match kind {
            Kind::Call | Kind::Data | Kind::Words => {
                let letter = Letter { from, kind, numbers, body };
                self.mail.entry((group, sequence)).or_default().push_back(letter);
            }
            Kind::Failure => {
                let error = failure::read(body.as_deref().map_or(&[], |body| body), from);
                self.fail(Failure { error, told: true }, Some(from));
            }
            Kind::Farewell => {
                if let Some(peer) = self.peers.get_mut(from) {
                    *peer = Peer::Left;
                }
            }
        }
    }

    /// Keeps the first failure, and tells the others, also if it was told: its teller may not have come so far as to tell
    /// all, and whoever hears this rank's farewell must have heard before why it goes.
    fn fail(&mut self, failure: Failure, teller: Option<usize>) {
        if self.failure.is_some() || self.closed {
            return;
        }
        let (me, size) = (self.link.rank(), self.link.size());
        let note = Note::of_the_world(Kind::Failure).head();
        if let Ok(body) = Bytes::copied(&failure::write(&failure.error, me)).map(Arc::new) {
            for peer in (0..size).filter(|peer| *peer != me && Some(*peer) != teller) {
                // Who cannot be told learns from the farewell, or from the deadline.
                let _ = self.link.send(peer, note, Some(Arc::clone(&body)));
            }
        }
        self.failure = Some(failure);
    }
}

/// The error for a rank that sends what cannot be read.
pub(super) fn unreadable(from: usize, what: &str) -> Error {
    Error::RankFailed {
        rank: from,
        message: format!(
            "{what} that it sent is none of this communicator: do all ranks run the same program?"
        ),
    }
}
