//! NVIDIA GPUs: the kernels of `kernels/` behind the traits of this crate.
//!
//! | feature | device | runs the kernels |
//! |---|---|---|
//! | `cuda` | `Cuda` | on a GPU of compute capability 8.0 or later (Ampere and what followed), driver 580 or later |
//! | `sim` | `Simulated` | on the host, thread by thread: for tests |
//!
//! [`Flash`](crate::Flash) computes on both, for elements [`half::bf16`] and [`half::f16`], with the kernel for the card at
//! hand ([`kernels`]), and [`Sdpa`](crate::Sdpa) for `f32` too; both under every mask; so do all strategies, over the communicator of threads, and between GPUs over `GpuComm`: with the feature
//! `nccl`, over NCCL (`cuda::nccl`), which is loaded while the program runs. [`to_device`] and [`to_host`] move tensors.
//! Memory that another library allocated is described by a [`View`](crate::View), or goes through [`raw`].

mod abi;
mod architecture;
mod attention;
mod copy;
#[cfg(feature = "cuda")]
mod device;
pub mod direct;
mod edge;
mod element;
#[cfg(any(feature = "nccl", feature = "sim"))]
mod group;
#[cfg(feature = "sim")]
mod lane;
mod launches;
mod layout;
mod loader;
#[cfg(any(feature = "nccl", feature = "sim"))]
pub mod nccl;
#[doc(hidden)]
pub mod probe;
pub mod raw;
#[cfg(feature = "sim")]
mod sim;
mod transfer;

pub use architecture::Architecture;
pub use attention::{
    DeviceMasks, FlashForm, FlashSm80, FlashSm90, KernelInfo, SageSm80, SageSm90, SdpaGpu, kernels, tuning,
};
#[cfg(feature = "cuda")]
pub use cudarc;
#[cfg(feature = "cuda")]
pub use device::{Cuda, CudaEvent, CudaGraph, CudaMemory, CudaQueue, DeviceInfo, devices, driver_version};
pub use direct::Direct;
pub use element::Half;
#[cfg(any(feature = "nccl", feature = "sim"))]
pub use group::{Check, GpuComm, GpuOptions, GpuWorld, Transport};
#[cfg(feature = "nccl")]
pub use group::{WorldGpus, gpus};
pub use launches::{GpuQueue, Launches};
#[cfg(feature = "sim")]
pub use sim::{SimQueue, Simulated};
pub use transfer::{duplicate, to_device, to_host, upload};

use attn_runtime::World;
use attn_runtime::comm::threads::Queues;

/// A world of ranks that are threads of this process, each with a queue of its own: streams of one card, or of several
/// that can read each other's memory.
pub const fn world<Q: GpuQueue>(queues: Vec<Q>) -> World<Queues<Q::Device>> {
    World::<Queues<Q::Device>>::on_queues(queues)
}
