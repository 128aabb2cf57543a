//! A queue: a stream of a GPU.

use core::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use attn_runtime::{Error, Result};
use cudarc::driver::{CudaContext, CudaEvent as Event, CudaStream, DriverError, result, sys};

use super::context::{Guarded, Kept, primary};
use super::driver::{capability, failed, ready};
use super::{graph, linked, tenants};
use crate::cuda::abi::Launchers;
use crate::cuda::launches::Witness;

/// A stream of a GPU, in the order of which work is done. Clones are handles of the same stream.
///
/// A queue works on memory of its own GPU: a tensor's memory is freed when no work of any queue of its GPU can use it
/// any more, and other GPUs are not waited for. Only the collectives of a group, which wait themselves, reach across;
/// attention refuses tensors of another GPU.
///
/// Work is queued and calls return at once. Whoever uses a tensor on another queue than the one that writes it orders
/// the two by [`record`](Self::record) and [`wait`](Self::wait).
#[derive(Clone)]
pub struct CudaQueue {
    inner: Arc<Inner>,
}

struct Inner {
    stream: Guarded<Arc<CudaStream>>,
    capability: (u32, u32),
    name: String,
    launchers: &'static Launchers,
    /// Why nothing that it gives may be taken for a result any more.
    condemned: OnceLock<Error>,
    /// Whom to ask whether it may be.
    witnesses: Mutex<Vec<Weak<dyn Witness>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        tenants::ends(self.stream.context().ordinal());
    }
}

/// A queue that this does not keep.
pub(super) struct WeakQueue(Weak<Inner>);

impl WeakQueue {
    pub(super) fn is_live(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(super) fn upgrade(&self) -> Option<CudaQueue> {
        self.0.upgrade().map(|inner| CudaQueue { inner })
    }
}

impl CudaQueue {
    /// A stream of its own on a GPU, which waits for no other stream.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or the driver reports an error.
    pub fn new(ordinal: usize) -> Result<Self> {
        let _kept = Kept::here()?;
        let stream = primary(ordinal)?.new_stream();
        let stream = stream.map_err(|error| failed(&format!("cuda:{ordinal}"), "cuStreamCreate", error))?;
        Self::from_stream(stream)
    }

    /// A stream that the caller has from cudarc.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        ready()?;
        // If this fails, the stream is dropped here.
        let stream = Guarded::new(stream);
        let launchers = linked::launchers()?;
        let context = stream.context();
        if context.is_primary() {
            // So that it outlives the caller's handle of it too.
            primary(context.ordinal())?;
        }
        let (device, label) = (context.cu_device(), format!("cuda:{}", context.ordinal()));
        let capability = capability(device, &label)?;
        let name =
            result::device::get_name(device).map_err(|error| failed(&label, "cuDeviceGetName", error))?;
        let (condemned, witnesses) = (OnceLock::new(), Mutex::default());
        let inner = Arc::new(Inner { stream, capability, name, launchers, condemned, witnesses });
        tenants::begins(inner.stream.context().ordinal(), WeakQueue(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// A stream that another library made: a `CUstream` or a `cudaStream_t`, null for the default one.
    ///
    /// # Safety
    /// The stream must be one of that GPU's primary context, which is the context of the CUDA runtime and of all
    /// libraries above it, and must live as long as the queue and what was allocated on it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub unsafe fn from_raw(ordinal: usize, stream: *mut c_void) -> Result<Self> {
        let _kept = Kept::here()?;
        // SAFETY: the caller's contract.
        let stream = unsafe { primary(ordinal)?.wrap_borrowed_stream(stream.cast()) };
        Self::from_stream(stream)
    }

    /// The stream, for cudarc.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.inner.stream
    }

    /// The number of the GPU.
    pub fn ordinal(&self) -> usize {
        self.context().ordinal()
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The GPU's compute capability: major and minor.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.inner.capability
    }

    /// Marks the place that the queue has reached.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn record(&self) -> Result<CudaEvent> {
        let _current = self.enter()?;
        let timed = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = self.stream().record_event(Some(timed));
        let event = event.map_err(|error| self.failed("cuEventRecord", error))?;
        Ok(CudaEvent { event: Guarded::new(event), label: self.label() })
    }

