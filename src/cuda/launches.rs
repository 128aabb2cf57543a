//! What the GPU kernels ask of a device: their launchers, a stream to queue on, and errors with a name and a text.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use std::sync::Weak;

use attn_runtime::{Device, Error, Result};

use super::abi::{self, Launch, Launchers};
use super::layout;

/// A device that runs the crate's GPU kernels: `Cuda`, or `Simulated` on the host.
/// Sealed.
pub trait Launches: Backend {}

impl<D: Backend> Launches for D {}

/// A queue of such a device: `CudaQueue` or `SimQueue`.
pub trait GpuQueue: Clone + Send + Sync + 'static {
    /// The device.
    type Device: Launches<Queue = Self>;
}

/// Somebody who knows whether what a queue has done was all that it was asked for.
pub trait Witness: Send + Sync {
    /// That it was.
    ///
    /// # Errors
    /// If it was not.
    fn testify(&self) -> Result<()>;
}

/// What each of the devices does its own way.
pub trait Backend: Device {
    /// Memory of the host that kernels reach while they run, zeroed; freed when dropped.
    type Shared: Send + Sync + 'static;

    /// Allocates such memory, aligned to 64 bytes.
    ///
    /// # Errors
    /// If it cannot be had.
    fn share(queue: &Self::Queue, bytes: usize) -> Result<Self::Shared>;

    /// The address of its first byte, the same for host and kernels.
    fn shared_base(memory: &Self::Shared) -> NonNull<u8>;

    /// Calls `body` with the launchers and the queue's stream, the stream's context being the thread's current one.
    ///
    /// # Errors
    /// If that context cannot be made current.
    fn with_stream<R>(queue: &Self::Queue, body: impl FnOnce(&Launchers, *mut c_void) -> R) -> Result<R>;

    /// The device of a queue, for messages: `cuda:0`.
    fn label(queue: &Self::Queue) -> String;

    /// The compute capability of the queue's device: major and minor.
    fn capability(queue: &Self::Queue) -> (u32, u32);

    /// On which other device of its kind the memory at an address lies, if there are several and it can be told.
    fn elsewhere(_: &Self::Queue, _: *const c_void) -> Option<String> {
        None
    }

    /// What the device has to say about a status, besides the status' own text.
    fn report(_: &Self::Queue, _: c_int) -> Option<String> {
        None
    }

    /// Copies bytes from the host to the device and waits for it.
    ///
    /// # Safety
    /// `to` must be that many bytes of the device's memory, which nothing else touches meanwhile.
    ///
    /// # Errors
    /// If the device reports one.
    unsafe fn upload(queue: &Self::Queue, from: &[u8], to: NonNull<u8>) -> Result<()>;

    /// Waits for what is queued, and copies bytes from the device to the host.
    ///
    /// # Safety
    /// `from` must be that many bytes of the device's memory, which nothing else writes meanwhile.
    ///
    /// # Errors
    /// If the device reports one.
    unsafe fn download(queue: &Self::Queue, from: NonNull<u8>, to: &mut [u8]) -> Result<()>;

