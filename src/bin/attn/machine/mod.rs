//! The devices that the program runs on: what it needs of one beyond what the library does.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", all(test, feature = "sim")))]
mod peak;
#[cfg(all(test, feature = "sim"))]
mod sim;

use std::time::Duration;

use attn::comm::threads::Queues;
use attn::{DType, Device, Element, Scalar, Tensor, World};

pub(crate) use self::cpu::{model, threads};
use crate::cli::{Backend, DeviceName, Strategy};
use crate::failure::Failure;

/// How long a collective waits for the slowest rank: long, for ranks may share few cores.
const DEADLINE: Duration = Duration::from_secs(3600);

/// A device as the program sees it.
pub(crate) trait Machine: Device {
    /// Its name on the command line.
    const CALLED: DeviceName;

    /// A moment, in the order of a queue.
    type Moment: Send;

    /// A queue that tensors can be brought over.
    ///
    /// # Errors
    /// If the device is not there.
    fn queue() -> attn::Result<Self::Queue>;

    /// A queue for each rank. `threads` is for the host's kernels.
    ///
    /// # Errors
    /// If one cannot be made.
    fn queues(ranks: usize, threads: Option<usize>) -> attn::Result<Vec<Self::Queue>>;

    /// What the hardware is called.
    ///
    /// # Errors
    /// If it is not there.
    fn model() -> attn::Result<String>;

    /// Brings a tensor from the host. It is there when this returns, for all queues.
    ///
    /// # Errors
    /// If the memory cannot be had, or the device reports one.
    fn upload<T: Scalar>(queue: &Self::Queue, tensor: Tensor<T>) -> attn::Result<Tensor<T, Self>>;

    /// Brings a tensor to the host, once the queue has written it.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    fn download<T: Element>(queue: &Self::Queue, tensor: Tensor<T, Self>) -> attn::Result<Tensor<T>>;

    /// Copies a tensor into another as large, in the plainest way that the device has.
    ///
    /// # Errors
    /// If the device reports one.
    fn duplicate<T: Element>(
        queue: &Self::Queue,
        from: &Tensor<T, Self>,
        to: &mut Tensor<T, Self>,
    ) -> attn::Result<()>;

    /// How fast its tensor cores multiply elements of a type when nothing else is in their way, in TFLOP/s. None for a
    /// device that has none.
    ///
    /// # Errors
    /// If the device reports one.
    fn product_tflops(_: DType) -> attn::Result<Option<f64>> {
        Ok(None)
    }

    /// The moment at which the queue has done all that was asked of it before.
    ///
    /// # Errors
    /// If the device reports one.
    fn moment(queue: &Self::Queue) -> attn::Result<Self::Moment>;

    /// Milliseconds from one moment to another, none if the other was first. Waits until both have come.
    ///
    /// # Errors
    /// If the device reports one.
    fn milliseconds(from: &Self::Moment, to: &Self::Moment) -> attn::Result<f64>;
}

/// Ranks on queues, with time for the slowest.
pub(crate) fn world<D: Machine>(queues: Vec<D::Queue>) -> World<Queues<D>> {
    World::<Queues<D>>::on_queues(queues).deadline(DEADLINE)
}

/// Checks that a device is one of this build's, and that nothing is asked of it that is for the other alone.
///
/// # Errors
/// If not.
pub(crate) fn check(
    device: DeviceName,
    backend: Backend,
    strategies: &[Strategy],
    threads: Option<usize>,
) -> Result<(), Failure> {
    if backend != Backend::Sage && strategies.contains(&Strategy::UlyssesQuantised) {
        return Err(Failure::Usage(format!(
            "strategy `ulysses_quantised` rounds to 8 bits, in which `{}` does not compute: say `--device cuda --backend \
             sage` too, or `--strategy ulysses`",
            backend.name()
        )));
    }
    let refused = match device {
        DeviceName::Cpu if backend == Backend::Sage => return Err(no_sage_on_the_host()),
        DeviceName::Cpu => return Ok(()),
        DeviceName::Cuda if !cfg!(feature = "cuda") => {
            "this build has no CUDA: build with `--features cuda` (needs nvcc; scripts/install-cuda-toolchain installs one)"
        }
        DeviceName::Cuda if threads.is_some() => {
            "`--threads` is for the host's kernels: leave it out with `--device cuda`"
        }
        DeviceName::Cuda => return Ok(()),
    };
    Err(Failure::Usage(String::from(refused)))
}

/// What those get who ask the GPU's tensor cores for f32.
pub(crate) fn no_f32_on_tensor_cores(backend: Backend) -> Failure {
    Failure::Usage(format!(
        "on a GPU `{}` computes on 16-bit elements: say `--dtype bf16` or `--dtype f16` (it accumulates in f32), or \
         `--backend sdpa`",
        backend.name()
    ))
}

/// What those get who ask the host for attention in 8 bits.
pub(crate) fn no_sage_on_the_host() -> Failure {
    Failure::Usage(String::from(
        "`sage` computes in 8 bits on a GPU: say `--device cuda` too, or `--backend flash` on the host",
    ))
}
