//! What all groups of one rank share: its link, messages that came early, and the first failure.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::note::{Kind, Note};
use super::places::Places;
use super::shared::{Body, Pairs, Shared, Slot, Taken, Windows};
use super::{Bytes, Event, Link, failure};
use crate::comm::{Call, Whereabouts};
use crate::error::{Error, Result};

/// For how long one wait keeps the link from other threads of this rank.
const TURN: Duration = Duration::from_millis(10);

/// How long a wait looks at shared memory alone before it sleeps.
const AWAKE: Duration = Duration::from_micros(200);

/// How many looks at shared memory come to one at the link.
const LOOKS: u32 = 32;

/// How long a rank that ends waits for what it has sent to go out.
const GRACE: Duration = Duration::from_secs(2);

/// A rank's end of the world.
pub(super) struct World<L: Link> {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) deadline: Duration,
    /// Scratch memory that ranks of the host reach; none where no memory is shared.
    windows: OnceLock<Arc<Windows>>,
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
    pub(super) body: Body,
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
    /// The ranks for which this one has something to send, for which there was no slot.
    pub(super) unsent: &'w [usize],
}

/// Memory for the body of a message, to be filled.
pub(super) enum Parcel {
    /// For a link.
    Bytes(Bytes),
    /// For a rank that shares memory.
    Slot(Slot),
}

impl Parcel {
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Bytes(bytes) => bytes.as_mut_slice(),
            Self::Slot(slot) => slot.as_mut_slice(),
        }
    }
}

