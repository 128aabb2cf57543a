//! Ranks that are GPUs: a communicator over whatever carries memory between them: kernels that write into the peers' memory,
//! where GPUs reach each other (`direct`), or NCCL.
//!
//! Over NCCL a collective puts work on two streams and returns. On the rank's own stream it packs what is not one run of memory;
//! on a second one, which waits for the first, NCCL sends and receives; then the first waits for the second, and unpacks.
//! In a ring, the next hop is under way on the second stream while the kernel of this one runs on the first. No host waits
//! for a GPU or for another rank, but in the first call of each kind and shape, which ranks compare. So a collective can
//! be recorded in a graph.
//!
//! All of a rank's groups, those split off included, share the second stream: NCCL wants an order between all that one GPU
//! has to do, and ranks make their calls in one order.
//!
//! What can go wrong once nobody waits is the [watchdog](watchdog)'s business.

mod exchange;
mod flow;
mod known;
mod moves;
mod options;
mod rank;
mod rotate;
mod staging;
mod watchdog;
mod world;

pub use options::{Check, GpuOptions, Transport};
pub use world::GpuWorld;
#[cfg(feature = "nccl")]
pub use world::{WorldGpus, gpus};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Instant;

use attn_runtime::comm::{Call, Rendezvous};
use attn_runtime::{Communicator, Element, Error, KeyValue, Result, Scope, Signature, Traffic, Transfer};

use self::known::{Known, Moves};
use self::moves::Steps;
use self::rank::Rank;
use self::staging::Staging;
use self::watchdog::{Marks, Roll, comes, compares, next};
use super::direct::Direct;
use super::launches::Launches;
use super::nccl::Comm;

/// A rank in a group of GPUs, one GPU for each: [`Communicator`] for `Cuda`.
///
/// It is opened on any [`Rendezvous`]: threads of this process ([`gpus`](crate::cuda::gpus) does that), sockets, MPI.
///
/// ```no_run
/// # #[cfg(feature = "nccl")] fn main() -> attn::Result<()> {
/// use attn::cuda::{self, Cuda, GpuComm};
/// use attn::prelude::*;
/// use half::bf16;
///
/// #[parallel_attention(strategy = "ulysses", backend = "flash", mask = "causal")]
/// struct SelfAttention;
///
/// // On every GPU of this machine.
/// cuda::gpus()?.run(|comm: GpuComm<Cuda>| {
///     let queue = comm.queue()?;
///     let here = Tensor::<bf16>::from_fn([1, 1024, 16, 128], |[_, s, h, d]| bf16::from_f32((s ^ h ^ d) as f32))?;
///     let x = cuda::to_device(&queue, &here)?;
///     let mut session = Session::open(comm)?;
///     let out = SelfAttention.attend(&mut session, &x, &x, &x, &AttentionMetadata::default())?;
///     cuda::to_host(&queue, &out)
/// })?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "nccl"))] fn main() {}
/// ```
///
/// Clones are handles of the same rank: use them one at a time. When the last handle of a group is dropped, what is under
/// way is waited for. Drop graphs before the communicator whose calls they recorded: NCCL lets go of none before them.
///
/// # Failures
/// Calls return before the GPU has done what they ask for, so a failure may come later: a peer that has not come when the
/// deadline has passed, an error of NCCL's, a rank that failed elsewhere. Then this rank's queue is condemned: whatever
/// waits for it ([`to_host`](crate::cuda::to_host), [`Device::synchronize`](crate::Device::synchronize)), and every later
/// call, returns the error, so what is not there is never taken for a result. [`check`](Self::check) asks. Memory of the
/// queue is not freed any more: peers might still write to it. To go on, make a new queue and open a new communicator on a
/// new group.
///
/// A graph that is replayed has no deadline of its own: its collectives count nowhere, and a peer that never replays is
/// waited for until a rank reports a failure, which ends the replay too. Give such a program a clock of its own, and call
/// [`fail`](Self::fail).
pub struct GpuComm<D: Launches> {
    end: Arc<End<D>>,
}

/// What the handles of one rank in one group share.
struct End<D: Launches> {
    roll: Arc<Roll>,
    work: Mutex<Work<D>>,
    sent: AtomicU64,
    collectives: AtomicU64,
    rank: Arc<Rank<D>>,
}

/// What a collective works with. Locked while one is under way on the host.
struct Work<D: Launches> {
    carrier: Carrier<D>,
    staging: Staging<D>,
    known: Known,
    steps: Steps,
    /// For calls that are recorded: nobody asks whether they are over.
    recorded: Recorded<D>,
}

