//! Who looks after what is under way between GPUs: a thread for each rank.
//!
//! Once a collective is queued, no host waits for it, so nobody would notice that a peer never comes. The watchdog
//! looks at a mark behind each one. When one waits longer than the deadline, when NCCL reports an error, or when
//! another rank has failed, it ends this rank's part, in this order: the error is put down, the rank's queues are
//! condemned (so that nothing they give is taken for a result, and memory that peers may still write to is not freed),
//! NCCL's communicators are aborted (which ends its kernels, and so the host's waits), the other ranks are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use attn_runtime::comm::{Call, Rendezvous};
use attn_runtime::{Error, Result};

use crate::cuda::direct::Direct;
use crate::cuda::launches::{Launches, Witness};
use crate::cuda::nccl::{Ending, Handle};

/// How often it looks, at first and at last, while something is under way.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];

/// How often it asks the host side while nothing is under way, or nothing but replays can be.
const ASK: Duration = Duration::from_millis(100);

/// How long a collective may go on after a rank that takes part in it has ended, where it cannot be told whether that
/// rank had come to it.
const GRACE: Duration = Duration::from_secs(1);

/// A group of ranks as the watchdog knows it.
pub(super) struct Roll {
    pub(super) rendezvous: Mutex<Box<dyn Rendezvous>>,
    /// The ranks' numbers in the world.
    pub(super) members: Vec<usize>,
    pub(super) me: usize,
    /// The number of the last collective, from 1.
    pub(super) sequence: AtomicU64,
}

impl Roll {
    pub(super) fn new(rendezvous: Box<dyn Rendezvous>) -> Self {
        let (members, me) = (rendezvous.members().to_vec(), rendezvous.me());
        Self { rendezvous: Mutex::new(rendezvous), members, me, sequence: AtomicU64::new(0) }
    }

    /// The group's host side. Held by the rank while it waits there.
    pub(super) fn host(&self) -> MutexGuard<'_, Box<dyn Rendezvous>> {
        self.rendezvous.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pair of marks: where the rank's own queue was when it came to a collective, and where the collective is over.
pub(super) struct Marks<D: Launches> {
    pub(super) ready: D::Mark,
    pub(super) done: D::Mark,
    /// Whether the second was set for the present collective.
    pub(super) posted: AtomicBool,
}

/// What carries a collective, as far as it has to be looked after.
pub(super) trait Carries: Send + Sync {
    /// What it knows of failures.
    fn ask(&self) -> Result<()>;

    /// Ends this rank's part: at once, or from now on.
    fn begin_abort(&self) -> Option<Ending>;
}

impl Carries for Handle {
    fn ask(&self) -> Result<()> {
        if self.is_live() { self.progress().map(drop) } else { Ok(()) }
    }

    fn begin_abort(&self) -> Option<Ending> {
        Self::begin_abort(self)
    }
}

impl<D: Launches> Carries for Direct<D> {
    fn ask(&self) -> Result<()> {
        self.check()
    }