struct State<L> {
    link: L,
    shared: Option<Shared>,
    /// Who shares memory with whom; none if nobody does.
    pairs: Option<Arc<Pairs>>,
    /// What has come and not been asked for, by group and number of the collective.
    mail: HashMap<(u64, u64), VecDeque<Letter>>,
    peers: Vec<Peer>,
    /// The groups of this rank, by number: where it says that it is.
    places: HashMap<u64, Weak<Places>>,
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
        let (mail, places) = (HashMap::new(), HashMap::new());
        let (shared, pairs, failure) = (None, None, None);
        let state = State { link, shared, pairs, mail, peers, places, failure, closed: false };
        let (windows, wanted) = (OnceLock::new(), AtomicUsize::new(0));
        Self { rank, size, deadline, windows, state: Mutex::new(state), wanted }
    }

    fn state(&self) -> MutexGuard<'_, State<L>> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Lets ranks of one host share memory. Nothing may be under way.
    pub(super) fn share(&self, pairs: Pairs, shared: Option<Shared>) {
        if shared.is_some() {
            self.windows.get_or_init(Windows::new);
        }
        let mut state = self.state();
        state.pairs = Some(Arc::new(pairs));
        state.shared = shared;
    }

    /// Scratch memory that ranks of the host reach; none where no memory is shared.
    pub(super) fn windows(&self) -> Option<&Arc<Windows>> {
        self.windows.get()
    }

    /// Who shares memory with whom, on all ranks alike; none if nobody does.
    pub(super) fn pairs(&self) -> Option<Arc<Pairs>> {
        self.state().pairs.clone()
    }

    /// Whether messages to a rank go through shared memory.
    pub(super) fn reaches(&self, rank: usize) -> bool {
        self.state().reaches(rank)
    }

    /// Where the ranks of a group are. From now on what they say of it is heard, and this one answers.
    pub(super) fn places(&self, group: u64) -> Arc<Places> {
        let places = Arc::new(Places::new(group, self.rank, self.size));
        let groups = &mut self.state().places;
        groups.retain(|_, places| places.strong_count() > 0);
        groups.insert(group, Arc::downgrade(&places));
        places
    }

    /// Tells the other ranks of a group where this one is for the last time.
    pub(super) fn leave(&self, places: &Places) {
        let state = &mut *self.state();
        state.places.remove(&places.group);
        if !state.closed {
            state.tell(places);
        }
    }

    /// What is known of the ranks of a group, by member. Asks them, if it is time to.
    pub(super) fn whereabouts(&self, places: &Places) -> Vec<Whereabouts> {
        let state = &mut *self.state();
        // An error of the link is told by whoever waits for messages.
        let _ = state.collect();
        if !state.closed && places.asks(Instant::now()) {
            state.send_all(places, &places.question());
        }
        let of = |rank: &usize| match state.peers.get(*rank) {
            Some(Peer::Here) => Whereabouts { arrived: places.of(*rank), ended: false },
            Some(Peer::Left) => Whereabouts { arrived: places.of(*rank), ended: true },
            // It may have come further than it has told.
            Some(Peer::Lost(_)) | None => Whereabouts { arrived: None, ended: true },
        };
        places.members().iter().map(of).collect()
    }

    /// Sends a message to a rank.
    pub(super) fn send(&self, to: usize, note: &Note, body: Option<Arc<Bytes>>) -> Result<()> {
        let state = &mut *self.state();
        match &mut state.shared {
            Some(shared) if shared.reaches(to) => shared.send(&mut state.link, to, note.head(), body),
            _ => state.link.send(to, note.head(), body),
        }
    }

    /// Whether a message to a rank would go out now: links take any, shared memory what it has slots for.
    pub(super) fn has_room(&self, to: usize) -> bool {
        let state = self.state();
        !state.reaches(to) || state.has_room(&[to])
    }

    /// Memory for a body of so many bytes to a rank: in shared memory, if there is a slot.
    pub(super) fn parcel(&self, to: usize, length: usize) -> Result<Parcel> {
        let slot = self.state().shared.as_mut().and_then(|shared| shared.slot(to, length));
        slot.map_or_else(|| Bytes::zeroed(length).map(Parcel::Bytes), |slot| Ok(Parcel::Slot(slot)))
    }

    /// Sends a parcel to the rank for which it was made.
    pub(super) fn post(&self, to: usize, note: &Note, parcel: Parcel) -> Result<()> {
        let slot = match parcel {
            Parcel::Bytes(bytes) => return self.send(to, note, Some(Arc::new(bytes))),
            Parcel::Slot(slot) => slot,
        };
        let state = &mut *self.state();
        match &mut state.shared {
            Some(shared) => shared.send_slot(&mut state.link, to, note.head(), &slot),
            None => Ok(()),
        }
    }

    /// Gives back what a letter has brought.
    pub(super) fn done(&self, letter: Letter) -> Result<()> {
        let (from, lent) = (letter.from, matches!(letter.body, Body::Lent(_)));
        drop(letter);
        let state = &mut *self.state();
        match &mut state.shared {
            Some(shared) if lent => shared.given_back(from, &mut state.link),
            _ => Ok(()),
        }
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
        drop(state);
        self.check(wait)
    }

    /// Looks, without waiting, whether a collective can go on.
    ///
    /// # Errors
    /// As [`next`](Self::next), but for the time.
    pub(super) fn check(&self, wait: &Wait<'_>) -> Result<()> {
        let mut state = self.state();
        state.collect()?;
        state.check(wait)
    }

    /// A message of a collective, if one has come.
    pub(super) fn poll(&self, collective: (u64, u64)) -> Result<Option<Letter>> {
        let mut state = self.state();
        if let Some(letter) = state.take(collective)? {
            return Ok(Some(letter));
        }
        state.collect()?;
        state.take(collective)
    }

    /// The next message of a collective; none when there is a slot for something unsent.
    ///
    /// # Errors
    /// If the world fails, a rank is lost, a needed one has left, or the time is over.
    pub(super) fn next(&self, wait: &Wait<'_>) -> Result<Option<Letter>> {
        let started = Instant::now();
        for look in 0.. {
            let mut state = self.state();
            if let Some(letter) = state.take(wait.collective)? {
                return Ok(Some(letter));
            }
            if state.has_room(wait.unsent) {
                return Ok(None);
            }
            let now = Instant::now();
            let roomy = state.shared.as_ref().filter(|_| now - started < AWAKE).map(|shared| shared.roomy);
            if roomy.is_none() || look % LOOKS == 0 {
                state.check(wait)?;
                if now >= wait.until {
                    return Err(Error::Deadline {
                        operation: wait.call.to_string(),
                        sequence: wait.collective.1,
                        seconds: self.deadline.as_secs_f64(),
                        missing: (wait.needed)(),
                    });
                }
                let until = if roomy.is_some() { now } else { wait.until.min(now + TURN) };
                if let Some(event) = state.rest(until, wait)? {
                    state.sort(event);
                    state.collect()?;
                }
            }
            drop(state);
            match roomy {
                Some(true) => core::hint::spin_loop(),
                Some(false) => std::thread::yield_now(),
                // A mutex need not be fair: without this the thread that holds it would take it again.
                None if self.wanted.load(Ordering::Relaxed) > 0 => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// How many letters have come and not been asked for.
    #[cfg(test)]
    pub(super) fn unread(&self) -> usize {
        self.state().mail.values().map(VecDeque::len).sum()
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
        state.flush(GRACE);
        let groups: Vec<Arc<Places>> = state.places.values().filter_map(Weak::upgrade).collect();
        groups.iter().for_each(|places| state.tell(places));
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
    /// A message of a collective that has come. What comes through shared memory for others is kept for them.
    fn take(&mut self, collective: (u64, u64)) -> Result<Option<Letter>> {
        if let Some(letter) = self.mail.get_mut(&collective).and_then(VecDeque::pop_front) {
            return Ok(Some(letter));
        }
        while let Some(shared) = &mut self.shared {
            let Some(Taken { from, head, body }) = shared.take(&mut self.link)? else { break };
            match Note::read(head) {
                Some(Note { kind, group, sequence, numbers }) if (group, sequence) == collective => {
                    return Ok(Some(Letter { from, kind, numbers, body }));
                }
                Some(note) => {
                    let body = body.owned()?;
                    shared.given_back(from, &mut self.link)?;
                    self.file(from, note, body);
                }
                None => self.fail(Failure { error: unreadable(from, "a head"), told: false }, None),
            }
        }
        Ok(None)
    }

    /// Gets out what waits for room in shared memory, for so long at most.
    fn flush(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        while self.failure.is_none() && Instant::now() < until {
            let Some(shared) = &mut self.shared else { return };
            let here = |rank: usize| matches!(self.peers.get(rank), Some(Peer::Here));
            if !matches!(shared.flush_all(&mut self.link, here), Ok(true)) || self.collect().is_err() {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn reaches(&self, rank: usize) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.reaches(rank))
    }

    /// Whether there is a slot for a message to one of these ranks.
    fn has_room(&self, ranks: &[usize]) -> bool {
        self.shared.as_ref().is_some_and(|shared| ranks.iter().any(|rank| shared.has_room(*rank)))
    }

    /// Waits for an event of the link, or until whoever shares memory says that there is something.
    fn rest(&mut self, until: Instant, wait: &Wait<'_>) -> Result<Option<Event>> {
        let Some(shared) = &self.shared else { return self.link.receive(until) };
        shared.sleep();
        // What came before the others could see that this rank sleeps is seen here.
        let found = shared.has_mail() || self.has_room(wait.unsent);
        let event = self.link.receive(if found { Instant::now() } else { until });
        shared.awake();
        event
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
                Some(note) => self.file(from, note, body.map_or(Body::None, Body::Owned)),
                None => self.fail(Failure { error: unreadable(from, "a head"), told: false }, None),
            },
            Event::Lost { rank, why } => {
                if let Some(peer @ Peer::Here) = self.peers.get_mut(rank) {
                    *peer = Peer::Lost(why);
                }
            }
        }
    }

    fn file(&mut self, from: usize, note: Note, body: Body) {
        let Note { kind, group, sequence, numbers } = note;
        match kind {
            Kind::Call | Kind::Data | Kind::Words | Kind::Mapped | Kind::Taken => {
                let letter = Letter { from, kind, numbers, body };
                self.mail.entry((group, sequence)).or_default().push_back(letter);
            }
            Kind::Failure => {
                let error = failure::read(body.bytes(), from);
                self.fail(Failure { error, told: true }, Some(from));
            }
            Kind::Farewell => {
                if let Some(peer) = self.peers.get_mut(from) {
                    *peer = Peer::Left;
                }
            }
            Kind::Body => {
                if let Some(shared) = &mut self.shared {
                    shared.body(from, body);
                }
            }
            Kind::Where => {
                let places = self.places.get(&group).and_then(Weak::upgrade);
                if let Some(note) = places.and_then(|places| places.answer()) {
                    let _ = self.link.send(from, note.head(), None);
                }
            }
            Kind::Place => {
                if let Some(places) = self.places.get(&group).and_then(Weak::upgrade) {
                    places.hear(from, numbers[0]);
                }
            }
            // It has woken who slept.
            Kind::Bell => {}
        }
    }

    /// Tells the other ranks of a group where this one is, if it has left word.
    fn tell(&mut self, places: &Places) {
        if let Some(note) = places.answer() {
            self.send_all(places, &note);
        }
    }

    /// Sends the other ranks of a group a message over the link. Who cannot be told learns of the failure that is behind it.
    fn send_all(&mut self, places: &Places, note: &Note) {
        for rank in places.others() {
            let _ = self.link.send(rank, note.head(), None);
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
