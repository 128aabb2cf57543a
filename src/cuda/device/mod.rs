//! NVIDIA GPUs, by the driver's interface: contexts, streams, memory.

mod context;
mod driver;
mod graph;
mod linked;
mod memory;
mod queue;
mod shared;
mod tenants;

pub use driver::{DeviceInfo, devices, driver_version};
pub use graph::CudaGraph;
pub use memory::CudaMemory;
pub use queue::{CudaEvent, CudaQueue};

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use std::sync::Weak;

use attn_runtime::device::{EdgeCopy, StridedCopy};
use attn_runtime::{Device, Error, Result};
use cudarc::driver::{DriverError, result, sys};

use super::abi::Launchers;
use super::launches::{Backend, GpuQueue, Witness};
use super::{copy, edge};
use queue::CudaMark;

/// An NVIDIA GPU.
///
/// ```no_run
/// use attn::cuda::{self, CudaQueue};
/// use attn::comm::threads::Queues;
/// use attn::prelude::*;
/// use half::bf16;
///
/// #[parallel_attention(strategy = "none", backend = "flash", mask = "causal")]
/// struct SelfAttention;
///
/// # fn main() -> attn::Result<()> {
/// let queue = CudaQueue::new(0)?;
/// World::<Queues<cuda::Cuda>>::on_queues(vec![queue.clone()]).run(|comm| {
///     let here = Tensor::<bf16>::from_fn([1, 1024, 16, 128], |[_, s, h, d]| bf16::from_f32((s ^ h ^ d) as f32))?;
///     let x = cuda::to_device(&queue, &here)?;
///     let mut session = Session::open(comm)?;
///     let out = SelfAttention.attend(&mut session, &x, &x, &x, &AttentionMetadata::default())?;
///     cuda::to_host(&queue, &out)
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

// SAFETY: `CudaMemory` is a block of the size asked for (the driver aligns blocks to 256 bytes), whose zeros are queued
// before anything that is queued later on; its address stays until it is dropped.
unsafe impl Device for Cuda {
    const NAME: &'static str = "cuda";
    type Queue = CudaQueue;
    type Memory = CudaMemory;

    fn allocate(queue: &CudaQueue, bytes: usize) -> Result<CudaMemory> {
        CudaMemory::zeroed(queue, bytes)
    }

    fn base(memory: &CudaMemory) -> NonNull<u8> {
        memory.base()
    }

    unsafe fn copy(queue: &CudaQueue, copies: &[StridedCopy]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { copy::batch::<Self>(queue, copies) }
    }

    unsafe fn edge(queue: &CudaQueue, copies: &[EdgeCopy]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { edge::batch::<Self>(queue, copies) }
    }

    fn synchronize(queue: &CudaQueue) -> Result<()> {
        let _current = queue.enter()?;
        queue.must_not_capture(
            "waiting for the GPU",
            "ranks that are threads wait for each other in every collective, so capture a session of one rank; and a \
             session waits when its scratch memory grows, so make its calls twice before the capture",
        )?;
        // SAFETY: the stream lives as long as the queue.
        unsafe { result::stream::synchronize(queue.stream().cu_stream()) }
            .map_err(|error| queue.failed("cuStreamSynchronize", error))?;
        // Work that was cut off is over too.
        queue.believed()
    }

    fn connect(queues: &[CudaQueue]) -> Result<()> {
        for from in queues {
            for to in queues.iter().filter(|to| to.ordinal() != from.ordinal()) {
                reach(from, to)?;
            }
        }
        Ok(())
    }
}

/// Lets one GPU read another's memory.
fn reach(from: &CudaQueue, to: &CudaQueue) -> Result<()> {
    let _current = from.enter()?;
    let (mut can, ours, theirs) = (0, from.context().cu_device(), to.context().cu_device());
    // SAFETY: both devices are the queues' own.
    unsafe { sys::cuDeviceCanAccessPeer(&mut can, ours, theirs) }
        .result()
        .map_err(|error| from.failed("cuDeviceCanAccessPeer", error))?;
    if can == 0 {
        return Err(Error::Configuration(format!(
            "cuda:{} cannot read the memory of cuda:{}: ranks of one process need GPUs that are peers (see `nvidia-smi \
             topo -p2p r`)",
            from.ordinal(),
            to.ordinal()
        )));
    }
    // SAFETY: `from`'s context is current, and `to`'s lives as long as `to`.
    match unsafe { sys::cuCtxEnablePeerAccess(to.context().cu_ctx(), 0) }.result() {
        Ok(()) | Err(DriverError(sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)) => Ok(()),
        Err(error) => Err(from.failed("cuCtxEnablePeerAccess", error)),
    }
}

impl GpuQueue for CudaQueue {
    type Device = Cuda;
}

impl Backend for Cuda {
    type Shared = shared::Shared;

    fn share(queue: &CudaQueue, bytes: usize) -> Result<shared::Shared> {
        shared::Shared::zeroed(queue, bytes)
    }