/// What moves memory between the ranks of a group.
enum Carrier<D: Launches> {
    /// Nothing: this rank is alone.
    Alone,
    /// Kernels that write into the peers' memory.
    Direct(Arc<Direct<D>>),
    Nccl(Comm),
}

/// Two pairs of marks, by turns.
type Recorded<D> = [Option<Arc<Marks<D>>>; 2];

impl<D: Launches> Clone for GpuComm<D> {
    fn clone(&self) -> Self {
        Self { end: Arc::clone(&self.end) }
    }
}

impl<D: Launches> GpuComm<D> {
    /// Collective: opens a communicator over the ranks of a group, each with a queue of a GPU of its own, with what the
    /// environment says about deadline and checks ([`GpuOptions::from_env`]).
    ///
    /// # Errors
    /// If NCCL cannot be had, ranks differ in their options, a rank fails, or the deadline passes.
    pub fn open(rendezvous: Box<dyn Rendezvous>, queue: D::Queue) -> Result<Self> {
        let options = GpuOptions::from_env().inspect_err(|error| rendezvous.fail(error))?;
        Self::open_with(rendezvous, queue, options)
    }

    /// [`open`](Self::open), with options of the caller's. Ranks must give the same.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(rendezvous: Box<dyn Rendezvous>, queue: D::Queue, options: GpuOptions) -> Result<Self> {
        let (rank, roll, carrier) = Rank::open(rendezvous, queue, options)?;
        Ok(Self::of(roll, carrier, rank))
    }

    fn of(roll: Roll, carrier: Carrier<D>, rank: Arc<Rank<D>>) -> Self {
        let work = Work {
            carrier,
            staging: Staging::default(),
            known: Known::default(),
            steps: Steps::default(),
            recorded: [None, None],
        };
        let (sent, collectives) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { end: Arc::new(End { roll: Arc::new(roll), work: Mutex::new(work), sent, collectives, rank }) }
    }

    /// That no failure has come to light so far. Does not wait.
    ///
    /// # Errors
    /// The first failure: this rank's, or another's.
    pub fn check(&self) -> Result<()> {
        self.end.rank.watch.failure().map_or(Ok(()), Err)
    }

    /// Tells all ranks of a failure of this one outside of collectives: their waits end. (Worlds that start their ranks
    /// themselves do.)
    pub fn fail(&self, error: &Error) {
        self.end.rank.watch.fail(error);
    }

    /// Begins a collective: alone on this group, and if nothing has failed.
    fn enter(&self) -> Result<MutexGuard<'_, Work<D>>> {
        let work = match self.end.work.try_lock() {
            Ok(work) => work,
            Err(TryLockError::WouldBlock) => return Err(Error::Reentrant),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        self.check()?;
        self.end.collectives.fetch_add(1, Ordering::Relaxed);
        Ok(work)
    }

    /// Makes an error of this rank everybody's: after it, ranks no longer know what the others have seen.
    fn tell<R>(&self, outcome: Result<R>) -> Result<R> {
        outcome.map_err(|error| {
            let watch = &self.end.rank.watch;
            watch.fail(&error);
            // The first failure explains those that follow.
            watch.fault().cloned().unwrap_or(error)
        })
    }

    /// The same, but for a call that was refused because it cannot be recorded: nothing of it has begun.
    fn refuse_or_fail<R>(&self, outcome: Result<R>) -> Result<R> {
        match outcome {
            Err(Error::Capturing { .. }) => outcome,
            outcome => self.tell(outcome),
        }
    }

    /// What a call moves, agreed on by all ranks: from memory, or by asking them.
    fn agree(
        &self,
        known: &mut Known,
        call: &Call,
        recording: bool,
        digest: u64,
        moves: impl FnOnce() -> Moves,
    ) -> Result<known::Agreed> {
        known.count(*call);
        match known.look_up(call, digest) {
            Some(agreed) if recording || self.end.rank.options.check == Check::First => return Ok(agreed),
            None if recording => {
                return Err(Error::Capturing {
                    what: "a collective whose like was not called before, which ranks compare",
                    cure: "make the calls before the capture, on every rank, with the same shapes",
                });
            }
            Some(_) | None => {}
        }
        let roll = &self.end.roll;
        let host = roll.host();
        let sequence = roll.sequence.load(Ordering::Relaxed) + 1;
        host.arrive(compares(sequence));
        known.agree(&**host, call, digest, &moves()).map_err(|error| renumbered(error, sequence))
    }
}

