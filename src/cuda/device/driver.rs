//! The driver: whether there is one, asked before cudarc is touched, which panics where there is none.

use attn_runtime::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use libloading::Library;
use std::sync::OnceLock;

use crate::cuda::architecture::Architecture;
use crate::cuda::loader::told;

/// The driver's names, as its installer and as distributions give them.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The kernels are built by CUDA 13.0, and an older driver knows neither their code nor their runtime.
const NEEDED: (u32, u32) = (13, 0);

/// What this crate calls of the driver through cudarc, which would panic for one that is missing.
const FUNCTIONS: [&str; 43] = [
    "cuCtxEnablePeerAccess",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number: what [`CudaQueue::new`](super::CudaQueue::new) takes.
    pub ordinal: usize,
    /// Its name: `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// All of its memory.
    pub memory_bytes: u64,
    /// Whether the crate's kernels run on it.
    pub supported: bool,
}

/// The GPUs of this machine, in the driver's order.
///
/// # Errors
/// If there is no driver, it is too old, or it finds no GPU.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    ready()?;
    let count = result::device::get_count().map_err(|error| failed("cuda", "cuDeviceGetCount", error))?;
    (0..count).map(describe).collect()
}

/// Whether this machine has several GPUs.
pub(super) fn several() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| ready().is_ok() && result::device::get_count().is_ok_and(|count| count > 1))
}

fn describe(ordinal: i32) -> Result<DeviceInfo> {
    let label = format!("cuda:{ordinal}");
    let device = result::device::get(ordinal).map_err(|error| failed(&label, "cuDeviceGet", error))?;
    let name = result::device::get_name(device).map_err(|error| failed(&label, "cuDeviceGetName", error))?;
    // SAFETY: the device is one that the driver has just named.
    let memory = unsafe { result::device::total_mem(device) }
        .map_err(|error| failed(&label, "cuDeviceTotalMem", error))?;
    let compute_capability = capability(device, &label)?;
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name,
        compute_capability,
        memory_bytes: memory as u64,
        supported: Architecture::Ampere.is_of(compute_capability),
    })
}

/// A device's compute capability.
pub(super) fn capability(device: sys::CUdevice, label: &str) -> Result<(u32, u32)> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let ask = |attribute| {
        // SAFETY: the device is one that the driver has named.
        let number = unsafe { result::device::get_attribute(device, attribute) };
        number
            .map(|number| number.unsigned_abs())
            .map_err(|error| failed(label, "cuDeviceGetAttribute", error))
    };
    Ok((ask(MAJOR)?, ask(MINOR)?))
}

/// The newest CUDA that the driver knows: major and minor.
///
/// # Errors
/// If there is no driver.
pub fn driver_version() -> Result<(u32, u32)> {
    static VERSION: OnceLock<Result<(u32, u32)>> = OnceLock::new();
    VERSION.get_or_init(probe).clone()
}

/// That the driver is there, new enough, and has a GPU.
pub(super) fn ready() -> Result<()> {
    static READY: OnceLock<Result<()>> = OnceLock::new();
    READY
        .get_or_init(|| {
            suffices(driver_version()?)?;
            result::init().map_err(|error| match error {
                DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE) => Error::Unavailable {
                    what: "a CUDA device",
                    why: String::from("the driver finds no GPU (CUDA_ERROR_NO_DEVICE)"),
                    cure: String::from(
                        "look at `nvidia-smi` and at the variable CUDA_VISIBLE_DEVICES, or run on `Cpu`",
                    ),
                },
                error => failed("cuda", "cuInit", error),
            })
        })
        .clone()
}

/// That a driver is new enough.
fn suffices(found: (u32, u32)) -> Result<()> {
    if found >= NEEDED {
        return Ok(());
    }
    Err(Error::Unavailable {
        what: "a CUDA driver for these kernels",
        why: format!(
            "the driver here knows CUDA up to {}.{}, the kernels are built by {}.{}",
            found.0, found.1, NEEDED.0, NEEDED.1
        ),
        cure: String::from("install driver 580 or later"),
    })
}

/// Loads the driver and asks for its version, without cudarc.
fn probe() -> Result<(u32, u32)> {
    let library = load(&LIBRARIES)?;
    for function in FUNCTIONS {
        // SAFETY: the address is looked up and not called.
        if let Err(error) = unsafe { library.get::<*const ()>(function) } {
            return Err(Error::Unavailable {
                what: "the CUDA driver",
                why: format!("it lacks {function}: {}", told(&error)),
                cure: String::from("install driver 580 or later"),
            });
        }
    }
    // SAFETY: `cuda.h` declares `CUresult cuDriverGetVersion(int*)`, which may be called before anything else.
    let version = unsafe { library.get::<unsafe extern "C" fn(*mut i32) -> i32>("cuDriverGetVersion") };
    let mut number = 0;
    // SAFETY: as above; the number lives through the call.
    let status = version.map_or(-1, |version| unsafe { version(&mut number) });
    // cudarc loads it again, and counts on its staying.
    core::mem::forget(library);
    let number = u32::try_from(number).unwrap_or_default();
    match status {
        0 => Ok((number / 1000, number % 1000 / 10)),
        status => Err(Error::Unavailable {
            what: "the CUDA driver",
            why: format!("cuDriverGetVersion returned {status}"),
            cure: String::from(
                "look at `nvidia-smi`: the driver and its kernel module must be of one version",
            ),
        }),
    }
}

fn load(names: &[&str]) -> Result<Library> {
    let mut tried = Vec::new();
    for name in names {
        // SAFETY: the driver's initialisers are those that every CUDA program runs.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(error) => tried.push(told(&error)),
        }
    }
    Err(Error::Unavailable {
        what: "the CUDA driver",
        why: format!("tried {}", tried.join("; ")),
        cure: String::from(
            "install the NVIDIA driver, or give a container its GPUs (`--gpus all`); or run on `Cpu`",
        ),
    })
}

/// A driver's error, with its name and its text.
#[cold]
pub(super) fn failed(device: &str, call: &'static str, error: DriverError) -> Error {
    let own = |said: Result<&core::ffi::CStr, DriverError>| {
        said.map_or_else(
            |_| format!("CUresult {}", error.0 as u32),
            |said| said.to_string_lossy().into_owned(),
        )
    };
    Error::Device {
        device: device.to_owned(),
        launch: call,
        name: own(error.error_name()),
        text: own(error.error_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_an_error_that_names_what_was_tried() {
        let said = load(&["libattn-no-such.so.1", "libattn-no-such.so"]).unwrap_err().to_string();
        assert!(said.contains("the CUDA driver is not available"), "{said}");
        assert!(said.contains("tried libattn-no-such.so.1: cannot open shared object file"), "{said}");
        assert!(said.contains("; libattn-no-such.so: cannot open"), "{said}");
        assert!(said.contains("install the NVIDIA driver"), "{said}");
    }

    #[test]
    fn an_old_driver_is_an_error_with_both_versions() {
        let said = suffices((12, 8)).unwrap_err().to_string();
        assert!(said.contains("up to 12.8") && said.contains("by 13.0") && said.contains("580"), "{said}");
        assert!(suffices((13, 0)).is_ok() && suffices((14, 1)).is_ok());
    }

    #[test]
    fn asking_for_devices_never_panics() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
