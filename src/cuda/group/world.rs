//! Starting ranks on the GPUs of this machine.

use core::fmt::Display;
use std::time::Duration;

use attn_runtime::{Communicator, ThreadComm};
use attn_runtime::{Error, Result, World};

use super::{Check, GpuComm, GpuOptions, Transport};
use crate::cuda::launches::GpuQueue;

/// A world of ranks that are threads of this process, each with a GPU: made by [`gpus`](crate::cuda::gpus), or on queues.
#[derive(Clone, Debug)]
pub struct GpuWorld<Q> {
    queues: Vec<Q>,
    options: GpuOptions,
}

impl<Q: GpuQueue> GpuWorld<Q> {
    /// One rank for each queue. Each queue should be of a GPU of its own: NCCL refuses two ranks on one, unless it is
    /// 2.30 or later and the environment has NCCL_MULTI_RANK_GPU_ENABLE=1.
    ///
    /// # Errors
    /// If there is none, or the environment says something that makes no sense (see [`GpuOptions::from_env`]).
    pub fn on_queues(queues: Vec<Q>) -> Result<Self> {
        if queues.is_empty() {
            return Err(Error::ZeroSize { what: "the number of ranks" });
        }
        Ok(Self { queues, options: GpuOptions::from_env()? })
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.queues.len()
    }

    /// Sets how long a collective may wait for its peers.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options = self.options.deadline(deadline);
        self
    }

    /// Sets what carries tensors.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.options = self.options.transport(transport);
        self
    }

    /// Sets when ranks compare what they call.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.options = self.options.check(check);
        self
    }

    /// Calls `body` on every rank, each on a thread of its own, and returns what they return, by rank.
    ///
    /// # Errors
    /// As [`World::run`]; and if a communicator cannot be opened.
    pub fn run<R, E, F>(self, body: F) -> Result<Vec<R>, E>
    where
        R: Send,
        E: From<Error> + Display + Send,
        F: Fn(GpuComm<Q::Device>) -> Result<R, E> + Sync,
    {
        let Self { queues, options } = self;
        let world = World::threads(queues.len()).threads_per_rank(1).deadline(options.deadline);
        world.run(|host: ThreadComm| {
            let queue = queues[host.rank()].clone();
            body(GpuComm::open_with(Box::new(host), queue, options)?)
        })
    }
}

/// A world of ranks on all GPUs of this machine on which the kernels run, one rank each: the communicator is NCCL's.
///
/// # Errors
/// If there is no driver, or no such GPU.
#[cfg(feature = "nccl")]
pub fn gpus() -> Result<GpuWorld<crate::cuda::CudaQueue>> {
    let devices = crate::cuda::devices()?;
    let supported = devices.iter().filter(|device| device.supported);
    let queues =
        supported.map(|device| crate::cuda::CudaQueue::new(device.ordinal)).collect::<Result<Vec<_>>>()?;
    if queues.is_empty() {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        return Err(Error::Unavailable {
            what: "a GPU for these kernels",
            why: format!("there are {}", names.join(", ")),
            cure: String::from(
                "they run on compute capability 8.0 and later (Ampere, Ada, Hopper, Blackwell)",
            ),
        });
    }
    GpuWorld::on_queues(queues)
}

/// Gives [`World`] its `gpus`: `World::gpus()?.run(|comm| ..)`.
#[cfg(feature = "nccl")]
pub trait WorldGpus {
    /// [`gpus`].
    ///
    /// # Errors
    /// As [`gpus`].
    fn gpus() -> Result<GpuWorld<crate::cuda::CudaQueue>>;
}

#[cfg(feature = "nccl")]
impl WorldGpus for World {
    fn gpus() -> Result<GpuWorld<crate::cuda::CudaQueue>> {
        gpus()
    }
}