/// An error of the host's, which counts its own collectives, with the number of this group's.
fn renumbered(mut error: Error, number: u64) -> Error {
    if let Error::Deadline { sequence, .. }
    | Error::RankLeft { sequence, .. }
    | Error::RankLost { sequence, .. } = &mut error
    {
        *sequence = number;
    }
    error
}

impl<D: Launches> Communicator for GpuComm<D> {
    type Device = D;

    fn rank(&self) -> usize {
        self.end.roll.me
    }

    fn size(&self) -> usize {
        self.end.roll.members.len()
    }

    fn queue(&self) -> Result<D::Queue> {
        Ok(self.end.rank.queue.clone())
    }

    fn split(&self, color: usize, key: usize) -> Result<Self> {
        let mut work = self.enter()?;
        let (end, rank) = (&*self.end, &self.end.rank);
        if D::is_recording(&rank.queue)? {
            return Err(Error::Capturing {
                what: "splitting a communicator",
                cure: "split it before the capture, on every rank",
            });
        }
        self.tell((|| {
            let sequence = next(&end.roll);
            let (child, color) = {
                let host = end.roll.host();
                host.arrive(comes(sequence, 1));
                let child = host.subgroup(color, key)?;
                // Colors as NCCL wants them: each is called by its first rank. Groups of one need no communicator.
                let colors = host.gather("colors", &(color as u64).to_le_bytes())?;
                let first = colors.iter().position(|other| *other == (color as u64).to_le_bytes());
                let alone = child.members().len() == 1;
                (child, first.filter(|_| !alone))
            };
            let carrier = match &mut work.carrier {
                Carrier::Alone => Carrier::Alone,
                Carrier::Direct(_) if child.members().len() == 1 => Carrier::Alone,
                Carrier::Direct(_) => rank.directly(&*child)?.map_err(rank::not_direct)?,
                Carrier::Nccl(nccl) => {
                    // NCCL wants a communicator at rest before it is split.
                    rank.watch.settle(&end.roll);
                    D::synchronize(&rank.lane)?;
                    let (until, _turn) = (Instant::now() + rank.watch.deadline, rank.turn());
                    let (key, size) = (child.me(), child.members().len());
                    let failed = || rank.watch.failure();
                    let split =
                        D::with_stream(&rank.lane, |_, _| nccl.split(color, key, size, until, &failed))??;
                    split.map_or(Carrier::Alone, Carrier::Nccl)
                }
            };
            rank.look_after(&carrier);
            Ok(Self::of(Roll::new(child), carrier, Arc::clone(rank)))
        })())
    }

    fn exchange(
        &self,
        scope: Scope<'_, D>,
        signature: &Signature,
        transfers: &mut [Transfer<'_, D>],
    ) -> Result<()> {
        let mut work = self.enter()?;
        self.refuse_or_fail(self.carry_out(&mut work, scope, signature, transfers))
    }

    fn rotate<T: Element>(
        &self,
        scope: Scope<'_, D>,
        signature: &Signature,
        lengths: &[usize],
        block: KeyValue<'_, T, D>,
        visit: impl FnMut(usize, KeyValue<'_, T, D>) -> Result<()>,
    ) -> Result<()> {
        let mut work = self.enter()?;
        self.refuse_or_fail(self.go_round(&mut work, scope, signature, lengths, block, visit))
    }

    fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        traffic.sent = self.end.sent.load(Ordering::Relaxed);
        traffic.collectives = self.end.collectives.load(Ordering::Relaxed);
        traffic
    }
}

impl<D: Launches> Drop for End<D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = String::from("it did not come to the end of its work");
            self.rank.watch.fail(&Error::RankPanicked { rank: self.rank.number, message });
        }
        self.rank.watch.settle(&self.roll);
        let work = self.work.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Carrier::Nccl(nccl) = &mut work.carrier else { return };
        work.staging.end(nccl, &self.rank.queue, &self.rank.watch);
        let _turn = self.rank.turn();
        // An error has no place to go from here; nor has a queue that was condemned a context to make current.
        let _ = D::with_stream(&self.rank.lane, |_, _| nccl.close());
    }
}

impl<D: Launches> core::fmt::Debug for GpuComm<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GpuComm")
            .field("device", &D::label(&self.end.rank.queue))
            .field("rank", &self.rank())
            .field("size", &self.size())
            .field("world_rank", &self.end.rank.number)
            .finish_non_exhaustive()
    }
}
