//! The suite of laws that every communicator obeys.

use std::time::{Duration, Instant};

use attn::cuda::{self, Check, GpuComm, GpuOptions, Transport};
use attn::prelude::*;
use attn::{Device, Error, Scalar};

use super::world_by;
use crate::kernels::rig::{DeviceOf, Rig};
use crate::suite::{self, DEADLINE, Memory};

/// Tensors go to a GPU and back.
macro_rules! memory {
    ($($device:ty),*) => {$(
        impl Memory for $device {
            fn upload<T: Scalar>(queue: &Self::Queue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>> {
                cuda::to_device(queue, &tensor)
            }

            fn download<T: Scalar>(queue: &Self::Queue, view: View<'_, T, Self>) -> attn::Result<Tensor<T>> {
                cuda::to_host(queue, view)
            }
        }
    )*};
}

#[cfg(feature = "sim")]
memory!(cuda::Simulated);
#[cfg(feature = "cuda")]
memory!(cuda::Cuda);

/// The suite's exchanges have one signature and other boxes each time, so each of them is compared.
pub fn every_law_is_obeyed<R: Rig>()
where
    DeviceOf<R>: Memory,
{
    obey::<R>(4, Transport::Nccl);
}

/// The communicator takes the direct exchange where it can.
pub fn every_law_is_obeyed_directly<R: Rig>()
where
    DeviceOf<R>: Memory,
{
    obey::<R>(2, Transport::Direct);
}

fn obey<R: Rig>(most_ranks: usize, transport: Transport)
where
    DeviceOf<R>: Memory,
{
    for ranks in 1..=most_ranks {
        let Some(world) = world_by::<R>(ranks, transport) else { return };
        let laws = |comm: GpuComm<DeviceOf<R>>| suite::check_laws(&comm);
        world.check(Check::Always).run(laws).unwrap_or_else(|error: Error| panic!("{ranks} ranks: {error}"));
    }
}

/// Every fault of the suite, in worlds of several sizes.
pub fn faults_are_told_to_everybody<R: Rig>()
where
    DeviceOf<R>: Memory,
{
    let try_all = |transport: Transport| {
        let all = suite::faults::<GpuComm<DeviceOf<R>>>().into_iter();
        all.for_each(|fault| [2, 3].into_iter().for_each(|ranks| try_out::<R>(&fault, ranks, transport)));
    };
    // Among real GPUs one after the other: worlds that share a GPU would wait for each other there.
    if DeviceOf::<R>::NAME == "cuda" {
        return [Transport::Nccl, Transport::Direct].into_iter().for_each(try_all);
    }
    std::thread::scope(|scope| {
        for transport in [Transport::Nccl, Transport::Direct] {
            for fault in suite::faults::<GpuComm<DeviceOf<R>>>() {
                scope.spawn(move || [2, 3].map(|ranks| try_out::<R>(&fault, ranks, transport)));
            }
        }
    });
}

fn try_out<R: Rig>(fault: &suite::Fault<GpuComm<DeviceOf<R>>>, ranks: usize, transport: Transport) {
    let queues: Vec<R::Queue> = (0..ranks).map_while(|rank| R::queue(rank as u64)).collect();
    if queues.is_empty() {
        return;
    }
    let hosts = World::threads(ranks).threads_per_rank(1).deadline(DEADLINE).communicators().unwrap();
    let options = GpuOptions::default().deadline(DEADLINE).transport(transport);
    let started = Instant::now();
    let rank = |host: attn::ThreadComm, queue: R::Queue| {
        let comm = GpuComm::<DeviceOf<R>>::open_with(Box::new(host), queue.clone(), options)?;
        // As a world does.
        (fault.body)(&comm)
            .and_then(|()| DeviceOf::<R>::synchronize(&queue))
            .inspect_err(|error| comm.fail(error))
    };
    let outcomes: Vec<attn::Result<()>> = std::thread::scope(|scope| {
        let ranks = hosts.into_iter().zip(queues);
        let ranks: Vec<_> = ranks.map(|(host, queue)| scope.spawn(move || rank(host, queue))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (rank, outcome) in outcomes.iter().enumerate() {
        let told = outcome.as_ref().is_err_and(|error| (fault.heard)(rank, ranks, error));
        let left = outcome.is_ok() && rank + 1 == ranks && fault.leaves;
        assert!(told || left, "{} ({transport:?}): rank {rank} of {ranks}: {outcome:?}", fault.name);
    }
    assert!(started.elapsed() < DEADLINE + Duration::from_secs(3), "{}: {:?}", fault.name, started.elapsed());
}
