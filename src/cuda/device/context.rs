//! Contexts: the one of each GPU, and which of them is a thread's current one.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use attn_runtime::{Error, Result};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::driver::{failed, ready};

/// A GPU's primary context, and a stream that nobody uses.
struct Primary {
    context: Arc<CudaContext>,
    /// Before the first stream of a context cudarc waits for all of the GPU's work, and no recording survives that.
    /// While this stream is there, no other is the first.
    _first: Arc<CudaStream>,
}

/// The contexts that were asked for. They stay to the end of the process: a primary context that nobody holds is torn
/// down by the driver, with all that the CUDA runtime and other libraries have in it.
static PRIMARY: Mutex<BTreeMap<usize, Primary>> = Mutex::new(BTreeMap::new());

/// The primary context of a GPU. The thread's current one stays as it is.
pub(super) fn primary(ordinal: usize) -> Result<Arc<CudaContext>> {
    ready()?;
    let mut held = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(primary) = held.get(&ordinal) {
        return Ok(Arc::clone(&primary.context));
    }
    let _kept = Kept::here()?;
    let context = CudaContext::new(ordinal).map_err(|error| missing(ordinal, error))?;
    // SAFETY: nothing was allocated yet by this handle of the context that would have to be tracked.
    unsafe { context.disable_event_tracking() };
    let first = context.new_stream();
    // SAFETY: as above.
    unsafe { context.enable_event_tracking() };
    let first = first.map_err(|error| failed(&format!("cuda:{ordinal}"), "cuStreamCreate", error))?;
    held.insert(ordinal, Primary { context: Arc::clone(&context), _first: first });
    Ok(context)
}

fn missing(ordinal: usize, error: DriverError) -> Error {
    match error {
        DriverError(sys::CUresult::CUDA_ERROR_INVALID_DEVICE) => Error::Unavailable {
            what: "the GPU",
            why: format!(
                "there is no cuda:{ordinal} among the {} of this machine",
                result::device::get_count().unwrap_or_default()
            ),
            cure: String::from(
                "GPUs are numbered from 0; CUDA_VISIBLE_DEVICES hides those that it does not name",
            ),
        },
        error => failed(&format!("cuda:{ordinal}"), "cuDevicePrimaryCtxRetain", error),
    }
}

/// A thread's current context, made current again when this is dropped: what other libraries do on the thread may
/// depend on it.
pub(super) struct Kept {
    context: sys::CUcontext,
}

impl Kept {
    pub(super) fn here() -> Result<Self> {
        ready()?;
        let context = result::ctx::get_current().map_err(|error| failed("cuda", "cuCtxGetCurrent", error))?;
        Ok(Self { context: context.unwrap_or(core::ptr::null_mut()) })
    }

    /// The thread's current context; null is none.
    pub(super) fn context(&self) -> sys::CUcontext {
        self.context
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let current = result::ctx::get_current().ok().flatten().unwrap_or(core::ptr::null_mut());
        if current != self.context {
            // SAFETY: the context was the thread's current one; null is none. An error has no place to go from here,
            // and the next call to the driver reports it again.
            let _ = unsafe { result::ctx::set_current(self.context) };
        }
    }
}

/// What cudarc makes its own context current for when it is dropped: the thread's is kept.
#[derive(Debug)]
pub(super) struct Guarded<T>(ManuallyDrop<T>);

impl<T> Guarded<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let _kept = Kept::here();
        // SAFETY: nobody uses the value after this, the one place where it is dropped.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}
