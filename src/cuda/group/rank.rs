//! What all groups of one rank share: its GPU's two streams, and its watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use attn_runtime::comm::Rendezvous;
use attn_runtime::{Error, Result};

use super::Carrier;
use super::options::{GpuOptions, Transport};
use super::watchdog::{Roll, Watch};
use crate::cuda::direct::Direct;
use crate::cuda::launches::{Launches, Witness};
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
    ) -> Result<(Arc<Self>, Roll, Carrier<D>)> {
        let watch = Self::begin(world, queue, options);
        let (mut rank, roll) = match watch {
            Ok(begun) => begun,
            Err((world, error)) => {
                world.fail(&error);
                return Err(error);
            }
        };
        let carrier = match roll.members.len() {
            1 => Carrier::Alone,
            _ => rank.connect(&roll).inspect_err(|error| rank.watch.fail(error))?,
        };
        rank.look_after(&carrier);
        if !matches!(carrier, Carrier::Alone) {
            let watch = Arc::clone(&rank.watch);
            let thread =
                Builder::new().name(format!("attn-watch-{}", rank.number)).spawn(move || watch.run());
            rank.watchdog = Some(thread.map_err(|error| Error::Thread(error.to_string()))?);
        }
        Ok((Arc::new(rank), roll, carrier))
    }

    /// Has a carrier looked after.
    pub(super) fn look_after(&self, carrier: &Carrier<D>) {
        match carrier {
            Carrier::Alone => {}
            Carrier::Direct(direct) => self.watch.look_after(Arc::clone(direct) as Arc<_>),
            Carrier::Nccl(comm) => self.watch.look_after(Arc::clone(comm.handle()) as Arc<_>),
        }
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
        let witness: Arc<dyn Witness> = watch.clone();
        D::heed(&queue, Arc::downgrade(&witness));
        D::move_in(&queue);
        Ok((Self { number, queue, lane, options, watch, watchdog: None, turn: Mutex::new(()) }, roll))
    }

    /// Opens what the options ask for, or the best that there is.
    fn connect(&self, roll: &Roll) -> Result<Carrier<D>> {
        let host = self.watch.world();
        let why = match self.options.transport {
            Transport::Nccl => None,
            Transport::Direct => return self.directly(&**host)?.map_err(not_direct),
            Transport::Auto => match self.directly(&**host)? {
                Ok(direct) => return Ok(direct),
                Err(why) => Some(why),
            },
        };
        if let Some(why) = &why {
            log::info!("rank {} exchanges over NCCL, not directly: {why}", self.number);
        }
        self.over_nccl(&**host, roll).map_err(|error| match (error, why) {
            (Error::Unavailable { what, why, cure }, Some(direct)) => Error::Unavailable {
                what,
                why: format!("{why}; nor can GPUs exchange directly: {direct}"),
                cure,
            },
            (error, _) => error,
        })
    }

    /// The direct exchange of a group; or why there is none, the same on every rank.
    pub(super) fn directly(&self, host: &dyn Rendezvous) -> Result<Result<Carrier<D>, String>> {
        let direct = Direct::open_or_why(host, &self.queue)?;
        Ok(direct.map(|direct| {
            direct.set_deadline(self.options.deadline);
            Carrier::Direct(Arc::new(direct))
        }))
    }

    /// Rank 0 makes an identifier, and all open a communicator by it.
    fn over_nccl(&self, host: &dyn Rendezvous, roll: &Roll) -> Result<Carrier<D>> {
        let (me, size) = (roll.me, roll.members.len());
        let library = D::nccl()?;
        let id = if me == 0 { library.unique_id()?.internal.to_vec() } else { Vec::new() };
        let ids = host.gather("NCCL's identifier", &id)?;
        let internal = ids.first().and_then(|id| id.as_slice().try_into().ok());
        let internal =
            internal.ok_or_else(|| Error::Plan(String::from("NCCL's identifier has 128 bytes")))?;
        let until = Instant::now() + self.options.deadline;
        let failed = || host.failure();
        let open = || Comm::open(library, UniqueId { internal }, me, size, until, &failed);
        Ok(Carrier::Nccl(D::with_stream(&self.lane, |_, _| open())??))
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

/// The error for a direct exchange that is asked for and cannot be.
pub(super) fn not_direct(why: String) -> Error {
    Error::Unavailable {
        what: "the direct exchange between GPUs",
        why,
        cure: String::from("`Transport::Auto` takes NCCL where it is not"),
    }
}

/// That all ranks have the same options.
fn compare(host: &dyn Rendezvous, options: GpuOptions) -> Result<()> {
    let GpuOptions { transport, check, deadline } = options;
    let said = [transport as u64, check as u64, deadline.as_millis() as u64];
    let said: Vec<u8> = said.iter().flat_map(|number| number.to_le_bytes()).collect();
    let records = host.gather("options of communicators of GPUs", &said)?;
    match records.iter().position(|record| *record != records[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Configuration(format!(
            "rank {} opens its communicator with another transport, deadline or check than rank {}: give all ranks \
             the same (ATTN_DEADLINE, ATTN_CHECK)",
            host.members()[rank],
            host.members()[0]
        ))),
    }
}