    /// Lets what is queued from now on wait until a place of another queue has been passed. The caller does not wait.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn wait(&self, event: &CudaEvent) -> Result<()> {
        let _current = self.enter()?;
        self.stream().wait(&event.event).map_err(|error| self.failed("cuStreamWaitEvent", error))
    }

    /// Another stream of the same context.
    pub(super) fn beside(&self) -> Result<Self> {
        let _current = self.enter()?;
        let stream = self.context().new_stream().map_err(|error| self.failed("cuStreamCreate", error))?;
        Self::from_stream(stream)
    }

    /// An event without a clock, for [`set`](Self::set) and [`follow`](Self::follow).
    pub(super) fn mark(&self) -> Result<CudaMark> {
        let _current = self.enter()?;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = self.context().new_event(Some(untimed));
        let event = event.map_err(|error| self.failed("cuEventCreate", error))?;
        Ok(CudaMark { event: Guarded::new(event), label: self.label() })
    }

    pub(super) fn set(&self, mark: &CudaMark) -> Result<()> {
        let _current = self.enter()?;
        mark.event.record(self.stream()).map_err(|error| self.failed("cuEventRecord", error))
    }

    pub(super) fn follow(&self, mark: &CudaMark) -> Result<()> {
        let _current = self.enter()?;
        self.stream().wait(&mark.event).map_err(|error| self.failed("cuStreamWaitEvent", error))
    }

    /// From now on every use is this error, and memory allocated on the queue is not freed: peers may still write there.
    pub(super) fn condemn(&self, error: &Error) {
        // The first one explains those that follow.
        let _ = self.inner.condemned.set(error.clone());
    }

    pub(super) fn heed(&self, witness: Weak<dyn Witness>) {
        let mut witnesses = self.inner.witnesses.lock().unwrap_or_else(PoisonError::into_inner);
        witnesses.retain(|witness| witness.strong_count() > 0);
        witnesses.push(witness);
    }

    /// That what the queue has done was all that it was asked for.
    pub(super) fn believed(&self) -> Result<()> {
        self.sound()?;
        let witnesses = self.inner.witnesses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        witnesses.iter().filter_map(Weak::upgrade).try_for_each(|witness| witness.testify())
    }

    /// That the queue was not condemned.
    pub(super) fn sound(&self) -> Result<()> {
        self.inner.condemned.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Whether the stream records a graph.
    pub(super) fn is_capturing(&self) -> Result<bool> {
        // SAFETY: the stream lives as long as the queue.
        let status = unsafe { result::stream::is_capturing(self.stream().cu_stream()) };
        let status = status.map_err(|error| self.failed("cuStreamIsCapturing", error))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// That the stream does not record: what is named cannot be part of a graph.
    pub(super) fn must_not_capture(&self, what: &'static str, cure: &'static str) -> Result<()> {
        if self.is_capturing()? { Err(Error::Capturing { what, cure }) } else { Ok(()) }
    }

    /// That neither the stream nor, on another one, the calling thread records: what is named the driver refuses to
    /// such a thread whatever it is for.
    pub(super) fn thread_must_not_capture(&self, what: &'static str, cure: &'static str) -> Result<()> {
        if graph::this_thread_records() {
            return Err(Error::Capturing { what, cure });
        }
        self.must_not_capture(what, cure)
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.inner.stream.context()
    }

    pub(super) fn launchers(&self) -> &'static Launchers {
        self.inner.launchers
    }

    pub(super) fn label(&self) -> String {
        format!("cuda:{}", self.ordinal())
    }

    pub(super) fn failed(&self, call: &'static str, error: DriverError) -> Error {
        failed(&self.label(), call, error)
    }

    /// Makes the stream's context the thread's current one, until what is returned is dropped: the CUDA runtime,
    /// which the launchers call, works in that.
    pub(super) fn enter(&self) -> Result<Kept> {
        self.sound()?;
        let kept = Kept::here()?;
        let wanted = self.context().cu_ctx();
        if kept.context() != wanted {
            // SAFETY: the context lives as long as the queue.
            unsafe { result::ctx::set_current(wanted) }
                .map_err(|error| self.failed("cuCtxSetCurrent", error))?;
        }
        Ok(kept)
    }
}

/// A place in a queue that is set again and again.
#[derive(Debug)]
pub struct CudaMark {
    event: Guarded<Event>,
    label: String,
}

impl CudaMark {
    pub(super) fn is_past(&self) -> Result<bool> {
        self.event.try_is_complete().map_err(|error| failed(&self.label, "cuEventQuery", error))
    }
}

/// A place in a queue.
#[derive(Debug)]
pub struct CudaEvent {
    event: Guarded<Event>,
    label: String,
}

impl CudaEvent {
    /// Waits until the queue has passed the place.
    ///
    /// # Errors
    /// If the work before it failed.
    pub fn synchronize(&self) -> Result<()> {
        let _kept = Kept::here()?;
        self.event.synchronize().map_err(|error| failed(&self.label, "cuEventSynchronize", error))
    }

    /// Whether the queue has passed the place.
    ///
    /// # Errors
    /// If the work before it failed.
    pub fn is_done(&self) -> Result<bool> {
        self.event.try_is_complete().map_err(|error| failed(&self.label, "cuEventQuery", error))
    }

    /// The time that the GPU spent between an earlier place and this one. Waits for both.
    ///
    /// # Errors
    /// If the events are of different GPUs, or the work before them failed.
    pub fn since(&self, earlier: &Self) -> Result<Duration> {
        let _kept = Kept::here()?;
        let milliseconds = earlier.event.elapsed_ms(&self.event);
        let milliseconds = milliseconds.map_err(|error| failed(&self.label, "cuEventElapsedTime", error))?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}

impl core::fmt::Debug for CudaQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CudaQueue")
            .field("device", &self.label())
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}
