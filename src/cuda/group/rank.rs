//! What all groups of one rank share: its GPU's two streams, and its watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use attn_runtime::comm::Rendezvous;
use attn_runtime::{Error, Result};

use super::options::{Check, GpuOptions};
use super::watchdog::Watch;
use crate::cuda::launches::Launches;
use crate::cuda::nccl::{Comm, UniqueId};

/// A rank.
pub(super) struct Rank<D: Launches> {
    /// Its number in the world.
    pub(super) number: usize,
    pub(super) queue: D::Queue,
    /// Where all of NCCL's work runs, in one order.
    pub(super) lane: D::Queue,
    pub(super) options: GpuOptions,
    pub(super) watch: Arc<Watch<D>>,
    watchdog: Option<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl<D: Launches> Rank<D> {
    /// Collective: the rank, and its communicator over the whole group; none if it is alone there.
    pub(super) fn open(
        host: &dyn Rendezvous,
        queue: D::Queue,
        options: GpuOptions,
    ) -> Result<(Arc<Self>, Option<Comm>)> {
        let (me, members) = (host.me(), host.members().to_vec());
        let (lane, alone) = (D::beside(&queue)?, members.len() == 1);
        let said = [u64::from(options.check == Check::Always), options.deadline.as_millis() as u64];
        let said: Vec<u8> = said.iter().flat_map(|number| number.to_le_bytes()).collect();
        let records = host.gather("options of communicators of GPUs", &said)?;
        if let Some(rank) = records.iter().position(|record| *record != records[0]) {
            return Err(Error::Configuration(format!(
                "rank {} opens its communicator with another deadline or check than rank {}: give all ranks the same \
                 (ATTN_DEADLINE, ATTN_CHECK)",
                members[rank], members[0]
            )));
        }
        // A handle of its own: the watchdog must not wait for what the rank waits in.
        let world = host.subgroup(0, me)?;
        let watch = Watch::new(world, [queue.clone(), lane.clone()], options.deadline);
        let mut rank =
            Self { number: members[me], queue, lane, options, watch, watchdog: None, turn: Mutex::new(()) };
        if alone {
            return Ok((Arc::new(rank), None));
        }
        let comm = rank.connect(host, me, members.len())?;
        rank.watch.look_after(comm.handle());
        let watch = Arc::clone(&rank.watch);
        let thread = Builder::new().name(format!("attn-watch-{}", rank.number)).spawn(move || watch.run());
        rank.watchdog = Some(thread.map_err(|error| Error::Thread(error.to_string()))?);
        Ok((Arc::new(rank), Some(comm)))
    }

    /// Rank 0 makes an identifier, and all open a communicator by it.
    fn connect(&self, host: &dyn Rendezvous, me: usize, size: usize) -> Result<Comm> {
        let library = D::nccl()?;
        let id = if me == 0 { library.unique_id()?.internal.to_vec() } else { Vec::new() };
        let ids = host.gather("NCCL's identifier", &id)?;
        let internal = ids.first().and_then(|id| id.as_slice().try_into().ok());
        let internal =
            internal.ok_or_else(|| Error::Plan(String::from("NCCL's identifier has 128 bytes")))?;
        let until = Instant::now() + self.options.deadline;
        let failed = || host.failure();
        D::with_stream(&self.lane, |_, _| {
            Comm::open(library, UniqueId { internal }, me, size, until, &failed)
        })?
    }

    /// NCCL wants one thread at a time for all communicators of a GPU.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Launches> Drop for Rank<D> {
    fn drop(&mut self) {
        self.watch.end();
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
    }
}