    fn shared_base(memory: &shared::Shared) -> NonNull<u8> {
        memory.base()
    }

    fn with_stream<R>(queue: &CudaQueue, body: impl FnOnce(&Launchers, *mut c_void) -> R) -> Result<R> {
        let _current = queue.enter()?;
        Ok(body(queue.launchers(), queue.stream().cu_stream().cast()))
    }

    fn label(queue: &CudaQueue) -> String {
        queue.label()
    }

    fn capability(queue: &CudaQueue) -> (u32, u32) {
        queue.compute_capability()
    }

    fn elsewhere(queue: &CudaQueue, address: *const c_void) -> Option<String> {
        if !driver::several() {
            return None;
        }
        let _current = queue.enter().ok()?;
        let mut ordinal: c_int = -1;
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        let address = address.addr() as sys::CUdeviceptr;
        // SAFETY: any address may be asked about, and this attribute is an `int`.
        let asked = unsafe { sys::cuPointerGetAttribute((&raw mut ordinal).cast(), attribute, address) };
        // Of what the driver does not know nothing can be said.
        asked.result().ok()?;
        let own = c_int::try_from(queue.ordinal()).ok()?;
        (ordinal != own).then(|| format!("cuda:{ordinal}"))
    }

    unsafe fn upload(queue: &CudaQueue, from: &[u8], to: NonNull<u8>) -> Result<()> {
        {
            let _current = queue.enter()?;
            queue.must_not_capture("a copy from the host", "make it before the capture")?;
            // A copy of memory that is not page-locked waits inside the driver, with its locks held: not for a peer.
            Self::synchronize(queue)?;
            let (address, stream) = (to.as_ptr().addr() as sys::CUdeviceptr, queue.stream().cu_stream());
            // SAFETY: the caller's contract; the bytes stay until the wait below is over.
            unsafe { result::memcpy_htod_async(address, from, stream) }
                .map_err(|error| queue.failed("cuMemcpyHtoDAsync", error))?;
        }
        Self::synchronize(queue)
    }

    unsafe fn download(queue: &CudaQueue, from: NonNull<u8>, to: &mut [u8]) -> Result<()> {
        {
            let _current = queue.enter()?;
            queue.must_not_capture("a copy to the host", "make it after the graph was launched")?;
            // As in `upload`.
            Self::synchronize(queue)?;
            let (address, stream) = (from.as_ptr().addr() as sys::CUdeviceptr, queue.stream().cu_stream());
            // SAFETY: the caller's contract; the bytes stay until the wait below is over.
            unsafe { result::memcpy_dtoh_async(to, address, stream) }
                .map_err(|error| queue.failed("cuMemcpyDtoHAsync", error))?;
        }
        Self::synchronize(queue)
    }

    unsafe fn duplicate(queue: &CudaQueue, from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Result<()> {
        let _current = queue.enter()?;
        let address = |pointer: NonNull<u8>| pointer.as_ptr().addr() as sys::CUdeviceptr;
        let (from, to, stream) = (address(from), address(to), queue.stream().cu_stream());
        // SAFETY: the caller's contract; the stream lives as long as the queue, in the context made current above.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
            .map_err(|error| queue.failed("cuMemcpyDtoDAsync", error))
    }

    type Mark = CudaMark;

    fn beside(queue: &CudaQueue) -> Result<CudaQueue> {
        queue.beside()
    }

    fn mark(queue: &CudaQueue) -> Result<CudaMark> {
        queue.mark()
    }

    fn set(queue: &CudaQueue, mark: &CudaMark) -> Result<()> {
        queue.set(mark)
    }

    fn follow(queue: &CudaQueue, mark: &CudaMark) -> Result<()> {
        queue.follow(mark)
    }

    fn is_past(mark: &CudaMark) -> Result<bool> {
        mark.is_past()
    }

    fn is_recording(queue: &CudaQueue) -> Result<bool> {
        let _current = queue.enter()?;
        queue.is_capturing()
    }

    fn relax() {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the function exchanges the mode of the calling thread for the one that it is given. If it cannot, the
        // thread's questions may be refused while another records, which shows as their errors.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    }

    fn move_in(queue: &CudaQueue) {
        tenants::move_in(queue.ordinal());
    }

    fn move_out(queue: &CudaQueue) {
        tenants::move_out(queue.ordinal());
    }

    fn is_crowded(queue: &CudaQueue) -> bool {
        tenants::is_crowded(queue.ordinal())
    }

    fn condemn(queue: &CudaQueue, error: &Error) {
        queue.condemn(error);
    }

    fn heed(queue: &CudaQueue, witness: Weak<dyn Witness>) {
        queue.heed(witness);
    }

    #[cfg(any(feature = "nccl", feature = "sim"))]
    fn nccl() -> Result<&'static crate::cuda::nccl::Library> {
        crate::cuda::nccl::library()
    }
}
