//! Starting ranks that are threads.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, available_parallelism, scope};

use super::comm::ThreadComm;
use super::group::Group;
use super::health::Health;
use crate::comm::panic::text;
use crate::comm::world::{DEADLINE, World};
use crate::device::Device;
use crate::device::cpu::{Cpu, CpuQueue};
use crate::error::{Error, Result};

/// More ranks than this are a mistake: each is a thread.
const MAX_RANKS: usize = 4096;

/// Ranks on the host processor, each with a team of threads for its kernels.
#[derive(Clone, Debug)]
pub struct Threads {
    ranks: usize,
    threads_per_rank: Option<usize>,
}

/// Ranks on queues that the caller made.
#[derive(Clone, Debug)]
pub struct Queues<D: Device>(Vec<D::Queue>);

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Threads {}
    impl<D: super::Device> Sealed for super::Queues<D> {}
}

/// Where a world's ranks get their queues. Sealed.
pub trait QueueSource: sealed::Sealed {
    /// The ranks' device.
    type Device: Device;

    /// One queue for each rank.
    ///
    /// # Errors
    /// If one cannot be made.
    fn queues(self) -> Result<Vec<<Self::Device as Device>::Queue>>;
}

impl QueueSource for Threads {
    type Device = Cpu;

    fn queues(self) -> Result<Vec<CpuQueue>> {
        let Self { ranks, threads_per_rank } = self;
        if ranks > MAX_RANKS {
            return Err(Error::Configuration(format!(
                "{ranks} ranks are more than the {MAX_RANKS} of one process"
            )));
        }
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let threads = threads_per_rank.unwrap_or_else(|| (cores / ranks.max(1)).max(1));
        (0..ranks).map(|_| CpuQueue::new(threads)).collect()
    }
}

impl<D: Device> QueueSource for Queues<D> {
    type Device = D;

    fn queues(self) -> Result<Vec<D::Queue>> {
        Ok(self.0)
    }
}

impl World<Threads> {
    /// `ranks` ranks on the host processor. Each may use its share of the cores: the number of cores divided by the
    /// number of ranks, at least one.
    pub const fn threads(ranks: usize) -> Self {
        Self { ranks: Threads { ranks, threads_per_rank: None }, deadline: DEADLINE }
    }

    /// Sets how many threads each rank may use for its kernels.
    #[must_use]
    pub const fn threads_per_rank(mut self, threads: usize) -> Self {
        self.ranks.threads_per_rank = Some(threads);
        self
    }
}

impl<D: Device> World<Queues<D>> {
    /// One rank for each queue.
    pub const fn on_queues(queues: Vec<D::Queue>) -> Self {
        Self { ranks: Queues(queues), deadline: DEADLINE }
    }
}

impl<Q: QueueSource> World<Q> {
    /// The ranks' communicators, for a program that starts its threads itself. A rank counts as ended when its
    /// communicator, its clones and those split from it are dropped.
    ///
    /// # Errors
    /// If there are no ranks, a queue cannot be made, or the queues' devices cannot read each other's memory.
    pub fn communicators(self) -> Result<Vec<ThreadComm<Q::Device>>> {
        let queues = self.ranks.queues()?;
        if queues.is_empty() {
            return Err(Error::ZeroSize { what: "the number of ranks" });
        }
        Q::Device::connect(&queues)?;
        let ranks = queues.len();
        let group = Group::new((0..ranks).collect(), self.deadline, Arc::new(Health::new(ranks)));
        Ok(queues
            .into_iter()
            .enumerate()
            .map(|(rank, queue)| ThreadComm::new(Arc::clone(&group), rank, queue))
            .collect())
    }

    /// Calls `body` on every rank, each on a thread of its own, and returns what they return, by rank. A rank has ended
    /// when `body` returns: a collective of the others that still waits for it fails.
    ///
    /// # Errors
    /// If a rank returns an error or panics, the waits of all others end with an error that names it, and this
    /// returns the error of the rank that failed first.
    pub fn run<R, E, F>(self, body: F) -> Result<Vec<R>, E>
    where
        R: Send,
        E: From<Error> + Display + Send,
        F: Fn(ThreadComm<Q::Device>) -> Result<R, E> + Sync,
    {
        let comms = self.communicators()?;
        let Some(health) = comms.first().map(|comm| Arc::clone(comm.health())) else {
            return Ok(Vec::new());
        };
        let (body, health) = (&body, &health);
        let outcomes: Vec<Result<R, E>> = scope(|scope| {
            let mut threads = Vec::with_capacity(comms.len());
            for (rank, comm) in comms.into_iter().enumerate() {
                let watched = &*health;
                let rank_body = move || live(rank, comm, watched, body);
                match Builder::new().name(format!("attn-rank-{rank}")).spawn_scoped(scope, rank_body) {
                    Ok(thread) => threads.push(Ok(thread)),
                    Err(error) => {
                        let error = Error::Thread(error.to_string());
                        health.fail(rank, error.clone());
                        threads.push(Err(error));
                    }
                }
            }
            let join =
                |(rank, thread): (usize, Result<std::thread::ScopedJoinHandle<'_, _>, Error>)| match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| {
                        Err(Error::RankPanicked { rank, message: text(&*panic) }.into())
                    }),
                    Err(error) => Err(error.into()),
                };
            threads.into_iter().enumerate().map(join).collect()
        });
        let culprit = health.failure().map(|failure| failure.rank);
        if culprit.is_none() {
            return outcomes.into_iter().collect();
        }
        let mut errors: Vec<(usize, E)> = outcomes
            .into_iter()
            .enumerate()
            .filter_map(|(rank, outcome)| Some((rank, outcome.err()?)))
            .collect();
        let first = errors.iter().position(|(rank, _)| Some(*rank) == culprit).unwrap_or(0);
        match (errors.is_empty(), health.failure()) {
            (false, _) => Err(errors.swap_remove(first).1),
            // Every rank swallowed the failure; it is not lost here.
            (true, Some(failure)) => Err(failure.error.clone().into()),
            (true, None) => Ok(Vec::new()),
        }
    }
}

/// One rank's life: however it ends, the others learn of it.
fn live<D: Device, R, E: From<Error> + Display>(
    rank: usize,
    comm: ThreadComm<D>,
    health: &Health,
    body: &impl Fn(ThreadComm<D>) -> Result<R, E>,
) -> Result<R, E> {
    // The rank counts as ended when its last handle goes; keep one, so that a panic is reported as such first.
    let presence = comm.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| body(comm)));
    let outcome = match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            health.fail(rank, Error::RankFailed { rank, message: error.to_string() });
            Err(error)
        }
        Err(panic) => {
            let error = Error::RankPanicked { rank, message: text(&*panic) };
            health.fail(rank, error.clone());
            Err(error.into())
        }
    };
    // Whatever became of its handles: a rank whose body has returned makes no further call.
    health.end(rank);
    drop(presence);
    outcome
}
