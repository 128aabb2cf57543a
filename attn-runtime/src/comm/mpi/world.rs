//! Starting MPI, and the world that `mpirun` made.

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::ffi::{self, Place, State};
use super::link::MpiLink;
use crate::comm::Rendezvous;
use crate::comm::message::{Link, MessageComm};
use crate::comm::place::Place as Environment;
use crate::comm::world::DEADLINE;
use crate::device::cpu::CpuQueue;
use crate::error::{Error, Result};

/// A rank's communicator over MPI.
pub type MpiComm = MessageComm<MpiLink>;

/// How long a world that is dropped unused goes on telling the others so.
const GRACE: Duration = Duration::from_secs(1);

/// How long a process lingers in `exit` after a failure: the one at fault, and the others. `mpirun` names the first to go.
const LINGER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// Variables in which launchers say how many processes they have started.
const STARTED: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// This process's place in the world of processes that `mpirun` started. Made by [`world`].
#[derive(Debug)]
pub struct MpiWorld {
    /// Taken by the communicator.
    link: Option<MpiLink>,
    place: Place,
    deadline: Duration,
    threads_per_rank: Option<usize>,
}

/// The library's name and version, in its own words: `Open MPI v4.1.4, ..`.
pub fn library() -> String {
    ffi::version().lines().next().unwrap_or_default().to_owned()
}

/// Collective: the world of the processes that `mpirun` started, of one rank if none did. Starts MPI if nobody has. The
/// deadline is that of `ATTN_DEADLINE`, in seconds, if it is set.
///
/// # Errors
/// If MPI cannot be started or has ended, does not let threads call it in turns, or sees one rank where another MPI's
/// `mpirun` has started several; or if this process has such a world already (unless the program started MPI).
pub fn world() -> Result<MpiWorld> {
    static STARTED_HERE: Mutex<bool> = Mutex::new(false);
    let deadline = Environment::deadline_from_env()?.unwrap_or(DEADLINE);
    let mut started_here = STARTED_HERE.lock().unwrap_or_else(PoisonError::into_inner);
    let once = "a process has one MPI world: make it once, and split its communicator";
    match ffi::state() {
        State::Over => {
            return Err(Error::Unavailable {
                what: "MPI",
                why: "it has ended in this process, and cannot be started again".to_owned(),
                cure: once.to_owned(),
            });
        }
        State::Up if *started_here => {
            let why = "this process is in its MPI world already";
            return Err(Error::Unavailable {
                what: "a second world",
                why: why.to_owned(),
                cure: once.to_owned(),
            });
        }
        State::Up => ffi::init()?,
        State::Down => {
            ffi::init()?;
            *started_here = true;
        }
    }
    let (link, place) = MpiLink::open(*started_here, cores())?;
    let world = MpiWorld { link: Some(link), place, deadline, threads_per_rank: None };
    if world.size() == 1 {
        one_world(|name| std::env::var(name).ok())?;
    }
    Ok(world)
}

/// That a launcher has not started several processes that take themselves for worlds of one.
fn one_world(variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    for name in STARTED {
        let started = variable(name).and_then(|number| number.parse::<usize>().ok());
        if let Some(started) = started.filter(|&started| started > 1) {
            let library = library();
            return Err(Error::Environment(format!(
                "mpirun started {started} processes ({name}), but each of them is alone: this program was built with \
                 {library}, and that mpirun belongs to another MPI; use that one's own mpirun, or build with this one's \
                 mpicc (MPICC=..)"
            )));
        }
    }
    Ok(())
}

/// A number for the cores that this process may use: launchers may give each its own.
fn cores() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed:"));
    let mut hasher = DefaultHasher::new();
    allowed.hash(&mut hasher);
    hasher.finish()
}

impl MpiWorld {
    /// This process's number in the world, from 0.
    pub fn rank(&self) -> usize {
        whole(self.place.rank)
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        whole(self.place.size)
    }

    /// This process's number among those on its machine, from 0.
    pub fn local_rank(&self) -> usize {
        whole(self.place.local_rank)
    }

    /// How many there are on its machine.
    pub fn local_size(&self) -> usize {
        whole(self.place.local_size)
    }

    /// Sets how long a collective waits for the last rank (five minutes, unless set). When it has passed, every rank that
    /// waits gets [`Error::Deadline`].
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how many threads this rank may use for its kernels. Unless set, it is the number of cores that `mpirun` gave
    /// it, divided among the ranks that it gave the same.
    #[must_use]
    pub const fn threads_per_rank(mut self, threads: usize) -> Self {
        self.threads_per_rank = Some(threads);
        self
    }

    /// The link alone, for a communicator of your own.
    ///
    /// # Errors
    /// If the world has been taken apart.
    pub fn link(mut self) -> Result<MpiLink> {
        self.link.take().ok_or_else(|| Error::Environment("the MPI world's link has been taken".to_owned()))
    }

    /// Collective: this rank's communicator. The world ends when the last of its clones and of those split from it is
    /// dropped.
    ///
    /// # Errors
    /// If a rank fails or does not come, or there is no room for the threads.
    pub fn communicator(self) -> Result<MpiComm> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let share = cores / whole(self.place.sharers).max(1);
        let queue = CpuQueue::new(self.threads_per_rank.unwrap_or(share.max(1)))?;
        let deadline = self.deadline;
        MessageComm::new(self.link()?, queue, deadline)
    }

    /// Collective: calls `body` with this rank's communicator and returns what it returns. The world ends with it.
    ///
    /// # Errors
    /// If `body` returns an error or panics here or on another rank, the waits of all others end with an error that names
    /// it. This process must end then: see the [module](super).
    pub fn run<R, E>(self, body: impl FnOnce(MpiComm) -> Result<R, E>) -> Result<R, E>
    where
        E: From<Error> + Display,
    {
        let rank = self.rank();
        let comm = self.communicator()?;
        let presence = comm.clone();
        let outcome = comm.run(body);
        let linger = match presence.failure() {
            Some(
                Error::RankFailed { rank: at_fault, .. }
                | Error::RankPanicked { rank: at_fault, .. }
                | Error::RanksDisagree { rank: at_fault, .. },
            ) if at_fault == rank => LINGER.0,
            _ => LINGER.1,
        };
        ffi::linger(linger);
        outcome
    }
}

impl Drop for MpiWorld {
    fn drop(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.close(!std::thread::panicking(), GRACE);
        }
    }
}

/// A number that MPI never gives below zero.
fn whole(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mpis_mpirun_is_found_out() {
        let four = |name: &str| (name == "PMI_SIZE").then(|| "4".to_owned());
        let error = one_world(four).unwrap_err().to_string();
        assert!(error.contains("started 4 processes (PMI_SIZE)"), "{error}");
        assert!(error.contains(&library()), "{error}");
        assert!(one_world(|_| Some("1".to_owned())).is_ok());
        assert!(one_world(|_| None).is_ok());
    }
}