    fn begin_abort(&self) -> Option<Ending> {
        self.abort();
        None
    }
}

/// Something under way.
struct Flight<D: Launches> {
    roll: Arc<Roll>,
    call: Call,
    sequence: u64,
    step: u64,
    /// Whether ranks compared it, so that one may still be at that.
    fresh: bool,
    /// Whether its deadline is the watchdog's business: kernels of the direct exchange see to their own.
    timed: bool,
    marks: Arc<Marks<D>>,
    /// When it was seen to be next, its inputs ready.
    since: Option<Instant>,
}

/// What a rank and its watchdog share.
pub(super) struct Watch<D: Launches> {
    state: Mutex<State<D>>,
    changed: Condvar,
    /// Why nothing goes any more.
    fault: OnceLock<Error>,
    carriers: Mutex<Vec<Weak<dyn Carries>>>,
    /// Of the whole world, for the watchdog alone: the rank may wait in its own.
    world: Mutex<Box<dyn Rendezvous>>,
    queues: [D::Queue; 2],
    /// Whether collectives were recorded, whose replays nobody announces.
    replays: AtomicBool,
    pub(super) deadline: Duration,
}

struct State<D: Launches> {
    /// In the order of the one stream on which they run.
    flights: VecDeque<Flight<D>>,
    spare: Vec<Arc<Marks<D>>>,
    over: bool,
}

impl<D: Launches> Watch<D> {
    pub(super) fn new(world: Box<dyn Rendezvous>, queues: [D::Queue; 2], deadline: Duration) -> Arc<Self> {
        let state = State { flights: VecDeque::new(), spare: Vec::new(), over: false };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            fault: OnceLock::new(),
            carriers: Mutex::new(Vec::new()),
            world: Mutex::new(world),
            queues,
            replays: AtomicBool::new(false),
            deadline,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host side of the whole world.
    pub(super) fn world(&self) -> MutexGuard<'_, Box<dyn Rendezvous>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what carries a group's collectives aborted when the rank fails.
    pub(super) fn look_after(&self, carrier: Arc<dyn Carries>) {
        let mut carriers = self.carriers.lock().unwrap_or_else(PoisonError::into_inner);
        carriers.retain(|carrier| carrier.strong_count() > 0);
        carriers.push(Arc::downgrade(&carrier));
        drop(carriers);
        if self.fault.get().is_some() {
            let _ = carrier.begin_abort().and_then(Ending::wait);
        }
    }

    fn carriers(&self) -> Vec<Arc<dyn Carries>> {
        let carriers = self.carriers.lock().unwrap_or_else(PoisonError::into_inner);
        carriers.iter().filter_map(Weak::upgrade).collect()
    }

    /// Marks for one collective.
    pub(super) fn marks(&self) -> Result<Arc<Marks<D>>> {
        let mut state = self.lock();
        // The rank may still hold some of those whose collective is over.
        if let Some(free) = state.spare.iter().position(|marks| Arc::strong_count(marks) == 1) {
            return Ok(state.spare.swap_remove(free));
        }
        drop(state);
        let (ready, done) = (D::mark(&self.queues[0])?, D::mark(&self.queues[1])?);
        Ok(Arc::new(Marks { ready, done, posted: AtomicBool::new(false) }))
    }

    /// Looks after a collective from now on.
    pub(super) fn watch(
        &self,
        roll: &Arc<Roll>,
        call: Call,
        [sequence, step]: [u64; 2],
        fresh: bool,
        timed: bool,
        marks: &Arc<Marks<D>>,
    ) {
        let (roll, marks) = (Arc::clone(roll), Arc::clone(marks));
        let mut state = self.lock();
        let idle = state.flights.is_empty();
        state.flights.push_back(Flight { roll, call, sequence, step, fresh, timed, marks, since: None });
        drop(state);
        if idle {
            self.changed.notify_all();
        }
    }

    /// From now on, work that was recorded may be under way at any time.
    pub(super) fn expect_replays(&self) {
        if !self.replays.swap(true, Ordering::Relaxed) {
            // The watchdog looks at it under the lock before it waits.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Waits until nothing of a group is under way.
    pub(super) fn settle(&self, roll: &Arc<Roll>) {
        let mut state = self.lock();
        while self.fault.get().is_none() && state.flights.iter().any(|flight| Arc::ptr_eq(&flight.roll, roll))
        {
            state = self.changed.wait_timeout(state, LOOK[1]).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Why nothing goes any more, if so: this rank's failure, or another's.
    pub(super) fn failure(&self) -> Option<Error> {
        if let Some(error) = self.fault.get() {
            return Some(error.clone());
        }
        let error = self.world().failure()?;
        self.fail(&error);
        Some(error)
    }

    /// The failure that was put down, without asking whether there is one.
    pub(super) fn fault(&self) -> Option<&Error> {
        self.fault.get()
    }

    /// Ends this rank's part in everything, and tells the others. Only the first failure counts.
    pub(super) fn fail(&self, error: &Error) {
        let first = self.fault.set(error.clone()).is_ok();
        if first {
            for queue in &self.queues {
                D::condemn(queue, error);
            }
        }
        // All of them at once: one may wait for what another's kernels hold, and so may whoever holds the world.
        let endings: Vec<_> = self.carriers().iter().filter_map(|carrier| carrier.begin_abort()).collect();
        if first {
            self.world().fail(error);
        }
        for ending in endings {
            ending.wait();
        }
        self.changed.notify_all();
    }

    /// The error for a collective that has waited for so long that the deadline has passed.
    pub(super) fn late(&self, roll: &Roll, call: &Call, [sequence, step]: [u64; 2]) -> Error {
        // A rank that waits on its host holds the lock, and is told by that wait.
        let ranks = roll.rendezvous.try_lock().map(|host| host.whereabouts()).unwrap_or_default();
        let others = || roll.members.iter().enumerate().filter(|(rank, _)| *rank != roll.me);
        let away = |rank: usize| {
            ranks.get(rank).and_then(|rank| rank.arrived).is_none_or(|place| place < comes(sequence, step))
        };
        let missing: Vec<usize> =
            others().filter(|(rank, _)| away(*rank)).map(|(_, member)| *member).collect();
        let seconds = self.deadline.as_secs_f64();
        if missing.is_empty() {
            let text = format!(
                "{call} (collective number {sequence} of its group) passed its deadline of {seconds} s, though all ranks \
                 had come to it; the communicator was aborted"
            );
            return Error::Library { library: "NCCL", call: "ncclGroupEnd", text };
        }
        let operation = format!("{call}, whose communicator was aborted,");
        Error::Deadline { operation, sequence, seconds, missing }
    }

    /// The error for a collective that waits for a rank which does not come, if it can be told so soon: it makes no
    /// further call, or waits on its host for this rank to compare another one.
    fn astray(&self, flight: &Flight<D>, waited: Duration) -> Option<Error> {
        let Flight { roll, call, sequence, step, .. } = flight;
        let ranks = roll.rendezvous.try_lock().ok()?.whereabouts();
        let (operation, sequence) = (call.to_string(), *sequence);
        for (rank, known) in ranks.iter().enumerate().filter(|(rank, _)| *rank != roll.me) {
            let came = known.arrived.map(|place| place >= comes(sequence, *step));
            if known.ended && !came.unwrap_or(waited < GRACE) {
                return Some(Error::RankLeft { rank: roll.members[rank], operation, sequence });
            }
            if !flight.fresh && known.arrived == Some(compares(sequence)) {
                return Some(Error::RanksDisagree {
                    rank: roll.members[rank],
                    theirs: String::from("what ranks have not compared before, or moves other boxes"),
                    others: format!("rank {}", roll.members[roll.me]),
                    expected: operation,
                });
            }
        }
        None
    }

    /// Ends the watch.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// The watchdog's life.
    pub(super) fn run(&self) {
        D::relax();
        let mut pause = LOOK[0];
        loop {
            let mut state = self.lock();
            if state.flights.is_empty() && !state.over {
                pause = LOOK[0];
                state = self.changed.wait_timeout(state, ASK).unwrap_or_else(PoisonError::into_inner).0;
                if !state.over
                    && (self.fault.get().is_some() || !self.replays.load(Ordering::Relaxed))
                    && state.flights.is_empty()
                {
                    drop(state);
                    // Whoever waits for this rank, which may be at work of its own, asks its host side how far it has come.
                    let _ = self.world().failure();
                    continue;
                }
            }
            if state.over || self.fault.get().is_some() {
                state.flights.clear();
                if state.over {
                    return;
                }
                continue;
            }
            let next = state.flights.front().map(|flight| (flight.call, flight.sequence));
            drop(state);
            // The host first: the driver may not answer while a GPU waits for a rank that has failed.
            if let Err(error) = self.ask().and_then(|()| self.look()) {
                // A rank that fails says so before it ends: its own words are better.
                let told = self.world().failure();
                self.fail(&told.unwrap_or_else(|| next.map_or(error.clone(), |next| named(error, next))));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LOOK[1]);
        }
    }

    /// Takes out what is over, and looks how long the next has waited. Nobody else takes anything out.
    fn look(&self) -> Result<()> {
        loop {
            // The driver is asked outside of the lock, which the rank needs.
            let next = self.lock().flights.front().map(|flight| (Arc::clone(&flight.marks), flight.since));
            let Some((marks, since)) = next else { return Ok(()) };
            if marks.posted.load(Ordering::Acquire) && D::is_past(&marks.done)? {
                let mut state = self.lock();
                if let Some(flight) = state.flights.pop_front() {
                    state.spare.push(flight.marks);
                }
                drop(state);
                self.changed.notify_all();
                continue;
            }
            let ready = since.is_some() || D::is_past(&marks.ready)?;
            // Before its inputs are ready, it waits for this rank's own work: that is no matter of a deadline.
            if !ready {
                return Ok(());
            }
            let mut state = self.lock();
            let Some(flight) = state.flights.front_mut() else { return Ok(()) };
            let waited = flight.since.get_or_insert_with(Instant::now).elapsed();
            if let Some(error) = self.astray(flight, waited) {
                return Err(error);
            }
            return match flight.timed && waited >= self.deadline {
                true => Err(self.late(&flight.roll, &flight.call, [flight.sequence, flight.step])),
                false => Ok(()),
            };
        }
    }

    /// Asks the other ranks and NCCL for failures.
    fn ask(&self) -> Result<()> {
        if let Some(error) = self.world().failure() {
            return Err(error);
        }
        self.carriers().iter().try_for_each(|carrier| carrier.ask())
    }
}

impl<D: Launches> Witness for Watch<D> {
    fn testify(&self) -> Result<()> {
        if let Some(error) = self.fault.get() {
            return Err(error.clone());
        }
        let next = self.lock().flights.front().map(|flight| (flight.call, flight.sequence));
        let outcome = self.carriers().iter().try_for_each(|carrier| carrier.ask());
        let outcome = outcome.map_err(|error| next.map_or(error.clone(), |next| named(error, next)));
        outcome.inspect_err(|error| self.fail(error))
    }
}

/// An error of kernels, which know no more of a collective than their own number for it, with its name.
fn named(mut error: Error, (call, number): (Call, u64)) -> Error {
    if let Error::Deadline { operation, sequence, .. } = &mut error
        && operation.starts_with("direct ")
    {
        (*operation, *sequence) = (call.to_string(), number);
    }
    error
}

/// The number of a group's next collective.
pub(super) fn next(roll: &Roll) -> u64 {
    roll.sequence.fetch_add(1, Ordering::Relaxed) + 1
}

/// What a rank says of itself that compares a collective before it comes to it.
pub(super) const fn compares(sequence: u64) -> u64 {
    sequence << 20
}

/// What a rank says of itself that has come to a step of a collective, from 1: to a hop of a ring.
pub(super) const fn comes(sequence: u64, step: u64) -> u64 {
    compares(sequence) + step
}