    /// Queues a copy of bytes from one place of the device to another.
    ///
    /// # Safety
    /// Both must be that many bytes of the device's memory, apart from each other, which nobody writes and nobody
    /// touches, in this order, until the queue has passed the call.
    ///
    /// # Errors
    /// If the device reports one.
    unsafe fn duplicate(queue: &Self::Queue, from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Result<()>;

    /// A place in a queue, which can be set again and again.
    type Mark: Send + Sync + 'static;

    /// Another queue of the same device, in no order with this one.
    ///
    /// # Errors
    /// If it cannot be made.
    fn beside(queue: &Self::Queue) -> Result<Self::Queue>;

    /// A mark for queues of this device, which counts as passed until it is set.
    ///
    /// # Errors
    /// If it cannot be made.
    fn mark(queue: &Self::Queue) -> Result<Self::Mark>;

    /// Sets a mark at the place that the queue has reached.
    ///
    /// # Errors
    /// If the device reports one.
    fn set(queue: &Self::Queue, mark: &Self::Mark) -> Result<()>;

    /// Lets what is queued from now on wait until the place where the mark was set last has been passed.
    ///
    /// # Errors
    /// If the device reports one.
    fn follow(queue: &Self::Queue, mark: &Self::Mark) -> Result<()>;

    /// Whether a mark has been passed.
    ///
    /// # Errors
    /// If the work before it failed.
    fn is_past(mark: &Self::Mark) -> Result<bool>;

    /// Whether the queue records a graph.
    ///
    /// # Errors
    /// If the device reports one.
    fn is_recording(queue: &Self::Queue) -> Result<bool>;

    /// Lets the calling thread ask the driver while other threads record.
    fn relax() {}

    /// A rank of a communicator begins to use the queue's device.
    fn move_in(_queue: &Self::Queue) {}

    /// The contrary of [`move_in`](Self::move_in).
    fn move_out(_queue: &Self::Queue) {}

    /// Whether several ranks use the queue's device, so that one that waits for all of it may wait for the others.
    fn is_crowded(_queue: &Self::Queue) -> bool {
        false
    }

    /// From now on every use of the queue is this error: what it would give is not what was asked for.
    fn condemn(queue: &Self::Queue, error: &Error);

    /// From now on whoever waits for the queue asks the witness whether what it gave may be believed.
    fn heed(queue: &Self::Queue, witness: Weak<dyn Witness>);

    /// What moves memory between devices of this kind.
    ///
    /// # Errors
    /// If it is not there.
    #[cfg(any(feature = "nccl", feature = "sim"))]
    fn nccl() -> Result<&'static super::nccl::Library>;
}

/// That tensors lie in memory of the queue's own device.
///
/// # Errors
/// If one is known to lie elsewhere.
pub(crate) fn here<D: Launches>(
    queue: &D::Queue,
    kernel: &'static str,
    tensors: &[(&'static str, *const c_void)],
) -> Result<()> {
    for (name, base) in tensors {
        if let Some(device) = D::elsewhere(queue, *base) {
            let supported = format!("its queue is one of {}: copy the tensor there", D::label(queue));
            return Err(layout::unsupported(kernel, format!("`{name}` in memory of {device}"), supported));
        }
    }
    Ok(())
}

/// Queues one call.
///
/// # Safety
/// What the call describes must be memory of the device, to be read or written as `abi.h` says until the queue has
/// passed the call.
pub(crate) unsafe fn launch<D: Launches, P>(
    queue: &D::Queue,
    name: &'static str,
    launcher: impl FnOnce(&Launchers) -> Launch<P>,
    call: &P,
) -> Result<()> {
    // SAFETY: the launchers have the signatures of `abi.h`; what they do with the memory is the caller's contract.
    let queued = |launchers: &Launchers, stream| unsafe { launcher(launchers)(call, stream) };
    queue_on::<D>(queue, name, queued)
}

/// Calls a launcher and turns its status into a result.
pub(crate) fn queue_on<D: Launches>(
    queue: &D::Queue,
    name: &'static str,
    body: impl FnOnce(&Launchers, *mut c_void) -> c_int,
) -> Result<()> {
    D::with_stream(queue, |launchers, stream| match body(launchers, stream) {
        abi::OK => Ok(()),
        status => Err(failed::<D>(queue, name, launchers, status)),
    })?
}

/// Kept out of the way of launches that succeed.
#[cold]
fn failed<D: Launches>(
    queue: &D::Queue,
    launch: &'static str,
    launchers: &Launchers,
    status: c_int,
) -> Error {
    let (name, text) = launchers.describe(status);
    let text = D::report(queue, status).unwrap_or(text);
    Error::Device { device: D::label(queue), launch, name, text }
}

#[cfg(test)]
mod tests {
    use attn_runtime::device::StridedCopy;
    use attn_runtime::device::cpu::CpuMemory;
    use core::ffi::{CStr, c_char};

    use super::*;

    /// A device whose every launch ends with a status.
    struct Broken;

    unsafe extern "C" fn launch_of<P>(_: *const P, _: *mut c_void) -> c_int {
        700
    }

    unsafe extern "C" fn name(status: c_int) -> *const c_char {
        text_of(status, c"cudaErrorIllegalAddress", c"ATTN_UNSUPPORTED")
    }

    unsafe extern "C" fn text(status: c_int) -> *const c_char {
        text_of(status, c"an illegal memory access was encountered", c"no kernel")
    }

    fn text_of(status: c_int, of_runtime: &'static CStr, own: &'static CStr) -> *const c_char {
        if status > 0 { of_runtime.as_ptr() } else { own.as_ptr() }
    }

    static LAUNCHERS: Launchers = Launchers { status_name: name, status_text: text, ..abi::uncalled::TABLE };

    // SAFETY: as `CpuMemory` is for `Cpu`.
    unsafe impl Device for Broken {
        const NAME: &'static str = "broken";
        type Queue = ();
        type Memory = CpuMemory;

        fn allocate((): &(), bytes: usize) -> Result<CpuMemory> {
            CpuMemory::zeroed(bytes)
        }

        fn base(memory: &CpuMemory) -> NonNull<u8> {
            memory.base()
        }

        unsafe fn copy((): &(), _: &[StridedCopy]) -> Result<()> {
            Ok(())
        }

        fn synchronize((): &()) -> Result<()> {
            Ok(())
        }
    }

    impl Backend for Broken {
        type Shared = CpuMemory;

        fn share((): &(), bytes: usize) -> Result<CpuMemory> {
            CpuMemory::zeroed(bytes)
        }

        fn shared_base(memory: &CpuMemory) -> NonNull<u8> {
            memory.base()
        }

        fn with_stream<R>((): &(), body: impl FnOnce(&Launchers, *mut c_void) -> R) -> Result<R> {
            Ok(body(&LAUNCHERS, core::ptr::null_mut()))
        }

        fn label((): &()) -> String {
            String::from("broken:3")
        }

        fn capability((): &()) -> (u32, u32) {
            (9, 0)
        }

        unsafe fn upload((): &(), _: &[u8], _: NonNull<u8>) -> Result<()> {
            Ok(())
        }

        unsafe fn download((): &(), _: NonNull<u8>, _: &mut [u8]) -> Result<()> {
            Ok(())
        }

        unsafe fn duplicate((): &(), _: NonNull<u8>, _: NonNull<u8>, _: usize) -> Result<()> {
            Ok(())
        }

        type Mark = ();

        fn beside((): &()) -> Result<()> {
            Ok(())
        }

        fn mark((): &()) -> Result<()> {
            Ok(())
        }

        fn set((): &(), (): &()) -> Result<()> {
            Ok(())
        }

        fn follow((): &(), (): &()) -> Result<()> {
            Ok(())
        }

        fn is_past((): &()) -> Result<bool> {
            Ok(true)
        }

        fn is_recording((): &()) -> Result<bool> {
            Ok(false)
        }

        fn condemn((): &(), _: &Error) {}

        fn heed((): &(), _: Weak<dyn Witness>) {}

        #[cfg(any(feature = "nccl", feature = "sim"))]
        fn nccl() -> Result<&'static crate::cuda::nccl::Library> {
            crate::cuda::nccl::library()
        }

        fn elsewhere((): &(), address: *const c_void) -> Option<String> {
            (address.addr() == 4096).then(|| String::from("broken:4"))
        }
    }

    #[test]
    fn a_status_becomes_an_error_with_name_text_launch_and_device() {
        let call = 0_u8;
        let launcher = |_: &Launchers| -> Launch<u8> { launch_of };
        // SAFETY: the launcher looks at nothing.
        let error = unsafe { launch::<Broken, _>(&(), "flash", launcher, &call) }.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cudaErrorIllegalAddress (an illegal memory access was encountered) reported by `flash` on broken:3"
        );
        let error = queue_on::<Broken>(&(), "copy", |_, _| -1).unwrap_err();
        assert_eq!(error.to_string(), "ATTN_UNSUPPORTED (no kernel) reported by `copy` on broken:3");
    }

    #[test]
    fn a_tensor_of_another_device_is_refused_with_both() {
        let at = core::ptr::without_provenance::<c_void>;
        let error = here::<Broken>(&(), "flash", &[("query", at(64)), ("key", at(4096))]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the GPU kernel `flash` does not take `key` in memory of broken:4: its queue is one of broken:3: copy the \
             tensor there"
        );
        assert!(here::<Broken>(&(), "flash", &[("query", at(64))]).is_ok());
    }
}
