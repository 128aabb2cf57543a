//! Ranks as processes: this is one of them.

use std::fmt::Display;
use std::thread::available_parallelism;

use super::message::MessageComm;
use super::place::Place;
use super::tcp::{TcpComm, TcpLink};
use super::world::{DEADLINE, World};
use crate::device::cpu::CpuQueue;
use crate::error::{Error, Result};

/// Ranks that are processes, of which this is one.
#[derive(Clone, Debug)]
pub struct Processes {
    place: Place,
    threads_per_rank: Option<usize>,
}

impl World<Processes> {
    /// The world in which this process was started: see [`Place`] for what launchers say and in which order they are asked.
    /// The deadline is that of `ATTN_DEADLINE`, in seconds, if it is set. (A world of threads takes nothing from the
    /// environment.)
    ///
    /// # Errors
    /// [`Error::Environment`], with what to do, if no launcher has said which rank this is, or if one has said half of it or
    /// what makes no sense.
    pub fn from_env() -> Result<Self> {
        Place::from_env().map(Self::at)
    }

    /// The world in which this process has a place that the program knows from elsewhere.
    pub fn at(place: Place) -> Self {
        let deadline = place.deadline.unwrap_or(DEADLINE);
        Self { ranks: Processes { place, threads_per_rank: None }, deadline }
    }

    /// This process's number, from 0.
    pub const fn rank(&self) -> usize {
        self.ranks.place.rank
    }

    /// How many processes there are.
    pub const fn size(&self) -> usize {
        self.ranks.place.size
    }

    /// This process's number among those of its machine: which GPU is its own.
    pub const fn local_rank(&self) -> usize {
        self.ranks.place.local_rank
    }

    /// How many processes are on its machine.
    pub const fn local_size(&self) -> usize {
        self.ranks.place.local_size
    }

    /// All that is known of its place.
    pub const fn place(&self) -> &Place {
        &self.ranks.place
    }

    /// Sets how many threads this rank may use for its kernels. Unless set, it is its share of the cores that this process
    /// may run on: their number divided by that of the ranks on this machine, at least one. Where the launcher has given each
    /// rank cores of its own, as mpirun does unless told `--bind-to none`, set it to their number.
    #[must_use]
    pub const fn threads_per_rank(mut self, threads: usize) -> Self {
        self.ranks.threads_per_rank = Some(threads);
        self
    }

    /// Collective: connects all processes over TCP. A rank has ended when its communicator, its clones and those split from
    /// it are dropped.
    ///
    /// # Errors
    /// [`Error::Deadline`] on every rank if one has not come by the deadline, [`Error::RankLost`] if one ends meanwhile,
    /// [`Error::Unavailable`] if rank 0 cannot be reached, [`Error::Environment`] if it does not know this process.
    pub fn tcp(self) -> Result<TcpComm> {
        let Self { ranks: Processes { place, threads_per_rank }, deadline } = self;
        place.check()?;
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let threads = threads_per_rank.unwrap_or_else(|| (cores / place.local_size).max(1));
        let queue = CpuQueue::new(threads)?;
        MessageComm::new(TcpLink::connect(&place, deadline)?, queue, deadline)
    }

    /// Connects all processes over TCP, calls `body` on this one, and returns what that returns. A rank has ended when `body`
    /// returns: a collective of the others that still waits for it fails.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp), and what `body` returns, which the others learn. If it panics, [`Error::RankPanicked`]. If
    /// another rank has failed first, its failure.
    pub fn run<R, E, F>(self, body: F) -> Result<R, E>
    where
        E: From<Error> + Display,
        F: FnOnce(TcpComm) -> Result<R, E>,
    {
        self.tcp()?.run(body)
    }
}
