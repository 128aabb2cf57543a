//! What all groups of one rank share: its GPU's two streams, and its watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use attn_runtime::comm::Rendezvous;
use attn_runtime::{Error, Result};

use super::options::{Check, GpuOptions};
use super::watchdog::{Roll, Watch};
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
    /// Also the group of the rank's own for what is compared, which counts from its first call.
    pub(super) fn open(
        world: Box<dyn Rendezvous>,
        queue: D::Queue,
        options: GpuOptions,
    ) -> Result<(Arc<Self>, Roll, Option<Comm>)> {
        let watch = Self::begin(world, queue, options);
        let (mut rank, roll) = match watch {
            Ok(begun) => begun,
            Err((world, error)) => {
                world.fail(&error);
                return Err(error);
            }
        };
        let alone = roll.members.len() == 1;
        let comm = match alone {
            true => None,
            false => Some(rank.connect(&roll).inspect_err(|error| rank.watch.fail(error))?),
        };
        if let Some(comm) = &comm {
            rank.watch.look_after(comm.handle());
            let watch = Arc::clone(&rank.watch);
            let thread =
                Builder::new().name(format!("attn-watch-{}", rank.number)).spawn(move || watch.run());
            rank.watchdog = Some(thread.map_err(|error| Error::Thread(error.to_string()))?);
        }
        Ok((Arc::new(rank), roll, comm))
    }

    /// All but the communicator. The rank waits in a group of its own: the watchdog, which has the first, must not wait
    /// for what the rank waits in.
    fn begin(
        world: Box<dyn Rendezvous>,
        queue: D::Queue,
        options: GpuOptions,
    ) -> Result<(Self, Roll), (Box<dyn Rendezvous>, Error)> {
        let begun = (|| {
            let lane = D::beside(&queue)?;
            compare(&*world, options)?;
            Ok((lane, Roll::new(world.subgroup(0, world.me())?)))
        })();
        let (lane, roll) = match begun {
            Ok(begun) => begun,
            Err(error) => return Err((world, error)),
        };
        let number = roll.members[roll.me];
        let watch = Watch::new(world, [queue.clone(), lane.clone()], options.deadline);
        D::move_in(&queue);
        Ok((Self { number, queue, lane, options, watch, watchdog: None, turn: Mutex::new(()) }, roll))
    }

    /// Rank 0 makes an identifier, and all open a communicator by it.
    fn connect(&self, roll: &Roll) -> Result<Comm> {
        let (host, me, size) = (self.watch.world(), roll.me, roll.members.len());
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
        D::move_out(&self.queue);
    }
}

/// That all ranks have the same options.
fn compare(host: &dyn Rendezvous, options: GpuOptions) -> Result<()> {
    let said = [u64::from(options.check == Check::Always), options.deadline.as_millis() as u64];
    let said: Vec<u8> = said.iter().flat_map(|number| number.to_le_bytes()).collect();
    let records = host.gather("options of communicators of GPUs", &said)?;
    match records.iter().position(|record| *record != records[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Configuration(format!(
            "rank {} opens its communicator with another deadline or check than rank {}: give all ranks the same \
             (ATTN_DEADLINE, ATTN_CHECK)",
            host.members()[rank],
            host.members()[0]
        ))),
    }
}
